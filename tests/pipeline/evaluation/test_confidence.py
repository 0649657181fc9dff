"""A softmax is called a probability only where nothing that was measured speaks against it."""

from __future__ import annotations

import math

import pytest

from pipeline.evaluation.confidence import confidence_of, contradiction, refusal
from pipeline.evaluation.estimate import Estimate

FINE = {
    ("nll_change", -1): Estimate(-0.1, -0.2, -0.05),
    ("ece_change", -1): Estimate(-0.02, -0.03, 0.01),
    ("ece", -1): Estimate(0.02, 0.01, 0.03),
    ("ece_noise", -1): Estimate(0.01, 0.005, 0.02),
}


@pytest.mark.parametrize(
    ("name", "found", "reason"),
    [
        ("nll_change", Estimate(0.02, 0.01, 0.03), "calibration changes the NLL by +0.020 [+0.010, +0.030]"),
        ("nll_change", Estimate(0.02, -0.01, 0.05), None),
        ("nll_change", Estimate(0.02), None),  # a single unit shows nothing
        ("ece_change", Estimate(0.032, 0.02, 0.05), "calibration changes the ECE by +0.032"),
        ("ece", Estimate(0.12, 0.08, 0.15), "its ECE is 0.120 [0.080, 0.150], above 0.05"),
        ("ece", Estimate(0.08, 0.04, 0.15), None),
        ("ece_noise", Estimate(0.1, 0.05, 0.2), None),
    ],
)
def test_the_test_split_contradicts_beyond_an_interval_only(
    name: str, found: Estimate, reason: str | None
) -> None:
    said = contradiction("test", {**FINE, (name, -1): found})
    assert said is None if reason is None else said is not None and reason in said


def test_an_error_that_so_few_units_show_by_chance_is_no_contradiction() -> None:
    high = {("ece", -1): Estimate(0.12, 0.08, 0.15), ("ece_noise", -1): Estimate(0.1, 0.05, 0.2)}
    assert contradiction("test", {**FINE, **high}) is None


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, None),
        ({"cross_fitted": False}, "too few independent images"),
        ({"units": 1}, "too few independent images"),
        ({"nll_change": Estimate(0.1, 0.05, 0.2)}, "raises the NLL by 0.100"),
        ({"ece": Estimate(0.03, 0.01, 0.06)}, "0.030 [0.010, 0.060]"),
        ({"ece": Estimate(0.03, math.nan, math.nan)}, "0.030 (no interval)"),
    ],
)
def test_a_calibrator_is_refused_with_the_number_that_refuses_it(
    changes: dict[str, object], word: str | None
) -> None:
    passing = {"cross_fitted": True, "units": 12, "nll_change": Estimate(-0.1, -0.2, 0.0)}
    said = refusal(**{**passing, "ece": Estimate(0.02, 0.01, 0.03), **changes})  # pyright: ignore[reportArgumentType]
    assert said is None if word is None else said is not None and word in said


def test_a_contradiction_comes_before_the_reason_of_the_fit() -> None:
    assert confidence_of(True, {"reason": None, "contradiction": None}).sentence == "probability"
    report = {"reason": "ECE 0.06.", "contradiction": "On the test split, it is worse."}
    found = confidence_of(False, report)
    assert found.sentence == "softmax score, not a probability. On the test split, it is worse."
    assert confidence_of(False, {**report, "contradiction": None}).reason == "ECE 0.06."
    assert confidence_of(False, None).reason == "Its calibrator was not fitted."
