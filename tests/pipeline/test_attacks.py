"""No file costs more than its limit: memory and time of each attack, measured in a process of its own."""

from __future__ import annotations

import multiprocessing
import re
from pathlib import Path

import pytest

from tests.pipeline.attacks import ATTACKS, SECONDS, Measured, measure

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.pipeline.attacks"])


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_ends_with_a_message_in_little_memory_and_time(tmp_path: Path, name: str) -> None:
    attack = ATTACKS[name]
    path = attack.build(tmp_path)
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=measure, args=(name, path, there))
    process.start()
    there.close()
    try:
        measured: Measured = here.recv()
    except EOFError:
        pytest.fail(f"The process died, or took more than {SECONDS} seconds.")
    finally:
        process.join()
    print(f"| {name} | {measured.outcome[:100]} | {measured.mib:.0f} | {measured.seconds:.1f} |")
    assert re.search(attack.outcome, measured.outcome), measured
    assert measured.mib < attack.mib, measured
    assert measured.seconds < SECONDS / 2, measured
