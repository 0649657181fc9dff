"""Metrics from summed statistics, for the data itself and for every bootstrap resample at once.

Legend: b blocks (records of a stack), R resamples, C classes, M measures, K reliability bins,
E measure bins.

A resample is a row of weights over blocks; its sums are `weights @ sums`, and its metrics are computed from
these sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.bootstrap import LOSS, SHARE, BlockBootstrap, percentile_interval
from pipeline.evaluation.estimate import Estimate, to_json
from pipeline.evaluation.overlap import intersection_over_union, mean_defined
from pipeline.evaluation.proportions import clustered_interval
from pipeline.evaluation.statistics import LINEAR_BINS, Statistics
from pipeline.evaluation.units import ratio_residuals

Array = npt.NDArray[np.float64]
Key = tuple[str, int]
"""Name and class index; −1 for a number over all classes."""

COVERAGE_STEPS = 50


def summarise(statistics: Statistics, *, bins: int, bootstrap: BlockBootstrap) -> dict[Key, Estimate]:
    """Every metric of a stack of b independent units, with its interval over units; that of a
    share, `iou`, `recall` and `pixel_accuracy`, is `clustered_interval`.

    Names: `miou`, `iou` and `recall` (a class), `pixel_accuracy`, `ece`, `adaptive_ece`, `classwise_ece`
    (also a class), `nll` (nats), `brier`, and for each measure `auroc_…`, `aupr_…`, `aurc_…`.
    `ece_noise` is the ECE that so few units would show by chance if calibration were perfect. An ECE is
    never negative and its interval does not reach 0, so an ECE below this noise is no evidence of an error.
    With fewer than two units, neither intervals nor noise are defined.
    """
    count = len(statistics.pixels)
    points = compute(statistics, np.ones((1, count)), bins=bins)
    drawn = [compute(statistics, weights, bins=bins) for weights in bootstrap.chunks()]
    table = linear_bins(statistics.reliability, bins)
    noise = calibration_noise(table, bootstrap.weights)
    estimates = {("ece_noise", -1): Estimate(np.nan)}
    if count > 1:
        low, high = percentile_interval(noise, bootstrap.confidence, count=count)
        estimates["ece_noise", -1] = Estimate(float(noise.mean()), float(low), float(high))
    for key, right, trials in _shares(statistics):
        share, (low, high) = clustered_interval(right, trials, confidence=bootstrap.confidence)
        estimates[key] = Estimate(float(share), float(low), float(high))
    for key, value in points.items():
        if key in estimates:
            continue
        limits = LOSS if key[0] in ("nll", "brier") else SHARE
        low, high = bootstrap.percentiles(np.concatenate([part[key] for part in drawn]), within=limits)
        estimates[key] = Estimate(float(value[0]), float(low), float(high))
    return estimates


def residuals(statistics: Statistics) -> Array:
    """What each of b runs adds to the error rate, the calibration gap, the NLL and the mIoU beyond its share:
    [b, 4], from which the independent units are estimated."""
    true_positive, true, predicted = _margins(statistics.confusion)
    confidence, right = statistics.reliability[..., 1:].sum(axis=1).T
    sums = np.stack([true_positive.sum(axis=1), confidence - right, statistics.nll], axis=1)
    classes = ratio_residuals(true_positive, true + predicted - true_positive)
    return np.concatenate(
        [
            ratio_residuals(sums, np.repeat(statistics.pixels[:, None], 3, axis=1)),
            classes.mean(axis=1, keepdims=True),
        ],
        axis=1,
    )


def compute(statistics: Statistics, weights: Array, *, bins: int) -> dict[Key, Array]:
    """Every metric [R] for weights [R, b] over the blocks of a stack.

    Raises:
        ValueError: `bins` does not divide 150, or the weights do not fit the stack.
    """
    if weights.ndim != 2 or weights.shape[1] != len(statistics.pixels):
        raise ValueError(
            f"Expected weights [R, {len(statistics.pixels)}], but got shape {list(weights.shape)}."
        )
    pixels = weights @ statistics.pixels
    with np.errstate(divide="ignore", invalid="ignore"):
        metrics: dict[Key, Array] = {
            ("nll", -1): weights @ statistics.nll / pixels,
            ("brier", -1): weights @ statistics.brier / pixels,
            ("ece", -1): calibration_error(_weigh(weights, linear_bins(statistics.reliability, bins))),
            ("adaptive_ece", -1): adaptive_error(_weigh(weights, statistics.tail), bins=bins),
        }
        true_positive, true, predicted = (weights @ part for part in _margins(statistics.confusion))
        metrics[("pixel_accuracy", -1)] = true_positive.sum(axis=1) / pixels
        iou = intersection_over_union(true_positive, true, predicted)
        metrics[("miou", -1)] = mean_defined(iou)
        recall = np.where(true > 0, true_positive / true, np.nan)
        classwise = calibration_error(_weigh(weights, statistics.class_reliability))
        classwise = np.where(true > 0, classwise, np.nan)
        metrics[("classwise_ece", -1)] = mean_defined(classwise)
        for index in range(statistics.num_classes):
            metrics[("iou", index)] = iou[:, index]
            metrics[("recall", index)] = recall[:, index]
            metrics[("classwise_ece", index)] = classwise[:, index]
        for index, name in enumerate(statistics.measures):
            right, wrong = np.moveaxis(_weigh(weights, statistics.errors[:, index]), 1, 0)
            metrics[(f"auroc_{name}", -1)] = auroc(right, wrong)
            metrics[(f"aupr_{name}", -1)] = average_precision(right, wrong, tied=statistics.bins[name].tied)
            metrics[(f"aurc_{name}", -1)] = area_under_risk_coverage(right, wrong)
    return metrics


def curves(statistics: Statistics, *, bins: int, bootstrap: BlockBootstrap) -> dict[str, Any]:
    """The curves of a report, as a JSON document.

    `reliability`: for each of K bins its edges, pixels, mean confidence, accuracy and the accuracy's
    interval. `risk_coverage`: for each measure the error rate of the most certain share of pixels, with
    its interval. null where a bin is empty, or no interval is defined.
    """
    ones = np.ones((1, len(statistics.pixels)))
    linear = linear_bins(statistics.reliability, bins)
    pixels, confident, correct = np.moveaxis(_weigh(ones, linear)[0], -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        _, (low, high) = clustered_interval(linear[..., 2], linear[..., 0], confidence=bootstrap.confidence)
        reliability: dict[str, Any] = {
            "edges": np.linspace(0, 1, bins + 1).tolist(),
            "pixels": pixels.astype(int).tolist(),
            "confidence": _json(confident / pixels),
            "accuracy": _json(correct / pixels),
            "accuracy_low": _json(low),
            "accuracy_high": _json(high),
        }
        coverage = np.linspace(1 / COVERAGE_STEPS, 1, COVERAGE_STEPS)
        risks: dict[str, Any] = {"coverage": coverage.tolist()}
        for index, name in enumerate(statistics.measures):
            right, wrong = statistics.errors[:, index].sum(axis=0)
            risk = risk_at(right, wrong, coverage)
            samples = np.stack(
                [
                    risk_at(right, wrong, coverage)
                    for chunk in bootstrap.chunks()
                    for right, wrong in _weigh(chunk, statistics.errors[:, index])
                ]
            )
            low, high = bootstrap.percentiles(samples, within=SHARE)
            risks[name] = {"risk": _json(risk), "low": _json(low), "high": _json(high)}
    return {"reliability": reliability, "risk_coverage": risks}


def linear_bins(reliability: Array, bins: int) -> Array:
    """The 150 linear bins [..., 150, 3] joined to K = `bins` of them [..., K, 3].

    Raises:
        ValueError: `bins` does not divide 150.
    """
    if bins < 1 or LINEAR_BINS % bins:
        raise ValueError(f"Expected argument `bins` to be a divisor of {LINEAR_BINS}, but got {bins}.")
    return reliability.reshape(*reliability.shape[:-2], bins, LINEAR_BINS // bins, 3).sum(axis=-2)


def calibration_error(table: Array) -> Array:
    """Expected calibration error from bins [..., K, 3] of pixels, summed confidence and correct pixels:
    Σ_k n_k / n · |accuracy_k − confidence_k| (Naeini et al. 2015; with the probabilities of one class in
    place of the confidence, the class-wise ECE of Kull et al. 2019, equation 3)."""
    return np.abs(table[..., 2] - table[..., 1]).sum(axis=-1) / table[..., 0].sum(axis=-1)


def calibration_noise(table: Array, weights: Array) -> Array:
    """The calibration error [R] of resamples [R, b] if the data, bins [b, K, 3], were perfectly calibrated:
    each bin's gap less the gap of the data itself (a bootstrap under the null hypothesis)."""
    gap = table[..., 2] - table[..., 1]
    moved = weights @ gap - gap.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.abs(moved).sum(axis=-1) / (weights @ table[..., 0].sum(axis=-1))


def adaptive_error(tail: Array, *, bins: int) -> Array:
    """Calibration error over K bins of equal mass (Nguyen & O'Connor 2015), from the logarithmic bins
    [R, G, 3]; a logarithmic bin that an edge cuts is divided in proportion."""
    cumulative = np.concatenate([np.zeros_like(tail[:, :1]), tail.cumsum(axis=1)], axis=1)
    shares = np.linspace(0, 1, bins + 1)
    errors = np.empty(len(tail))
    for row, (pixels, confident, correct) in enumerate(np.moveaxis(cumulative, -1, 1)):
        edges = shares * pixels[-1]
        gap = np.diff(np.interp(edges, pixels, correct) - np.interp(edges, pixels, confident))
        errors[row] = np.abs(gap).sum() / pixels[-1]
    return errors


def auroc(right: Array, wrong: Array) -> Array:
    """Probability that a wrong pixel is more uncertain than a right one, ties counted half (Hanley &
    McNeil 1982); from histograms [..., E]. NaN where all pixels are right, or all wrong."""
    below = right.cumsum(axis=-1) - right / 2
    return (wrong * below).sum(axis=-1) / (wrong.sum(axis=-1) * right.sum(axis=-1))


def average_precision(right: Array, wrong: Array, *, tied: npt.NDArray[np.bool_]) -> Array:
    """Area under precision–recall with errors as positives; from histograms [..., E], the most uncertain
    pixels flagged first. Exact for errors spread evenly within a bin, and for `tied` bins [E] of one value,
    whose pixels are flagged together. NaN where all pixels are right."""
    right, wrong = right[..., ::-1], wrong[..., ::-1]
    rate, within = _rate_and_integral(right, wrong)
    flagged = (right + wrong).cumsum(axis=-1)
    together = wrong * wrong.cumsum(axis=-1) / np.where(flagged > 0, flagged, 1.0)
    return np.where(tied[::-1], together, rate * within).sum(axis=-1) / wrong.sum(axis=-1)


def area_under_risk_coverage(right: Array, wrong: Array) -> Array:
    """Mean, over coverage from 0 to 1, of the error rate among the pixels kept (Geifman et al. 2019).
    From histograms [..., E]. Exact for errors spread evenly within a bin.
    """
    _, within = _rate_and_integral(right, wrong)
    return within.sum(axis=-1) / (right + wrong).sum(axis=-1)


def risk_at(right: Array, wrong: Array, coverage: Array) -> Array:
    """Error rate among the most certain share of pixels, for each coverage; from histograms [E]."""
    size = np.concatenate([[0.0], (right + wrong).cumsum()])
    errors = np.concatenate([[0.0], wrong.cumsum()])
    kept = coverage * size[-1]
    return np.interp(kept, size, errors) / kept


def _rate_and_integral(right: Array, wrong: Array) -> tuple[Array, Array]:
    """Each bin's error rate r, and the integral over its pixels of the error rate up to each pixel: with e₀
    errors among the n₀ pixels before the bin, ∫ (e₀ + r·(u − n₀)) / u du."""
    size = right + wrong
    end = size.cumsum(axis=-1)
    start = end - size
    errors_before = wrong.cumsum(axis=-1) - wrong
    rate = wrong / np.where(size > 0, size, 1.0)
    growth = np.log(np.where(start > 0, end, 1.0) / np.where(start > 0, start, 1.0))
    return rate, wrong + (errors_before - rate * start) * growth


def _margins(confusion: Array) -> tuple[Array, Array, Array]:
    """Diagonal, row sums and column sums [b, C], for IoU."""
    return np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(axis=-1), confusion.sum(axis=-2)


def _shares(statistics: Statistics) -> Iterator[tuple[Key, Array, Array]]:
    """The metrics that are a share of pixels: key, successes [b] and trials [b]."""
    true_positive, true, predicted = _margins(statistics.confusion)
    yield ("pixel_accuracy", -1), true_positive.sum(axis=1), statistics.pixels
    union = true + predicted - true_positive
    for index in np.flatnonzero(true.any(axis=0)).tolist():
        yield ("iou", index), true_positive[:, index], union[:, index]
        yield ("recall", index), true_positive[:, index], true[:, index]


def _weigh(weights: Array, sums: Array) -> Array:
    """[R, ...] from weights [R, b] and sums [b, ...]."""
    return np.tensordot(weights, sums, axes=1)


def _json(values: Array) -> list[float | None]:
    return [to_json(value) for value in values]
