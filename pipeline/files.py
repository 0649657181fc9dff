"""Reading files within limits, and writing them so that a kill or a full disk leaves nothing half-written.

Every file that a user or a folder names is opened by `open_plain` or checked by `require_plain`: a device or
a pipe may send data without end, and a large file is refused before it is read.

A file appears whole or not at all: it is written under another name in the same folder, then renamed. What
the operating system reports becomes a `UserError` that names the folder.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import BufferedReader
from pathlib import Path

from pipeline.errors import DataError, UserError
from pipeline.processes import is_running, this_process

CONFIG_FILE = "segcurate.yaml"
"""The name of a project's configuration."""

PARTIAL = ".partial"
"""The ending of files and folders that are not finished yet."""
REPLACED = ".replaced"
"""The ending of the place where a finished folder waits until the new one has its name."""

LEAST_SPACE = 64 * 2**20
"""Bytes that must be free before long work begins."""
ABANDONED_SECONDS = 3600.0
"""Age at which the unfinished file of another machine's process counts as abandoned."""

LARGEST_FILE = 16 << 30
"""Bytes of any file that is read."""
LARGEST_TEXT = 1 << 20
"""Bytes of a text that is read whole: a configuration, a label map, a model's card."""
LARGEST_WEIGHTS = 8 << 30
"""Bytes of a model."""
LARGEST_LIST = 1 << 30
"""Bytes of a list or a CSV, which is read line by line."""
LONGEST_LINE = 1 << 16
"""Bytes of a line of it."""

_ERRORS = {
    errno.ENOSPC: ("the disk is full", "Free some space, then run the command again."),
    errno.EDQUOT: ("the disk quota is used up", "Free some space, then run the command again."),
    errno.EROFS: ("it is on a read-only file system", "Choose a folder that can be written."),
    errno.EACCES: ("permission is denied", "Give yourself write permission, or choose another folder."),
    errno.EPERM: ("permission is denied", "Give yourself write permission, or choose another folder."),
    errno.ENOTDIR: ("a file stands where a folder is needed", "Move that file, or choose another folder."),
    errno.EEXIST: ("a file stands where a folder is needed", "Move that file, or choose another folder."),
    errno.ENAMETOOLONG: ("the name is too long", "Choose a shorter path."),
}


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Turn an error of the operating system while `path` is written into a `UserError`.

    Raises:
        UserError: the disk is full, or the folder is read-only, not permitted, or not a folder.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _ERRORS:
            raise
        why, remedy = _ERRORS[error.errno]
        raise UserError(f"Cannot write {path.name!r} in {path.parent}: {why}.", remedy) from error


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; its folder is made where it is missing.

    Raises:
        UserError: as `writing`.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{this_process()}.", suffix=PARTIAL)
        try:
            with os.fdopen(handle, "wb") as stream:
                os.fchmod(stream.fileno(), 0o666 & ~_UMASK)
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise


def append_text(path: Path, text: str) -> None:
    """Append to a file, in UTF-8 and with the line ends of the text; the file is made where it is missing.

    Raises:
        UserError: as `writing`.
    """
    with writing(path), path.open("a", encoding="utf-8", newline="") as stream:
        stream.write(text)


@contextmanager
def atomic_folder(path: Path) -> Generator[Path]:
    """A new folder to fill, which replaces `path` when the block ends.

    Where the block raises, `path` is as it was. What a killed attempt left is removed first; where the kill
    came between the two renames of the replacement, the old folder is put back.

    Raises:
        UserError: as `writing`.
    """
    aside = path.with_name(f".{path.name}{REPLACED}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if (aside / path.name).exists() and not path.exists():
            os.replace(aside / path.name, path)
        shutil.rmtree(aside, ignore_errors=True)
        for stale in path.parent.glob(f".{glob.escape(path.name)}.*{PARTIAL}"):
            shutil.rmtree(stale, ignore_errors=True)
        fresh = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL))
    try:
        with writing(path):
            os.chmod(fresh, 0o777 & ~_UMASK)
            yield fresh
            if path.exists():
                aside.mkdir()
                os.replace(path, aside / path.name)
            os.replace(fresh, path)
            shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove the unfinished files of `atomic_write_bytes` in a folder whose writers were killed.

    Files of a running process stay; files of another machine stay for an hour.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not (entry.name.startswith(".") and entry.name.endswith(PARTIAL)):
                continue
            with suppress(OSError):  # its writer has just finished it
                writer = entry.name[1:].removesuffix(PARTIAL).rpartition(".")[0]
                alive = is_running(writer)
                if alive is None:
                    alive = time.time() - entry.stat().st_mtime < ABANDONED_SECONDS
                if not alive:
                    os.unlink(entry.path)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, 64 hex digits.

    Raises:
        OSError, DataError: as `open_plain`.
    """
    with open_plain(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def writable_folder(path: Path) -> Path:
    """The folder, made where it is missing, after a trial that something can be written there.

    Raises:
        UserError: as `writing`.
    """
    with writing(path / "a file"):
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as trial:
            trial.write(b"segcurate")
            trial.flush()
    return path


def open_plain(path: Path, *, longest: int = LARGEST_FILE) -> BufferedReader:
    """A plain file, opened for reading. A pipe without a writer does not block.

    Args:
        longest: bytes that the file may have.

    Raises:
        OSError: there is no such file, it is a folder, or it may not be read.
        DataError: it is a device, a pipe, a socket or a file of /proc or /sys; or it is too large.
    """
    _check_plain(path, path.stat(), longest)  # opening a device may already do something
    stream = open(path, "rb", opener=_at_once)  # noqa: SIM115 - the caller closes it
    try:
        _check_plain(path, os.fstat(stream.fileno()), longest)
    except BaseException:
        stream.close()
        raise
    return stream


def read_plain(path: Path, *, longest: int = LARGEST_TEXT) -> bytes:
    """The content of a plain file.

    Args:
        longest: bytes that the file may have.

    Raises:
        OSError, DataError: as `open_plain`.
    """
    with open_plain(path, longest=longest) as stream:
        content = stream.read(longest + 1)
    if len(content) > longest:  # it has grown since
        raise _too_large(path, longest)
    return content


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a list or CSV in UTF-8, with their ends; a byte order mark is left out.

    Raises:
        OSError: as `open_plain`.
        DataError: as `open_plain`; or the file has more than `LARGEST_LIST` bytes, a line more than
            `LONGEST_LINE`, or a line is not UTF-8.
    """
    with open_plain(path, longest=LARGEST_LIST) as stream:
        number = 0
        while line := stream.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                raise DataError(
                    f"{path} has more than {LONGEST_LINE} bytes in line {number}.",
                    "Name a list of short lines.",
                )
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise DataError(f"{path} is not UTF-8 in line {number}.", "Save it as UTF-8.") from None


def require_plain(path: Path, *, longest: int = LARGEST_FILE) -> None:
    """Refuse what `open_plain` refuses, where a library opens the path. A folder, or a path where there is
    nothing, is fine.

    Raises:
        DataError: as `open_plain`.
    """
    with suppress(OSError):
        _check_plain(path, path.stat(), longest)


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _check_plain(path: Path, status: os.stat_result, longest: int) -> None:
    folder = stat.S_ISDIR(status.st_mode)
    if not (folder or stat.S_ISREG(status.st_mode)) or status.st_dev in _of_the_kernel():
        raise DataError(
            f"{path} is no plain file, but a device, a pipe, a socket, or a part of /proc or /sys.",
            "Name a plain file or a folder.",
        )
    if status.st_size > longest and not folder:
        raise _too_large(path, longest)


def _too_large(path: Path, longest: int) -> DataError:
    limit = f"{longest >> 20} MiB" if longest < 1 << 30 else f"{longest >> 30} GiB"
    return DataError(f"{path} has more than the {limit} that it may have.", "Name another file, or split it.")


@cache
def _of_the_kernel() -> frozenset[int]:
    """The device numbers of /proc and /sys: their files state no size, and have any."""
    devices = set[int]()
    for folder in ("/proc", "/sys"):
        if os.path.ismount(folder):
            devices.add(os.stat(folder).st_dev)
    return frozenset(devices)


def require_space(folder: Path, needed: int = 0) -> None:
    """Check the free space of the disk that a folder is on.

    Args:
        needed: bytes, besides `LEAST_SPACE`.

    Raises:
        UserError: less is free.
    """
    free, needed = shutil.disk_usage(folder).free, needed + LEAST_SPACE
    if free < needed:
        raise UserError(
            f"The disk of {folder} has {free / 2**20:.0f} MiB free; {needed / 2**20:.0f} MiB are needed.",
            "Free some space, then run it again.",
        )


def _current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _current_umask()
