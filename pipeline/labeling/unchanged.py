"""Whether an exported folder comes back as it went out: then it holds proposals, and no labels.

Formats that have one place for masks, rather than one for proposals and one for labels, keep the hashes of
what they proposed, in the way of `sha256sum`.
"""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.files import file_sha256, writing

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
        path = self._folder / PROPOSALS
        with writing(path), path.open("a", encoding="utf-8") as stream:
            stream.write(f"{file_sha256(file)}  {file.relative_to(self._folder).as_posix()}\n")


def unchanged_proposals(folder: Path) -> set[Path]:
    """The files of a folder that hold proposals, resolved, where every one of them is as it was exported;
    none where anybody has changed one."""
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


def _inside(folder: Path, name: str) -> Path | None:
    """A plain file of the folder; None where the name, which anybody may have written, is no such file's."""
    try:
        path = (folder / name).resolve(strict=True)
        return path if path.is_relative_to(folder) and path.is_file() else None
    except (OSError, RuntimeError, ValueError):
        return None
