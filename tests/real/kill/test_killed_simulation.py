"""A simulation with two processes that is killed and run on."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.pipeline.operation.test_simulate import simulate, table

MOMENTS = ("seed-000/initial/store.db", "models/r01/model.safetensors", "stratified/models/r02")
"""Files that show how far the simulation has come."""


def test_two_processes_killed_at_several_moments_and_run_on_give_the_same_table(
    trained_once: Path, tmp_path: Path
) -> None:
    whole, killed = (Path(shutil.copytree(trained_once, tmp_path / name)) for name in ("whole", "killed"))
    options = "--strategies stratified,random --seeds 1 --budgets 6,12 --workers 2 --reference"
    command = [sys.executable, "-m", "flows.cli", "--config", str(killed / "segcurate.yaml"), "simulate"]
    for moment in MOMENTS:
        with subprocess.Popen(
            [*command, *options.split()], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        ) as run:
            _wait_for(killed / ".segcurate" / "simulations", moment, run)
            run.send_signal(signal.SIGKILL)
    simulate(killed)
    simulate(whole)
    assert table(killed) == table(whole)


def _wait_for(folder: Path, ending: str, run: subprocess.Popen[bytes]) -> None:
    """Until a path with this ending is there, or the run has ended."""
    for _ in range(6000):
        if run.poll() is not None or any(str(path).endswith(ending) for path in folder.rglob("*")):
            return
        time.sleep(0.02)
