from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.files import atomic_folder, atomic_write_bytes, writable_folder


def raising(number: int):
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def test_a_file_and_its_folders_appear_with_the_usual_permissions(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.bin"
    atomic_write_bytes(path, b"one")
    atomic_write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["c.bin"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o400


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_full_disk_names_the_folder_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, call, raising(errno.ENOSPC))
    with pytest.raises(UserError) as caught:
        atomic_write_bytes(path, b"new")
    assert str(tmp_path) in caught.value.problem
    assert "disk is full" in caught.value.problem
    assert "Free some space" in caught.value.remedy
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.bin"]


def test_a_read_only_file_system_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", raising(errno.EROFS))
    with pytest.raises(UserError, match="read-only") as caught:
        atomic_write_bytes(tmp_path / "x", b"")
    assert str(tmp_path) in caught.value.problem


def test_a_folder_without_write_permission_is_refused() -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o555)
        with unprivileged():
            with pytest.raises(UserError, match="permission"):
                writable_folder(Path(name) / "out")
            with pytest.raises(UserError, match="permission"):
                atomic_write_bytes(Path(name) / "x", b"")


@contextmanager
def unprivileged() -> Generator[None]:
    """Root may write everywhere, so root becomes nobody for a while."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_file_where_a_folder_is_needed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="a file stands where a folder is needed"):
        writable_folder(tmp_path / "out")
    with pytest.raises(UserError, match="a file stands where a folder is needed"):
        atomic_write_bytes(tmp_path / "out" / "x", b"")


def test_other_errors_of_the_system_are_not_dressed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "replace", raising(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        atomic_write_bytes(tmp_path / "x", b"")


def test_a_folder_takes_the_place_of_the_old_one_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "queue"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    with pytest.raises(KeyError), atomic_folder(target) as folder:
        (folder / "b").write_text("2")
        raise KeyError
    assert [path.name for path in target.iterdir()] == ["a"]
    with atomic_folder(target) as folder:
        (folder / "c").write_text("3")
    assert [path.name for path in target.iterdir()] == ["c"]
    assert [path.name for path in tmp_path.iterdir()] == ["queue"]


def test_what_a_killed_attempt_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".que[ue].abc.partial"
    left.mkdir()
    (left / "half").write_text("")
    other = tmp_path / ".other.abc.partial"
    other.mkdir()
    with atomic_folder(tmp_path / "que[ue]") as folder:
        (folder / "a").write_text("1")
    assert not left.exists()
    assert other.exists()


KILLED_BETWEEN_THE_RENAMES = """
import os, signal, sys
from pathlib import Path
from pipeline.files import atomic_folder

replace = os.replace

def replace_and_die(source, target):
    replace(source, target)
    os.kill(os.getpid(), signal.SIGKILL)

with atomic_folder(Path(sys.argv[1])) as folder:
    (folder / "new").write_text("2")
    os.replace = replace_and_die
"""


def test_a_kill_between_the_two_renames_loses_neither_folder(tmp_path: Path) -> None:
    target = tmp_path / "queue"
    with atomic_folder(target) as folder:
        (folder / "old").write_text("1")
    ended = subprocess.run([sys.executable, "-c", KILLED_BETWEEN_THE_RENAMES, str(target)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert not target.exists()
    with pytest.raises(KeyError), atomic_folder(target):
        raise KeyError
    assert [path.name for path in target.iterdir()] == ["old"]
    with atomic_folder(target) as folder:
        (folder / "new").write_text("2")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["queue"]
