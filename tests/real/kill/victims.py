"""Processes to be killed: each is a fork of one server that has imported everything and done nothing.

`python -m tests.real.kill.victims` reads orders, a line of JSON each, and answers each with a line. An import
of torch and Prefect costs several seconds, a fork some milliseconds; the server has no thread, no engine and
no event loop, so that a fork is a process like any other.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, cast

import psutil

from tests.real.kill.moments import Place

LIMIT = 180.0
"""Seconds after which a victim that nobody killed is killed, and the test fails."""


ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "MPLBACKEND": "Agg",
    "HF_HUB_OFFLINE": "1",
}
"""No library may start a thread before the fork, or wait for the network; one thread adds up in one order."""


@dataclass(frozen=True)
class Ended:
    """What became of a victim. `code` is negative for the signal that killed it; `marker` is the place."""

    code: int
    seconds: float
    marker: str | None

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


class Victims:
    """The client's side of the server.

    Args:
        environment: of the server and of each victim.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.real.kill.victims"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment | ONE_THREAD,
            text=True,
        )
        self._ask, self._answers = cast(IO[str], self._server.stdin), cast(IO[str], self._server.stdout)
        if self._answers.readline().strip() != "ready":
            raise RuntimeError("The server of victims did not start.")

    def run(
        self,
        work: str,
        root: Path,
        *,
        kill_after: float | None = None,
        place: Place | None = None,
        url: str | None = None,
    ) -> Ended:
        """Do the work in a fork, kill it after some seconds or at a place, and wait for its end."""
        marker = root / "marker.json"
        marker.unlink(missing_ok=True)
        order = {
            "work": work,
            "root": str(root),
            "kill_after": kill_after,
            "place": None if place is None else asdict(place),
            "url": url,
        }
        self._ask.write(json.dumps(order) + "\n")
        self._ask.flush()
        answer = json.loads(self._answers.readline())
        return Ended(**answer, marker=marker.read_text() if marker.is_file() else None)

    def close(self) -> None:
        """End the server, and the victim that is at work where a test was interrupted."""
        server = psutil.Process(self._server.pid)
        for process in (*server.children(recursive=True), server):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._server.wait()
        for stream in (self._ask, self._answers):
            stream.close()


def serve() -> None:
    """Annotation orders until there are no more."""
    from tests.real.kill import works  # everything is imported here, once

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    tasks = len(os.listdir("/proc/self/task"))
    if tasks != 1 or threading.active_count() != 1:
        raise RuntimeError(f"A server with {tasks} threads cannot be forked.")
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            answers.close()
            _be_a_victim(works.WORKS[order["work"]], order)
        with suppress(OSError):  # the child does it too: whoever comes first
            os.setpgid(pid, pid)
        code = _wait(pid, began + (order["kill_after"] or LIMIT))
        print(json.dumps({"code": code, "seconds": time.monotonic() - began}), file=answers, flush=True)


def _wait(pid: int, until: float) -> int:
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            break
        if time.monotonic() >= until:
            os.killpg(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            break
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(status)


def _be_a_victim(work: Any, order: dict[str, Any]) -> None:
    code = 1
    try:
        os.setpgid(0, 0)
        root = Path(order["root"])
        log = os.open(root / "victim.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(root)
        if order["url"]:
            os.environ["SEGCURATE_DATABASE__URL"] = order["url"]
        if order["place"]:
            from tests.real.kill.moments import arm

            arm(Place(**order["place"]), root / "marker.json")
        work(root / "segcurate.yaml")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
