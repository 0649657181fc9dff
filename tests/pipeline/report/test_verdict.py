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


@pytest.mark.parametrize(
    ("values", "worst"),
    [
        ((0.4, 0.8), True),
        ((1.0, 1.0), False),
        ((0.996, 1.0), False),
        ((0.98, math.nan), False),
        ((math.nan, math.nan), False),
    ],
)
def test_a_class_is_called_the_worst_only_where_one_is_worse_than_another(
    values: tuple[float, float], worst: bool
) -> None:
    contents = full_contents()
    last = contents.rounds[-1]
    classes = tuple(
        replace(one, iou=Estimate(value)) for one, value in zip(last.classes[:2], values, strict=True)
    )
    shown = replace(
        contents, rounds=[*contents.rounds[:-1], replace(last, classes=classes, model_status="promoted")]
    )
    assert ("its worst class is" in verdict(shown)[0].words) is worst
    assert ("worst class: " in str(status(shown))) is worst
