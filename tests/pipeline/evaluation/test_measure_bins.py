"""Bins of measures: rank metrics from histograms against scikit-learn, wherever the values lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from pipeline.evaluation.detection import coarse, error_metrics
from pipeline.evaluation.measure_bins import LOOKED_UP, MEASURE_BINS, BinSample, MeasureBins

Values = npt.NDArray[np.floating[Any]]

PIXELS = 90_000
IMAGES = 6
SHAPES: dict[str, tuple[str, Callable[[Values], Values]]] = {
    "spread": ("entropy", lambda x: sigmoid(1.5 * x - 3)),
    "near 0": ("mutual_information", lambda x: 1e-4 * np.exp(x)),
    "at 0": ("least_confidence", lambda x: 1e-6 * np.exp(0.3 * x)),
    "near 1": ("entropy", lambda x: 1 - 1e-3 * np.exp(-0.5 * x)),
    "at 1": ("entropy", lambda x: 1 - 2e-6 * np.exp(-x)),
    "within a tenth of 1": ("margin", lambda x: 1 - 0.1 * sigmoid(-x)),
    "two classes, untrained": ("least_confidence", lambda x: 0.5 - 1e-3 * np.exp(-x)),
    "all within a hundredth": ("entropy", lambda x: 0.93 + 0.003 * np.tanh(x / 2)),
    "all within a thousandth": ("entropy", lambda x: 0.5 + 5e-4 * np.tanh(x / 2)),
    "uniform": ("expected_entropy", lambda x: (np.argsort(np.argsort(x)) + 0.5) / len(x)),
    "logits, spread": ("energy", lambda x: 12 * x - 30),
    "logits, untrained": ("energy", lambda x: -2.4 + 0.01 * x),
    "logits, large": ("max_logit", lambda x: -4000 + 5 * x),
    "normed logits": ("max_logit_norm", lambda x: -0.7 + 0.02 * np.tanh(x)),
    "votes": ("variation_ratio", lambda x: np.round(20 * sigmoid(x - 1)) / 20),
    "mostly 0": ("variation_ratio", lambda x: np.where(x > 1, sigmoid(x - 1), 0)),
    "mostly 1": ("entropy", lambda x: np.where(x > 0, 1, 1 - 0.1 * sigmoid(-x))),
    "mostly one value": ("entropy", lambda x: np.where(x < 1, 0.37, 0.37 + 0.01 * sigmoid(x - 1))),
}


def sigmoid(values: Values) -> Values:
    return 1 / (1 + np.exp(-values))


def planted(shape: str, *, error_rate: float, seed: int = 0) -> tuple[str, Values, npt.NDArray[np.bool_]]:
    """The name of the measure, its values in float32, and which of the pixels are wrong."""
    generator = np.random.default_rng(seed)
    hidden = generator.normal(size=PIXELS)
    blame = hidden + generator.logistic(0, 0.5, PIXELS)
    measure, of = SHAPES[shape]
    value = of(hidden + generator.normal(0, 0.7, PIXELS)).astype(np.float32)
    return measure, value, blame > np.quantile(blame, 1 - error_rate)


def binned(measure: str, images: list[tuple[Values, npt.NDArray[np.bool_]]], *, sampled: int) -> tuple:
    """The histogram [2, E] of all images, with bins from the first `sampled`, and which bins are tied."""
    sample = BinSample()
    for value, wrong in images[:sampled]:
        sample.add({measure: torch.from_numpy(value)}, torch.from_numpy(wrong))
    bins = sample.bins()[measure] if sampled else MeasureBins.of(measure)
    histogram = np.zeros((2, MEASURE_BINS))
    for value, wrong in images:
        index = bins.index(torch.from_numpy(value)).numpy()
        for side in (0, 1):
            histogram[side] += np.bincount(index[wrong == side], minlength=MEASURE_BINS)
    return histogram, bins.tied


def exact(value: Values, wrong: npt.NDArray[np.bool_]) -> dict[str, float]:
    false, true, _ = roc_curve(wrong, value, drop_intermediate=False)
    return {
        "auroc": float(roc_auc_score(wrong, value)),
        "aupr": float(average_precision_score(wrong, value)),
        "fpr95": float(false[np.argmax(true >= 0.95)]),
    }


@pytest.mark.parametrize("error_rate", [0.08, 0.4])
@pytest.mark.parametrize("shape", SHAPES)
def test_rank_metrics_are_those_of_scikit_learn_wherever_the_values_lie(
    shape: str, error_rate: float
) -> None:
    measure, value, wrong = planted(shape, error_rate=error_rate)
    images = list(zip(np.split(value, IMAGES), np.split(wrong, IMAGES), strict=True))
    errors, tied = binned(measure, images, sampled=4)
    assert errors.sum() == PIXELS
    joined, joined_tied = coarse(errors, tied)
    expected = exact(value, wrong)
    with np.errstate(divide="ignore", invalid="ignore"):
        found, resampled = error_metrics(errors, tied=tied), error_metrics(joined, tied=joined_tied)
    for metric, of_pixels in expected.items():
        assert found[metric] == pytest.approx(of_pixels, abs=2e-3), metric
        assert resampled[metric] == pytest.approx(of_pixels, abs=6e-3), metric  # for the ends of the interval


@pytest.mark.parametrize("shape", ["spread", "near 0", "near 1", "within a tenth of 1", "mostly 0"])
def test_images_unlike_the_sample_are_still_ranked(shape: str) -> None:
    measure, value, wrong = planted(shape, error_rate=0.2)
    strange = np.full(500, 0.42, dtype=np.float32), np.zeros(500, dtype=bool)
    errors, tied = binned(measure, [strange, (value, wrong)], sampled=1)
    expected = exact(np.concatenate([strange[0], value]), np.concatenate([strange[1], wrong]))
    found = error_metrics(errors, tied=tied)
    assert found["auroc"] == pytest.approx(expected["auroc"], abs=2e-3)
    assert found["aupr"] == pytest.approx(expected["aupr"], abs=5e-3)


@pytest.mark.parametrize("equal", [0.0, 0.42, 1.0, -7.5])
def test_equal_values_are_one_threshold(equal: float) -> None:
    wrong = np.arange(1000) < 100
    value = np.full(1000, equal, dtype=np.float32)
    errors, tied = binned("energy" if equal < 0 else "entropy", [(value, wrong)], sampled=1)
    found = error_metrics(errors, tied=tied)
    assert (found["auroc"], found["aupr"], found["fpr95"]) == pytest.approx((0.5, 0.1, 1.0))


@pytest.mark.parametrize("wrong", [False, True])
def test_one_class_alone_has_no_ranking(wrong: bool) -> None:
    value = np.linspace(0, 1, 1000, dtype=np.float32)
    errors, tied = binned("entropy", [(value, np.full(1000, wrong))], sampled=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        assert np.isnan(error_metrics(errors, tied=tied)["auroc"])


def test_an_image_without_labels_adds_nothing_to_a_sample() -> None:
    errors, tied = binned("entropy", [(np.zeros(0, dtype=np.float32), np.zeros(0, dtype=bool))], sampled=1)
    assert errors.sum() == 0
    assert tied.sum() == 2  # exactly 0, and exactly 1


def test_bins_are_as_many_for_every_sample() -> None:
    generator = np.random.default_rng(0)
    distinct = generator.random(5000, dtype=np.float32)
    ties = generator.choice(np.linspace(0, 1, 60, dtype=np.float32), 5000)
    for sample in (distinct, ties, distinct[:3], ties[:1]):
        bins = MeasureBins.of("entropy", sample, sample + np.float32(0.001))
        assert bins.edges.shape == (MEASURE_BINS - 1,)
        assert (np.diff(bins.edges[bins.edges.isfinite()].numpy()) > 0).all()
        values = torch.linspace(0, 1, 4001)
        assert (bins.index(values).diff() >= 0).all()
        assert bins.index(torch.tensor([-1.0, float("inf")])).tolist() == [0, MEASURE_BINS - 1]


@pytest.mark.parametrize("name", ["entropy", "energy", "max_logit_norm"])
def test_a_bin_that_is_looked_up_is_the_one_that_is_searched(name: str) -> None:
    rng = np.random.default_rng(0)
    drawn = rng.normal(0.2, 0.1, 50_000).astype(np.float32)
    bins = MeasureBins.of(name, drawn[:5000], np.full(100, 0.25, dtype=np.float32))
    edges = bins.edges.numpy()
    patterns = rng.integers(0, 2**32, 50_000, dtype=np.uint32).view(np.float32)
    below, above = (np.nextafter(edges, np.float32(side)) for side in (-np.inf, np.inf))
    special = np.array([0, -0.0, 1, -1, np.inf, -np.inf], dtype=np.float32)
    values = np.concatenate([drawn, patterns[~np.isnan(patterns)], edges, below, above, special])
    assert len(values) >= LOOKED_UP
    expected = np.searchsorted(edges, values, side="right")
    assert len(np.unique(expected)) > MEASURE_BINS // 2
    assert np.array_equal(bins.index(torch.from_numpy(values)).numpy(), expected)
    assert np.array_equal(bins.index(torch.from_numpy(values[:100])).numpy(), expected[:100])
