"""A few cases of the fuzzing run, and that it finds what it is there to find."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.labeling.coco import COCO
from pipeline.labeling.encoding import LabelMap
from pipeline.labeling.exchange import Annotation, DecodedMask, Rejected
from tests.fuzz import __main__ as fuzz
from tests.fuzz.contract import check_tool
from tests.fuzz.targets import LABELS, Seed, Target, size_of, targets


@pytest.mark.parametrize("target", targets(), ids=lambda target: target.name)
def test_a_reader_keeps_its_promises_whatever_it_reads(target: Target) -> None:
    tally = fuzz.Tally()
    for number in range(150):
        fuzz.run_case(target, number, seed=0, tally=tally, keep=None)
    assert tally.findings == {}
    assert tally.masks > 0
    assert tally.rejected > 0 or target.name in ("folder", "voc")  # a folder is hardly ever rejected whole


def annotation(**changes: Any) -> Annotation:
    mask = DecodedMask(np.zeros((10, 12), np.uint8))
    return replace(Annotation(subject="s", image=1000, read=lambda width, height: mask), **changes)


def _raise(error: Exception) -> Any:
    raise error


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        (lambda: _raise(KeyError("a")), "KeyError"),
        (lambda: _raise(MemoryError()), "MemoryError"),
        (lambda: _raise(DataError("a\x1b[31m")), "not printable"),
        (lambda: Rejected("a\nb", "r"), "not printable"),
        (lambda: Rejected("s", "a" * 10_000), "10000 characters"),
        (lambda: annotation(image="\ud800"), "an image is"),
        (lambda: annotation(image=2**63), "an image is"),
        (lambda: annotation(queue="a\0"), "an annotation says"),
        (lambda: annotation(seconds=float("nan")), "seconds"),
        (
            lambda: annotation(read=lambda width, height: DecodedMask(np.zeros((12, 10), np.uint8))),
            "(12, 10)",
        ),
        (lambda: annotation(read=lambda width, height: DecodedMask(np.zeros((10, 12), bool))), "bool"),  # pyright: ignore
        (
            lambda: annotation(read=lambda width, height: DecodedMask(np.full((10, 12), 3, np.uint8))),
            "a mask has",
        ),
        (lambda: annotation(read=lambda width, height: _raise(ZeroDivisionError())), "ZeroDivisionError"),
    ],
)
def test_a_reader_that_breaks_a_promise_is_found(
    tmp_path: Path, found: Callable[[], Annotation | Rejected], kind: str
) -> None:
    def read(source: Path, labels: LabelMap) -> Iterator[Annotation | Rejected]:
        yield annotation()
        yield found()

    broken = replace(COCO, read=read, recognises=Path.is_file)
    target = Target(
        "broken",
        [Seed({"a.json": b"{}"}, "file", "a.json")],
        lambda source: check_tool(broken, source, LABELS, size_of),
    )
    tally = fuzz.Tally()
    fuzz.run_case(target, 0, seed=0, tally=tally, keep=tmp_path)
    (told,) = tally.findings
    assert kind in told
    assert (tmp_path / "broken-0" / "finding.txt").exists()
    assert (tmp_path / "broken-0" / "a.json").read_bytes() == b"{}"


def test_a_reader_that_takes_too_long_or_too_much_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "SLOW_SECONDS", 0.05)
    seeds = [Seed({"a": b""}, "file", "a")]
    tally = fuzz.Tally()
    fuzz.run_case(Target("slow", seeds, lambda _: time.sleep(0.1) or 0), 0, seed=0, tally=tally, keep=None)
    assert list(tally.findings) == ["slow"]


def test_a_case_can_be_had_again(tmp_path: Path) -> None:
    seen: list[bytes] = []
    target = Target("a", targets()[0].seeds[:1], lambda source: seen.append(source.read_bytes()) or 0)
    for number in (7, 8, 7):
        fuzz.run_case(target, number, seed=3, tally=fuzz.Tally(), keep=None)
    assert seen[0] == seen[2] != seen[1]
