"""What a machine offers, also in a container with limits, and what is missing on it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from pipeline import machine
from pipeline.machine import GIB, machine_facts, usable_cores


def container(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def test_the_limit_of_a_container_counts(tmp_path: Path) -> None:
    assert usable_cores(container(tmp_path, cpu_max="100000 100000\n")) == 1
    assert usable_cores(container(tmp_path, cpu_max="max 100000\n")) == usable_cores(tmp_path / "none")
    limits = container(tmp_path, memory_max=str(2 * GIB), memory_current=str(GIB))
    memory = next(fact for fact in machine_facts(tmp_path, cgroup=limits) if fact.name == "memory")
    assert memory.found == "1.0 GiB of 2.0 GiB available"
    assert "batch_size" in memory.remedy


def test_what_is_missing_has_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(total=100 * GIB, free=GIB)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(machine, "find_spec", lambda _: None)
    facts = {fact.name: fact for fact in machine_facts(tmp_path / "not" / "yet")}
    assert facts["disk"].found == f"1.0 GiB of 100 GiB free at {tmp_path / 'not' / 'yet'}"
    assert facts["disk"].remedy
    assert "none installed; not: postgres (a PostgreSQL database)" in facts["extras"].found
    assert "pip install 'segcurate[NAME]'" in facts["extras"].found


def test_a_gpu_is_named_with_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    found = SimpleNamespace(name="A100", total_memory=40 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: found)
    facts = {fact.name: fact.found for fact in machine_facts(tmp_path)}
    assert facts["cuda:0"] == "A100, 40.0 GiB"
    assert "GPU" not in facts


def test_this_machine_is_described(tmp_path: Path) -> None:
    facts = {fact.name: fact for fact in machine_facts(tmp_path)}
    assert torch.__version__.split("+")[0] in facts["software"].found
    assert f"{usable_cores()} core" in facts["processor"].found
    assert f"of {psutil.virtual_memory().total / GIB:.1f} GiB" in facts["memory"].found
