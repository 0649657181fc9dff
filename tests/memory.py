"""What work needs of memory, measured where nothing else allocates."""

from __future__ import annotations

import ctypes
import gc
import os
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import ParamSpec, TypeVar
from unittest.mock import patch

Result = TypeVar("Result")
Parameters = ParamSpec("Parameters")

GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
"""With these, glibc gives each large array back at once, and the peak is that of the arrays that live."""


def status(key: str) -> int:
    """Bytes of a line of this process's status: `VmRSS` now, `VmHWM` at its peak, without its parent's."""
    match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(match[1]) * 1024 if match else 0


def peak_above(work: Callable[[], object]) -> int:
    """Bytes of the highest memory of this process while it works, above those that it has before."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    work()
    return status("VmHWM") - before


def in_own_process(
    work: Callable[Parameters, Result], *args: Parameters.args, **kwargs: Parameters.kwargs
) -> Result:
    """What a function of a module returns in a fresh process: other tests' memory cannot blur its figures."""
    with (
        patch.dict(os.environ, GIVEN_BACK),
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
    ):
        return pool.submit(work, *args, **kwargs).result()
