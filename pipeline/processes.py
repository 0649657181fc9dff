"""Names of processes, by which other processes find out whether they still run."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from functools import cache
from multiprocessing import connection, parent_process
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

POLL_SECONDS = 0.1

_FIRST_NAMESPACE = 0xEFFFFFFC
"""The machine's own namespace of process ids on Linux, outside any container."""


def this_process() -> str:
    """The name of this process: `host:pid:start`, which may be part of a file's name.

    In a container, `host` includes the container's namespace of process ids: two containers may share a host
    name, and the same id is another process in each.
    """
    return name_process(os.getpid())


@cache
def name_process(pid: int) -> str:
    """The name of a living process of this machine, as `this_process` gives it."""
    return f"{_host()}:{pid}:{_start(pid)}"


def is_running(process: str) -> bool | None:
    """Whether a process still runs; None where that is unknown, as for another machine's process.

    A zombie, a dead process that its parent has not waited for, does not run.
    """
    name, _, started = process.rpartition(":")
    host, _, pid = name.rpartition(":")
    if host != _host() or not pid.isdigit():
        return None
    try:
        return _start(int(pid)) == started
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return False
    except (psutil.AccessDenied, PermissionError):
        return None


def stop_process(process: str, *, within: float) -> None:
    """End a process of this machine by SIGTERM, or by SIGKILL where it goes on after that.

    Args:
        process: its name, which another process with the same id does not have.
        within: the seconds that it has after SIGTERM.
    """
    pid = int(process.rpartition(":")[0].rpartition(":")[2])
    for end in (psutil.Process.terminate, psutil.Process.kill):
        with suppress(psutil.NoSuchProcess):
            found = psutil.Process(pid)
            if not is_running(process):
                return
            end(found)
        deadline = time.monotonic() + within
        while is_running(process) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


def end_with_parent(*pipes: Connection) -> None:
    """End this process as soon as its parent ends, however it does, or closes one of these pipes.

    What the process was at is as after any other death: the store says where it goes on.
    """
    parent = parent_process()
    ends = [*pipes, *([] if parent is None else [parent.sentinel])]

    def watch() -> None:
        connection.wait(ends)
        os._exit(1)

    if ends:
        threading.Thread(target=watch, name="end with parent", daemon=True).start()


def _start(pid: int) -> str:
    """The start time of a process; empty for a zombie.

    On Linux in clock ticks since the machine's start: a time of day would change whenever the clock is set.
    """
    if not Path("/proc/self/stat").exists():
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    stat = Path(f"/proc/{pid}/stat").read_text()
    state, *numbers = stat[stat.rindex(")") + 1 :].split()
    return "" if state in ("Z", "X") else numbers[18]


@cache
def _host() -> str:
    with suppress(OSError):  # no such file but on Linux
        namespace = os.stat("/proc/self/ns/pid").st_ino
        if namespace != _FIRST_NAMESPACE:
            return f"{socket.gethostname()}+{namespace}"
    return socket.gethostname()
