"""What an audit slice says about the pool that its queue was drawn from, and about its unlabeled regions.

Legend: u audited images, C classes, K reliability bins, R resamples or replicates, N unlabeled regions of the
pool when the queue was drawn, m of them that the audit drew and annotators labeled.

The audit is a simple random sample of the N regions, so N · (mean over its m labels) is an unbiased estimate
of any sum over them. Regions that were labeled before are known with certainty and stand for themselves:

    total of the pool = sum over the labels with certainty + N / m · sum over the audit

(Farquhar, Gal & Rainforth 2021, and Kossen et al. 2021, weight actively chosen points for the same reason.)
Error rate, IoU, class shares and calibration are ratios of such totals. Audits of several rounds are no
sample of one pool: each was drawn from what was left then, after its easy or hard regions had been taken.

The draw itself is what makes the regions independent, wherever they lie, so that no blocks of neighbours are
needed: the unit is the image, because regions of one image are alike. An audit that takes a large part of
the N regions has narrower intervals, by √(1 − m / N) (the finite population correction; Cochran 1977, 2.6).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.special import expit, logit

from pipeline.config import EvaluationConfig
from pipeline.evaluation.bootstrap import bootstrap_weights, jackknife_interval
from pipeline.evaluation.estimate import Estimate, to_json
from pipeline.evaluation.metrics import (
    Key,
    calibration_error,
    calibration_noise,
    linear_bins,
)
from pipeline.evaluation.overlap import intersection_over_union, mean_defined
from pipeline.evaluation.proportions import proportion_interval
from pipeline.evaluation.statistics import Statistics

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Counts:
    """Sums over labeled pixels.

    Attributes:
        confusion: [..., C, C] pixels by true class (row) and predicted class (column).
        reliability: [..., K, 3] pixels, summed confidence, correct pixels; linear bins of confidence.
    """

    confusion: Array
    reliability: Array

    @classmethod
    def of(cls, statistics: Statistics, *, bins: int) -> Counts:
        """The counts of a record, in `bins` bins of confidence."""
        return cls(statistics.confusion, linear_bins(statistics.reliability, bins))

    @classmethod
    def none(cls, *, classes: int, bins: int) -> Counts:
        """The counts of no pixel."""
        return cls(np.zeros((classes, classes)), np.zeros((bins, 3)))

    def plus(self, other: Counts) -> Counts:
        """The sum of two records."""
        return Counts(self.confusion + other.confusion, self.reliability + other.reliability)


@dataclass(frozen=True)
class Audit:
    """A labeled audit slice.

    Attributes:
        images: [u, ...], the audited regions of each image.
        regions: [u], their number.
        population: N.
        drawn: regions that the audit drew, labeled or not.
    """

    images: Counts
    regions: Array
    population: int
    drawn: int

    def __post_init__(self) -> None:
        if not 0 < self.answered <= self.drawn <= self.population:
            raise ValueError(
                f"Expected 0 < labeled ≤ drawn ≤ population, but got {self.answered}, {self.drawn}, "
                f"{self.population}."
            )

    @property
    def answered(self) -> int:
        """m: labeled regions."""
        return int(self.regions.sum())

    @property
    def narrowing(self) -> float:
        """√(1 − m / N)."""
        return math.sqrt(1 - self.answered / self.population)

    def factors(self, weights: Array) -> Array:
        """N / m [R] for weights [R, u] over the images."""
        return self.population / (weights @ self.regions)


@dataclass(frozen=True)
class PoolEstimate:
    """Estimates by name and class index (−1 for a number over all classes): `error_rate`, `miou`, `iou` (a
    class), `class_share` (a class: of the labeled pixels), `ece`, `ece_noise` (see `metrics.summarise`), and
    `overconfidence`, the mean confidence less the accuracy.

    Attributes:
        unlabeled: of the N regions, by a model that has not learned from any of them.
        pool: of these and of the labels with certainty.
        bounds: lowest and highest error rate of the unlabeled regions, if all that the audit drew and nobody
            labeled are right or wrong; without its sampling error.
        certain_pixels: labeled with certainty.
        audit_pixels: labeled by the audit.
        images, regions, drawn, population: u, m, see `Audit`, and N.
    """

    unlabeled: dict[Key, Estimate]
    pool: dict[Key, Estimate]
    bounds: tuple[float, float]
    certain_pixels: int
    audit_pixels: int
    images: int
    regions: int
    drawn: int
    population: int

    def document(self) -> dict[str, Any]:
        """The estimates as JSON; numbers of classes are lists."""
        return {
            "unlabeled": _document(self.unlabeled),
            "pool": _document(self.pool),
            "bounds": [to_json(value, 6) for value in self.bounds],
            **{name: getattr(self, name) for name in _NUMBERS},
        }


def estimate_pool(certain: Counts, audit: Audit, config: EvaluationConfig, *, seed: int) -> PoolEstimate:
    """What the labels with certainty and the audit say about the pool.

    Error rates, class shares and `overconfidence` have no bias but that of a ratio, which is small beside
    the interval; an ECE is never negative, so that of few regions is too large by about `ece_noise`; a class
    that the audit did not meet is missing from the mIoU of what is not labeled.

    Args:
        certain: [C, C] and [K, 3], summed over all regions that were labeled before the queue was drawn.

    Raises:
        ValueError: the audit has no labeled region.
    """
    nothing = Counts.none(classes=certain.confusion.shape[-1], bins=certain.reliability.shape[-2])
    error = _error_rate(audit.images)
    unanswered = 1 - audit.answered / audit.drawn
    lowest = error * (1 - unanswered)
    return PoolEstimate(
        unlabeled=_estimates(nothing, audit, config, seed=seed),
        pool=_estimates(certain, audit, config, seed=seed),
        bounds=(lowest, lowest + unanswered),
        certain_pixels=int(certain.confusion.sum()),
        audit_pixels=int(audit.images.confusion.sum()),
        images=len(audit.regions),
        regions=audit.answered,
        drawn=audit.drawn,
        population=audit.population,
    )


def pool_share(
    right: Array, pixels: Array, audit: Audit, *, certain: tuple[float, float], confidence: float
) -> Estimate:
    """A share of the pool's pixels: (k + N / m · Σ right) / (n + N / m · Σ pixels), and its interval.

    The interval is symmetric in the logit, with the variance of the ratio by linearisation over images and
    Student's t, as `proportions.clustered_interval`; where the images do not differ at all, each counts as
    one trial of Jeffreys' interval. NaN without a pixel; no interval with fewer than two images.

    Args:
        right, pixels: [u], sums over the audited regions of each image.
        certain: k and n, the same sums over the labels with certainty.
    """
    factor = audit.population / audit.answered
    total = certain[1] + factor * pixels.sum()
    if total <= 0:
        return Estimate(math.nan)
    share = (certain[0] + factor * right.sum()) / total
    used = int((audit.regions > 0).sum())
    if used < 2:
        return Estimate(share)
    seen, audited = right.sum(), pixels.sum()
    beyond = right - share * pixels
    square = (factor * (beyond - audit.regions * (beyond.sum() / audit.answered))) ** 2
    if square.sum() <= 1e-18 * total**2 or seen <= 0 or seen >= audited:
        known = seen / audited if audited > 0 else 0.0
        ends = proportion_interval(known * used, used, confidence=confidence)
        low, high = (known + (end - known) * audit.narrowing for end in ends.tolist())
        return Estimate(share, *((certain[0] + factor * audited * end) / total for end in (low, high)))
    variance = used / (used - 1) * square.sum() / total**2
    degrees = np.clip(2 * square.sum() ** 2 / (square**2).sum() - 1, 1, used - 1)
    spread = audit.narrowing * math.sqrt(variance) / (share * (1 - share))
    reach = stats.t.ppf((1 + confidence) / 2, degrees) * spread
    return Estimate(share, float(expit(logit(share) - reach)), float(expit(logit(share) + reach)))


def _estimates(certain: Counts, audit: Audit, config: EvaluationConfig, *, seed: int) -> dict[Key, Estimate]:
    count = len(audit.regions)
    found: dict[Key, Estimate] = {("ece_noise", -1): Estimate(math.nan)}
    if count > 1:
        drawn = bootstrap_weights(count, resamples=config.resamples, seed=seed)
        found["ece_noise", -1] = Estimate(float(_noise(certain, audit, drawn).mean()))
    weights = np.concatenate([np.ones((1, count)), 1 - np.eye(count) if count > 1 else np.ones((0, count))])
    for name, values in _ratios(certain, audit, weights):
        found[name, -1] = _jackknife(name, values, audit, confidence=config.confidence)
    for key, right, pixels, known in _shares(certain, audit.images):
        found[key] = pool_share(right, pixels, audit, certain=known, confidence=config.confidence)
    return found


def _ratios(certain: Counts, audit: Audit, weights: Array) -> Iterator[tuple[str, Array]]:
    """The numbers [R] that are no share, for weights [R, u] over the images. A class that the first row has
    and another one lacks keeps its IoU there, so that all of them are means over the same classes."""
    confusion, reliability = (
        known + np.tensordot(audit.factors(weights)[:, None] * weights, part, axes=1)
        for known, part in (
            (certain.confusion, audit.images.confusion),
            (certain.reliability, audit.images.reliability),
        )
    )
    true_positive = np.diagonal(confusion, axis1=-2, axis2=-1)
    iou = intersection_over_union(true_positive, confusion.sum(axis=-1), confusion.sum(axis=-2))
    yield "miou", mean_defined(np.where(np.isnan(iou), iou[0], iou))
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels, confident, right = np.moveaxis(reliability.sum(axis=-2), -1, 0)
        yield "ece", calibration_error(reliability)
        yield "overconfidence", (confident - right) / pixels


def _jackknife(name: str, values: Array, audit: Audit, *, confidence: float) -> Estimate:
    """A number and its interval, from values [1 + u]: of all images, and without each of them.

    The mIoU is corrected for the bias that a ratio of few has (Quenouille 1956).
    """
    point, without = float(values[0]), values[1:]
    if len(without) < 2:
        return Estimate(point)
    low, high = jackknife_interval(without, confidence)
    reach = audit.narrowing * (high - low) / 2
    if name == "miou":
        point -= audit.narrowing**2 * (len(without) - 1) * float(without.mean() - point)
    least = -1.0 if name == "overconfidence" else 0.0
    return Estimate(*np.clip([point, point - reach, point + reach], least, 1.0).tolist())


def _noise(certain: Counts, audit: Audit, weights: Array) -> Array:
    """The ECE [R] that so few regions would show by chance."""
    factor = audit.population / audit.answered
    table = np.concatenate([certain.reliability[None], factor * audit.images.reliability])
    return calibration_noise(table, np.concatenate([np.ones((len(weights), 1)), weights], axis=1))


def _shares(certain: Counts, audit: Counts) -> list[tuple[Key, Array, Array, tuple[float, float]]]:
    """The numbers that are a share of pixels: their key, k and n of each image, and those with certainty."""
    (known_hit, known_true, known_seen), (hit, true, seen) = _margins(certain), _margins(audit)
    known_pixels, pixels = float(known_true.sum()), true.sum(axis=-1)
    found: list[tuple[Key, Array, Array, tuple[float, float]]] = [
        (
            ("error_rate", -1),
            pixels - hit.sum(axis=-1),
            pixels,
            (known_pixels - float(known_hit.sum()), known_pixels),
        )
    ]
    known_union, union = known_true + known_seen - known_hit, true + seen - hit
    for index in range(len(known_true)):
        known = float(known_true[index])
        found.append((("class_share", index), true[:, index], pixels, (known, known_pixels)))
        if known or true[:, index].any():
            both = (float(known_hit[index]), float(known_union[index]))
            found.append((("iou", index), hit[:, index], union[:, index], both))
        else:
            nothing = np.zeros_like(pixels)
            found.append((("iou", index), nothing, nothing, (0.0, 0.0)))
    return found


def _margins(counts: Counts) -> tuple[Array, Array, Array]:
    """Diagonal, row sums and column sums [..., C] of the confusion."""
    confusion = counts.confusion
    return np.diagonal(confusion, axis1=-2, axis2=-1), confusion.sum(axis=-1), confusion.sum(axis=-2)


def _error_rate(counts: Counts) -> float:
    hit, true, _ = _margins(counts)
    return float(1 - hit.sum() / true.sum()) if true.sum() else math.nan


def _document(estimates: Mapping[Key, Estimate]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for (name, index), one in estimates.items():
        if index < 0:
            found[name] = one.document()
        else:
            found.setdefault(name, []).append(one.document())
    return found


def stacked(parts: Sequence[Counts]) -> Counts:
    """Counts along a new first axis.

    Raises:
        ValueError: there are none.
    """
    return Counts(
        np.stack([part.confusion for part in parts]), np.stack([part.reliability for part in parts])
    )


_NUMBERS = ("certain_pixels", "audit_pixels", "images", "regions", "drawn", "population")
