"""A simulation with two processes that is killed and run on."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tests.pipeline.operation.test_simulate import table
from tests.real.kill.conftest import SEED

OPTIONS = (
    "--strategies stratified,random:noise_beta=2 --seeds 1 --budgets 6,12 --workers 2 --reference "
    "--cold-start random,strided"
)
KILLS = 10
MOMENTS = ("seed-000/initial/store.db", "models/r01/model.safetensors", "stratified/models/r02")
"""Files that show how far the simulation has come."""


def test_two_processes_killed_at_several_moments_and_run_on_give_the_same_table(
    trained_once: Path, tmp_path: Path
) -> None:
    """At ten random moments after the start, each some tenth of the whole further on, and at three places."""
    whole, killed = (Path(shutil.copytree(trained_once, tmp_path / name)) for name in ("whole", "killed"))
    with _begun(whole) as run:
        started = time.monotonic()
        assert run.wait() == 0
        lasted = time.monotonic() - started
    generator = np.random.default_rng(SEED)
    hit = 0
    for delay in generator.uniform(0, 0.15 * lasted, size=KILLS):
        with _begun(killed) as run:
            time.sleep(delay)
            hit += run.poll() is None
            run.send_signal(signal.SIGKILL)
    assert hit == KILLS
    for moment in MOMENTS:
        with _begun(killed) as run:
            _wait_for(killed / ".segcurate" / "simulations", moment, run)
            run.send_signal(signal.SIGKILL)
    with _begun(killed) as run:
        assert run.wait() == 0
    assert table(killed) == table(whole)
    assert len(table(killed)) == 5


def _begun(folder: Path) -> subprocess.Popen[str]:
    """A process that has said what it is going to compute."""
    command = [sys.executable, "-m", "flows.cli", "--config", str(folder / "segcurate.yaml"), "simulate"]
    run = subprocess.Popen(
        [*command, *OPTIONS.split()], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert run.stderr is not None
    for line in run.stderr:
        if "Processes:" in line or "cells are finished" in line:
            return run
    raise AssertionError("The simulation ended before it began.")


def _wait_for(folder: Path, ending: str, run: subprocess.Popen[str]) -> None:
    """Until a path with this ending is there, or the run has ended."""
    for _ in range(6000):
        if run.poll() is not None or any(str(path).endswith(ending) for path in folder.rglob("*")):
            return
        time.sleep(0.02)
