"""What this machine offers: processor, memory, disk, GPUs and the libraries that are extras."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import psutil

from pipeline.format import count, counted

GIB = 2**30
LITTLE_MEMORY = 4 * GIB
"""Of available memory: with less, a network and its samples may not fit."""
LITTLE_DISK = 5 * GIB
INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 bfloat16",
    "amx_bf16": "AMX bfloat16",
    "asimd": "NEON",
}
"""Flags of /proc/cpuinfo that make convolutions fast."""
EXTRAS = {
    "postgres": ("psycopg", "a PostgreSQL database"),
    "s3": ("s3fs", "images in S3"),
    "gs": ("gcsfs", "images in Google Cloud Storage"),
    "ray": ("prefect_ray", "scoring on a Ray cluster"),
    "cvat": ("cvat_sdk", "push and pull with CVAT"),
    "formats": ("datumaro", "checks with Datumaro"),
    "pandas": ("pandas", "tables from Python"),
    "demo": ("nilearn", "`segcurate demo`"),
}
"""The extras of the package: the module that each one brings, and what it is for."""
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Fact:
    """One thing that was looked at.

    Attributes:
        remedy: what to do where something is missing or wrong; empty where all is well.
    """

    name: str
    found: str
    remedy: str = ""


def machine_facts(folder: Path, *, cgroup: Path = CGROUP) -> list[Fact]:
    """Processor, memory, disk, GPUs, and the extras.

    Args:
        folder: whose disk counts: the workdir.
    """
    return [_versions(), _processor(cgroup), _memory(cgroup), _disk(folder), *_devices(), _extras()]


def usable_cores(cgroup: Path = CGROUP) -> int:
    """The cores that this process may use: by its affinity, and by the limit of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit() and int(period):
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def _versions() -> Fact:
    return Fact(
        "software",
        f"segcurate {metadata.version('segcurate')}, Python {platform.python_version()}, "
        f"torch {metadata.version('torch')}, {platform.system()} {platform.machine()}",
    )


def _processor(cgroup: Path) -> Fact:
    info = _read(Path("/proc/cpuinfo"))
    name = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", info, re.MULTILINE)
    known = set(flags[1].split()) if flags else set[str]()
    fast = [shown for flag, shown in INSTRUCTIONS.items() if flag in known]
    parts = [
        name[1].strip() if name else platform.processor() or platform.machine(),
        counted(usable_cores(cgroup), "core"),
        *([", ".join(fast)] if fast else []),
    ]
    return Fact("processor", "; ".join(parts))


def _memory(cgroup: Path) -> Fact:
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    limit = _read(cgroup / "memory.max")
    if limit.isdigit() and int(limit) < total:
        used = _read(cgroup / "memory.current")
        total = int(limit)
        available = min(available, total - (int(used) if used.isdigit() else 0))
    remedy = ""
    if available < LITTLE_MEMORY:
        remedy = "End other programs, or set a lower `scoring.batch_size` and `training.batch_size`."
    return Fact("memory", f"{gibibytes(available)} of {gibibytes(total)} available", remedy)


def _disk(folder: Path) -> Fact:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    usage = shutil.disk_usage(there)
    remedy = f"Free some space on the disk of {folder}." if usage.free < LITTLE_DISK else ""
    return Fact("disk", f"{gibibytes(usage.free)} of {gibibytes(usage.total)} free at {folder}", remedy)


def _devices() -> list[Fact]:
    """Each GPU that torch sees; one fact where it sees none."""
    import torch

    if torch.cuda.is_available():
        facts: list[Fact] = []
        for index in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(index)
            facts.append(Fact(f"cuda:{index}", f"{found.name}, {gibibytes(found.total_memory)}"))
        return facts
    remedy = ""
    if Path("/dev/nvidia0").exists():
        remedy = (
            "There is an NVIDIA GPU, and torch does not see it: install a torch that is built for CUDA "
            "(https://pytorch.org/get-started), and check `nvidia-smi`."
        )
    elif sys.platform == "darwin":
        remedy = "GPUs of Apple are not used; all runs on the processor."
    threads = counted(torch.get_num_threads(), "thread")
    return [Fact("GPU", f"none: all runs on the processor, with {threads}", remedy)]


def _extras() -> Fact:
    there = [name for name, (module, _) in EXTRAS.items() if find_spec(module) is not None]
    missing = [f"{name} ({purpose})" for name, (_, purpose) in EXTRAS.items() if name not in there]
    found = f"{', '.join(there)} installed" if there else "none installed"
    if missing:
        found += f"; not: {', '.join(missing)}: `pip install 'segcurate[NAME]'`"
    return Fact("extras", found)


def gibibytes(size: float) -> str:
    """A size in GiB.

    >>> gibibytes(2**30 * 1.25), gibibytes(2**30 * 2000)
    ('1.2 GiB', '2 000 GiB')
    """
    return f"{size / GIB:.1f} GiB" if size < 100 * GIB else f"{count(round(size / GIB))} GiB"


def _read(path: Path) -> str:
    """A small file of the system; empty where there is none."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
