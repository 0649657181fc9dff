"""What a label file held when it was read, so that an unchanged file is not read again.

It is kept in the work folder beside the masks, and can be made again from the label file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipeline.errors import DataError
from pipeline.files import atomic_write_bytes, file_sha256, open_plain

_EXAMPLES = 3
_ENDINGS = frozenset({".json", ".jsonl", ".ndjson", ".xml", ".zip", ".png", ".txt", ".sha256"})


@dataclass
class LabelState:
    """What was read of one entry of `data.labels`.

    Attributes:
        settings: a hash of the entry and the classes.
        signature: of the files' names, sizes and times.
        content: a hash of what the files held.
        images: a hash of the names of the project's images.
        masks: the SHA-256 of each image's mask, by the image's URI.
        problems: why an image got none, by its URI.
        empty: images of which nothing is drawn.
        rejected: subject and reason of what belongs to no image, or is not used.
        absent: annotated images that `data.images` does not have; and the first of their names.
        unknown: images with a class that the project does not have.
    """

    settings: str = ""
    signature: str = ""
    content: str = ""
    images: str = ""
    masks: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    absent: int = 0
    absent_names: list[str] = field(default_factory=list)
    unknown: int = 0

    @classmethod
    def load(cls, path: Path) -> LabelState:
        """The state in a file; an empty one where there is none, or one of another version."""
        try:
            with open_plain(path) as stream:
                return cls(**json.load(stream))
        except (DataError, OSError, ValueError, TypeError):
            return cls()

    def save(self, path: Path) -> None:
        """Write it, whole or not at all.

        Raises:
            UserError: the folder cannot be written, or the disk is full.
        """
        atomic_write_bytes(path, json.dumps(asdict(self)).encode())

    def begin_again(self) -> None:
        """Forget what every reading finds anew: all but what was found of the project's images."""
        self.rejected, self.absent, self.absent_names = [], 0, []

    def note_absent(self, name: str) -> None:
        """Count an annotated image that `data.images` does not have."""
        self.absent += 1
        if len(self.absent_names) < _EXAMPLES:
            self.absent_names.append(name)


def files_of(source: Path, *, panoptic: bool) -> list[Path]:
    """The files that a label file consists of: itself, or all of a folder, and the PNGs beside a panoptic
    one."""
    if source.is_dir():
        return sorted(_below(source))
    return [source, *(sorted(_below(source.with_suffix(""))) if panoptic else ())]


def signature_of(files: list[Path]) -> str:
    """A hash of the files' names, sizes and times."""
    digest = hashlib.sha256()
    for path in files:
        status = path.stat()
        digest.update(
            f"{path}\0{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}\n".encode(
                errors="surrogateescape"
            )
        )
    return digest.hexdigest()


def content_of(files: list[Path]) -> str:
    """A hash of the files' names and contents."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path}\0{file_sha256(path)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _below(folder: Path) -> Iterator[Path]:
    """The files of a folder that may hold labels, without links and hidden ones; none where it is no
    folder."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            if path.suffix.lower() in _ENDINGS and path.is_file() and not path.is_symlink():
                yield path
