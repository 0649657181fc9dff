"""A process is stopped by its name, and only that process."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

from pipeline.processes import is_running, name_process, stop_process

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
)


def test_a_process_that_ignores_sigterm_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        name = name_process(child.pid)
        stop_process(name, within=0.5)
        assert child.wait(10) == -signal.SIGKILL
    stop_process(name, within=0.5)  # it has ended: nothing is done


def test_another_process_with_the_same_id_is_left_alone() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as child:
        name, _, started = name_process(child.pid).rpartition(":")
        other = f"{name}:{int(float(started)) - 1}"
        assert is_running(other) is False
        began = time.monotonic()
        stop_process(other, within=30)
        assert time.monotonic() - began < 5
        assert child.poll() is None
        child.kill()
