"""What a killed writer leaves behind is removed, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.files import PARTIAL, atomic_write_bytes, sweep
from pipeline.model.checkpoints import RESUME_FILE, save_resume

KILLED_HALF_WAY = """
import os, signal, sys
from pathlib import Path
from pipeline import files

os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
files.atomic_write_bytes(Path(sys.argv[1]), b"all of it")
"""


def kill_while_writing(path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED_HALF_WAY, str(path)], check=False)
    assert ended.returncode == -signal.SIGKILL


def test_what_a_killed_writer_left_is_removed_and_finished_files_stay(tmp_path: Path) -> None:
    atomic_write_bytes(tmp_path / "kept.png", b"old")
    kill_while_writing(tmp_path / "kept.png")
    assert len(list(tmp_path.glob(f".*{PARTIAL}"))) == 1

    sweep(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["kept.png"]
    assert (tmp_path / "kept.png").read_bytes() == b"old"


def test_what_a_living_writer_is_at_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def sweep_first(source: str, target: Path) -> None:
        sweep(tmp_path)
        replace(source, target)

    monkeypatch.setattr(os, "replace", sweep_first)
    atomic_write_bytes(tmp_path / "new.png", b"whole")
    assert (tmp_path / "new.png").read_bytes() == b"whole"


def test_what_a_writer_elsewhere_is_at_stays_for_an_hour(tmp_path: Path) -> None:
    fresh, old = (tmp_path / f".another-machine:1:1.{name}{PARTIAL}" for name in ("fresh", "old"))
    for path in (fresh, old):
        path.touch()
    os.utime(old, (0, time.time() - 3700))
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [fresh]


def test_a_folder_that_is_not_there_needs_no_sweeping(tmp_path: Path) -> None:
    sweep(tmp_path / "missing")
    assert not (tmp_path / "missing").exists()


def test_a_checkpoint_takes_the_unfinished_one_of_a_killed_run_away(tmp_path: Path) -> None:
    kill_while_writing(tmp_path / RESUME_FILE)
    save_resume(tmp_path, {}, {"iteration": 4})
    assert [path.name for path in tmp_path.iterdir()] == [RESUME_FILE]
