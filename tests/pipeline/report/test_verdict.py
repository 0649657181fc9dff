"""The first sentences of the report: how good the model is, and what speaks against it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from pipeline.evaluation.estimate import Estimate
from pipeline.report.sections.progress import status
from pipeline.report.sections.verdict import verdict
from tests.pipeline.report.documents import empty_contents, full_contents
from tests.pipeline.report.stored import stress_document


def test_the_verdict_names_the_quality_and_then_each_doubt() -> None:
    contents = full_contents()
    quality, *doubts = verdict(contents)
    last, before = contents.rounds[-1], contents.rounds[-2]
    assert quality.words.startswith(f"{last.model} has a mean IoU of {last.mean_iou.text()}")
    change = last.mean_iou.value - before.mean_iou.value
    assert f"That is {change:+.3f} against {before.model}" in quality.words
    failed = [row for row in stress_document()["verdicts"] if row["ok"] is False]
    assert failed
    assert [text.words for text in doubts if "failed the stress test" in text.words]
    assert {text.tone for text in doubts} == {"warn"}


def test_without_a_failed_test_no_doubt_names_one_and_without_a_model_there_is_no_verdict() -> None:
    contents = replace(full_contents(), stress=None)
    assert not [text for text in verdict(contents) if "stress" in text.words]
    assert verdict(empty_contents()) == []


@pytest.mark.parametrize("values", [(1.0, 1.0), (0.996, 1.0), (0.98, math.nan), (math.nan, math.nan)])
def test_where_no_class_is_worse_than_another_none_is_called_the_worst(values: tuple[float, float]) -> None:
    contents = full_contents()
    last = contents.rounds[-1]
    flat = [*(Estimate(value) for value in values), *[Estimate(math.nan)] * len(last.classes)]
    made = [replace(one, iou=iou) for one, iou in zip(last.classes, flat, strict=False)]
    for classes, expected in ((last.classes, True), (tuple(made), False)):
        shown = replace(contents, rounds=[*contents.rounds[:-1], replace(last, classes=classes)])
        assert ("its worst class is" in verdict(shown)[0].words) is expected
        assert ("worst class: " in str(status(shown))) is expected
