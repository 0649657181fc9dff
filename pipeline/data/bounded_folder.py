"""A folder of bounded size, of files that can be made again: the least recently read leave when it is full.

Any number of threads and processes may share it: a file appears whole, and one that leaves stays readable for
whoever has it open.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from pipeline.files import ABANDONED_SECONDS, PARTIAL, open_plain, writing

ROOM = 0.9
"""Share of the folder that stays when it is full: so often, and not at each file, it is looked through."""
_LEDGER = ".bytes"


@dataclass(frozen=True)
class BoundedFolder:
    """Files by name.

    Attributes:
        folder: is made with the first file.
        limit: bytes that the finished files may have together. A larger file leaves at once.
    """

    folder: Path
    limit: int

    def open(self, name: str) -> BufferedReader | None:
        """The content of a file; None where it is not there."""
        try:
            stream = open_plain(self.path_of(name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        with suppress(OSError):
            os.utime(stream.fileno())  # read now: the last to leave
        return stream

    def put(self, name: str, write: Callable[[str], None]) -> BufferedReader:
        """Make a file, and open it.

        Args:
            write: fills the empty file at the path that it is given.

        Raises:
            UserError: the disk is full, or the folder cannot be written.
        """
        path = self.path_of(name)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=PARTIAL)
        stream = os.fdopen(handle, "rb")
        try:
            with writing(path):
                write(partial)
                self._place(partial, path, size=os.fstat(stream.fileno()).st_size)
        except BaseException:
            stream.close()
            with suppress(OSError):
                os.unlink(partial)
            raise
        return stream

    def forget(self, name: str) -> None:
        """Remove a file."""
        with suppress(OSError):
            self.path_of(name).unlink()

    def path_of(self, name: str) -> Path:
        """The file behind a name of any characters."""
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
        return self.folder / digest[:2] / digest[2:]

    def _place(self, partial: str, path: Path, *, size: int) -> None:
        """Make room for a file and put it there, both under one lock: who makes room next sees it. The ledger
        holds the sum of what is there."""
        with open(self.folder / _LEDGER, "a+", encoding="ascii") as ledger:
            fcntl.flock(ledger, fcntl.LOCK_EX)
            ledger.seek(0)
            text = ledger.read()
            total = int(text) + size if text.isdigit() else self.limit + 1
            if total > self.limit:
                total = self._evict(int(self.limit * ROOM) - size) + size
            ledger.truncate(0)
            ledger.write(str(total))
            ledger.flush()
            os.replace(partial, path)

    def _evict(self, target: int) -> int:
        """Remove the least recently read files until `target` bytes are left. Returns the bytes left."""
        files: list[tuple[float, int, str]] = []
        abandoned = time.time() - ABANDONED_SECONDS
        for folder in os.scandir(self.folder):
            for entry in os.scandir(folder.path) if folder.is_dir() else ():
                with suppress(FileNotFoundError):
                    found = entry.stat()
                    if not entry.name.endswith(PARTIAL):
                        files.append((found.st_mtime, found.st_size, entry.path))
                    elif found.st_mtime < abandoned:
                        os.unlink(entry.path)
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= max(0, target):
                break
            with suppress(FileNotFoundError):
                os.unlink(path)
            total -= size
        return total
