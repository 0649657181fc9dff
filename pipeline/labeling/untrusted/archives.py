"""Untrusted files, in a zip archive or in a folder: listed and read one by one, within limits.

Nothing is extracted to a name from the archive, and the sizes that it states are not trusted: the limits
apply to the decompressed bytes.
"""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, Protocol

from pipeline.errors import DataError
from pipeline.files import open_plain
from pipeline.labeling.exchange import Rejected, shown

MOST_MEMBERS = 100_000
"""Members of an archive, and files of a folder."""
LARGEST_DIRECTORY = 32 << 20
"""Bytes of an archive's list of members, which is read whole."""
ALWAYS_BYTES = 256 << 20
"""Decompressed bytes that any archive may have, all members together."""
BYTES_PER_BYTE = 100
"""Decompressed bytes that an archive may have beyond that, for each of its own bytes."""

_END, _END_SIZE, _LONGEST_COMMENT = b"PK\x05\x06", 22, 1 << 16
_END_64, _LOCATOR_64, _SIZE_64 = b"PK\x06\x06", b"PK\x06\x07", 56 + 20
_ENTRY = b"PK\x01\x02"
_ENCRYPTED = 0x1 | 0x40
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
    *(NotImplementedError, RuntimeError, ValueError, OverflowError),
)
_PASSED_OVER = ("__MACOSX", ".DS_Store", "Thumbs.db", "desktop.ini")
_AGAIN = "Export it from the labeling tool again."


class Files(Protocol):
    """The files of an archive or folder.

    Attributes:
        names: their paths, with `/`, relative to it; sorted.
        rejected: files that are not read.
    """

    names: list[str]
    rejected: list[Rejected]

    def open(self, name: str, *, longest: int) -> BinaryIO:
        """A file of `names`, as a stream that raises a DataError when it is damaged, or has more bytes."""
        ...

    def changed(self, name: str) -> datetime | None:
        """The time when a file was written; aware. None where it is unknown."""
        ...


def read_file(files: Files, name: str, *, longest: int) -> bytes:
    """A file's content.

    Raises:
        DataError: it is damaged, or has more than `longest` bytes.
    """
    with files.open(name, longest=longest) as stream:
        return stream.read()


@contextmanager
def open_files(source: Path) -> Generator[Files]:
    """The files of a zip archive or a folder; they can be read until the block ends.

    Raises:
        DataError: it is neither, or it is an archive that is damaged or too large.
    """
    if source.is_dir():
        yield _Folder(source)
        return
    try:
        stream = open_plain(source)
    except OSError as error:
        raise DataError(f"{source} cannot be read.", "Name the file that was exported.") from error
    with stream:
        _check_directory(source, stream)
        try:
            archive = zipfile.ZipFile(stream)
        except _DAMAGE as error:
            raise _damaged(source) from error
        with archive:
            yield _Archive(source, archive)


def is_zip(source: Path) -> bool:
    """Whether a file begins like a zip archive."""
    if not source.is_file():
        return False
    with open_plain(source) as stream:
        return stream.read(4) in (b"PK\x03\x04", _END)


class _Archive:
    def __init__(self, source: Path, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.left = ALWAYS_BYTES + BYTES_PER_BYTE * source.stat().st_size
        """Decompressed bytes that may still be read."""
        self._members: dict[str, zipfile.ZipInfo] = {}
        self.rejected: list[Rejected] = []
        members = [
            info for info in archive.infolist() if not info.filename.endswith("/") and not _is_ignored(info)
        ]
        times = Counter(info.filename for info in members)
        for info in members:
            reason = _why_rejected(info)
            if times[info.filename] > 1:
                reason = "The archive has more than one file of this name."
            if reason is None:
                self._members[info.filename] = info
            else:
                self.rejected.append(Rejected(shown(info.orig_filename), reason))
        self.rejected = list(dict.fromkeys(self.rejected))
        self.names = sorted(self._members)

    def open(self, name: str, *, longest: int) -> BinaryIO:
        try:
            return io.BufferedReader(_Member(self, self._archive.open(self._members[name]), name, longest))
        except _DAMAGE as error:
            raise _damaged(name) from error

    def changed(self, name: str) -> datetime | None:
        return None  # a member's time is in an unknown time zone


class _Member(io.RawIOBase):
    """A member's content, within the limits of the member and of its archive."""

    def __init__(self, archive: _Archive, inner: IO[bytes], name: str, longest: int) -> None:
        self._archive = archive
        self._inner = inner
        self._name = name
        self._longest = longest
        self._left = longest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            part = self._inner.read(min(len(buffer), 1 << 20))
        except _DAMAGE as error:
            raise _damaged(self._name) from error
        self._left -= len(part)
        self._archive.left -= len(part)
        if self._left < 0:
            raise _too_long(self._name, self._longest)
        if self._archive.left < 0:
            raise DataError("The archive unpacks to far more than its own size.", _AGAIN)
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        self._inner.close()
        super().close()


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root
        self.names: list[str] = []
        self.rejected: list[Rejected] = []
        waiting = [root]
        while waiting:
            for path in sorted(waiting.pop().iterdir()):
                name = path.relative_to(root).as_posix()
                if path.name.startswith("."):
                    continue
                if not name.isascii() and name.encode(errors="ignore").decode() != name:
                    self.rejected.append(Rejected(shown(name), "Its name is not valid text."))
                elif path.is_symlink():
                    self.rejected.append(Rejected(shown(name), "It is a link."))
                elif path.is_dir():
                    waiting.append(path)
                elif path.is_file():
                    self.names.append(name)
                else:
                    self.rejected.append(Rejected(shown(name), "It is not a plain file."))
                if len(self.names) + len(self.rejected) > MOST_MEMBERS:
                    raise DataError(f"{root} has more than {MOST_MEMBERS} files.", "Import it in parts.")
        self.names.sort()

    def open(self, name: str, *, longest: int) -> BinaryIO:
        path = self._root / name
        try:
            return open_plain(path, longest=longest)
        except OSError as error:
            raise DataError(f"{shown(name)} cannot be read.", "Check the file.") from error

    def changed(self, name: str) -> datetime | None:
        try:
            return datetime.fromtimestamp((self._root / name).stat().st_mtime, tz=UTC)
        except (OSError, ValueError, OverflowError):
            return None


def _is_ignored(info: zipfile.ZipInfo) -> bool:
    """Whether an operating system has added the file on its own."""
    return any(part in _PASSED_OVER for part in PurePosixPath(info.filename).parts)


def _why_rejected(info: zipfile.ZipInfo) -> str | None:
    name = info.orig_filename
    path = PurePosixPath(name)
    if not name:
        return "It has no name."
    if "\\" in name or "\0" in name or path.is_absolute() or ".." in path.parts or name[1:2] == ":":
        return "Its path leads out of the archive."
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        return "It is a link, or no plain file."
    if info.flag_bits & _ENCRYPTED:
        return "It is encrypted."
    if info.compress_type not in _METHODS:
        return "It is compressed by a method that cannot be read."
    return None


def _check_directory(source: Path, stream: BinaryIO) -> None:
    """Reject an archive whose list of members is too long to be read.

    Finds the list like `zipfile`, which reads the whole list and makes an object of every entry, even if the
    archive states fewer entries.
    """
    length = stream.seek(0, io.SEEK_END)
    start = max(0, length - _END_SIZE - _LONGEST_COMMENT)
    stream.seek(start)
    tail = stream.read()
    at = len(tail) - _END_SIZE
    if not (tail[at:].startswith(_END) and tail.endswith(b"\0\0")):
        at = tail.rfind(_END)
    if at < 0 or at + _END_SIZE > len(tail):
        raise _damaged(source)
    end = start + at
    stated, size = struct.unpack_from("<HL", tail, at + 10)
    stream.seek(max(0, end - _SIZE_64))
    before = stream.read(_SIZE_64)
    if before[-20:].startswith(_LOCATOR_64):
        if not before.startswith(_END_64):
            raise _damaged(source)
        stated, size = struct.unpack_from("<QQ", before, 32)
        end -= _SIZE_64
    if size > LARGEST_DIRECTORY or stated > MOST_MEMBERS:
        raise _too_many(source)
    if size > end:
        raise _damaged(source)
    stream.seek(end - size)
    if stream.read(size).count(_ENTRY) > MOST_MEMBERS:
        raise _too_many(source)
    stream.seek(0)


def _too_many(source: Path) -> DataError:
    return DataError(f"{source} has more than {MOST_MEMBERS} files.", "Export it in parts.")


def _too_long(name: str, longest: int) -> DataError:
    return DataError(f"{shown(name)} has more than the {longest >> 20} MiB that it may have.", _AGAIN)


def _damaged(name: object) -> DataError:
    return DataError(f"{shown(name)} is damaged, or no zip archive.", _AGAIN)
