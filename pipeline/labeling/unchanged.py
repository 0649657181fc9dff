"""Whether an exported folder is unchanged: then it contains proposals, and no labels.

Formats with the same files for proposals and for labels store the hashes of the proposals, in the format of
`sha256sum`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import DataError
from pipeline.files import LARGEST_LIST, append_text, file_sha256, open_plain

PROPOSALS = "proposals.sha256"

_LONGEST_LINE = 4096
_LINE = re.compile(r"([0-9a-f]{64})  (.+)\n")


class ProposalList:
    """Records the files of an exported folder that contain proposals."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, file: Path) -> None:
        """Record a file of the folder or of a folder below it.

        Raises:
            UserError: the folder cannot be written, or the disk is full.
        """
        line = f"{file_sha256(file)}  {file.relative_to(self._folder).as_posix()}\n"
        append_text(self._folder / PROPOSALS, line)


def unchanged_proposals(folder: Path) -> set[Path]:
    """The files of a folder that contain proposals, as resolved paths; an empty set where one of them has
    changed since the export."""
    root = folder.resolve()
    path = root / PROPOSALS
    if path.is_symlink() or not path.is_file():
        return set()
    files: set[Path] = set()
    with open_plain(path, longest=LARGEST_LIST) as stream:
        while line := stream.readline(_LONGEST_LINE):
            match = _LINE.fullmatch(line.decode(errors="replace"))
            file = _inside(root, match[2]) if match else None
            if match is None or file is None or file_sha256(file) != match[1]:
                return set()
            files.add(file)
    return files


def without_unchanged(source: Path, files: Sequence[Path], *, folder: Path) -> list[Path]:
    """The files of a source without unchanged proposals.

    Args:
        folder: the exported folder, where the source is one or lies in one.

    Raises:
        DataError: every file is an unchanged proposal.
    """
    proposed = unchanged_proposals(folder)
    changed = [path for path in files if path.resolve() not in proposed]
    if files and not changed:
        raise as_exported(source)
    return changed


def as_exported(source: Path) -> DataError:
    """The error for a source that is an unchanged export."""
    return DataError(
        f"{source} is unchanged since its export: it holds proposals, not labels.",
        f"Name the file that the labeling tool has exported. If every proposal is right, remove {PROPOSALS}.",
    )


def _inside(folder: Path, name: str) -> Path | None:
    """A plain file of the folder; None where the untrusted name is not the name of one."""
    try:
        path = (folder / name).resolve(strict=True)
        return path if path.is_relative_to(folder) and path.is_file() else None
    except (OSError, RuntimeError, ValueError):
        return None
