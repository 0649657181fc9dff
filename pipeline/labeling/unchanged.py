"""Whether an exported folder comes back as it went out: then it holds proposals, and no labels.

Formats that have one place for masks, rather than one for proposals and one for labels, keep the hashes of
what they proposed, in the way of `sha256sum`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import DataError
from pipeline.files import append_text, file_sha256

PROPOSALS = "proposals.sha256"

_LONGEST_LINE = 4096
_LINE = re.compile(r"([0-9a-f]{64})  (.+)\n")


class ProposalList:
    """Writes down the files of an exported folder that hold proposals."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, file: Path) -> None:
        """Write down a file, which lies in the folder or below it.

        Raises:
            UserError: the folder cannot be written, or the disk is full.
        """
        line = f"{file_sha256(file)}  {file.relative_to(self._folder).as_posix()}\n"
        append_text(self._folder / PROPOSALS, line)


def unchanged_proposals(folder: Path) -> set[Path]:
    """The files of a folder that hold proposals, resolved, where every one of them is as it was exported;
    none where one has changed."""
    root = folder.resolve()
    path = root / PROPOSALS
    if path.is_symlink() or not path.is_file():
        return set()
    files: set[Path] = set()
    with path.open(encoding="utf-8", errors="replace", newline="\n") as stream:
        while line := stream.readline(_LONGEST_LINE):
            match = _LINE.fullmatch(line)
            file = _inside(root, match[2]) if match else None
            if match is None or file is None or file_sha256(file) != match[1]:
                return set()
            files.add(file)
    return files


def without_unchanged(source: Path, files: Sequence[Path], *, folder: Path) -> list[Path]:
    """The files of a source without those that hold proposals as they were exported.

    Args:
        folder: the exported folder, where the source is one or lies in one.

    Raises:
        DataError: none is left of some files.
    """
    proposed = unchanged_proposals(folder)
    changed = [path for path in files if path.resolve() not in proposed]
    if files and not changed:
        raise as_exported(source)
    return changed


def as_exported(source: Path) -> DataError:
    """A source holds only what was exported."""
    return DataError(
        f"{source} is as it was exported: it holds proposals, not labels.",
        f"Name what the labeling tool has exported. If every proposal is right, remove {PROPOSALS}.",
    )


def _inside(folder: Path, name: str) -> Path | None:
    """A plain file of the folder; None where the untrusted name is that of no such file."""
    try:
        path = (folder / name).resolve(strict=True)
        return path if path.is_relative_to(folder) and path.is_file() else None
    except (OSError, RuntimeError, ValueError):
        return None
