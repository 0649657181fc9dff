"""Whether a new model is promoted: by its mIoU against that of the best promoted model so far.

Legend: r runs of neighbouring images, u independent units, C classes, R resamples.

Both models are measured on the same images, so the bootstrap draws the same units for both: the interval of
their difference does not include how hard the units are.

A model is promoted where it measures no lower than the best one, or where the interval of the difference
shows that it loses no more than a margin (non-inferiority, Piaggio et al. 2012). Because the other model is
the best one so far, small losses cannot add up over rounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import stats

from pipeline.config import EvaluationConfig
from pipeline.evaluation.bootstrap import BlockBootstrap
from pipeline.evaluation.estimate import Estimate
from pipeline.evaluation.overlap import PARTS, Overlap, intersection_over_union, mean_defined
from pipeline.evaluation.proportions import paired_difference
from pipeline.evaluation.units import join, ratio_residuals, units

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Verdict:
    """Whether the new model is promoted, and what decided it.

    Attributes:
        difference: of mIoU, new − best.
        units: independent units behind it.
        margin: the loss that is allowed where the interval excludes a larger one.
        confidence: of the intervals.
        worse: the classes whose IoU is lower beyond its interval, each with the difference. They do not
            decide.
    """

    difference: Estimate
    units: int
    margin: float
    confidence: float
    worse: dict[int, Estimate] = field(default_factory=dict[int, Estimate])

    @property
    def promoted(self) -> bool:
        return self.difference.value >= 0 or self.difference.low >= -self.margin

    @property
    def unseen(self) -> float:
        """The loss that goes unseen: a model that is worse by less is promoted in more than one of five
        cases. NaN without an interval."""
        return float(stats.t.ppf(0.8, self.units - 1)) * self._error - self._least

    @property
    def refused_equal(self) -> float:
        """How often an equal model is refused, 0 to 1; NaN without an interval."""
        if self._error == 0:
            return 0.0
        return float(stats.t.cdf(self._least / self._error, self.units - 1))

    @property
    def _error(self) -> float:
        """Standard error of the difference."""
        reach = self.difference.value - self.difference.low
        return reach / float(stats.t.ppf((1 + self.confidence) / 2, self.units - 1))

    @property
    def _least(self) -> float:
        """The least difference with which a model is promoted."""
        return min(0.0, self.difference.value - self.difference.low - self.margin)


def compare(new: Overlap, best: Overlap, *, config: EvaluationConfig, seed: int) -> Verdict:
    """A new model against the best one on the same images.

    The independent units are estimated from what each run adds to the difference. With a single unit there is
    no interval, and the difference itself decides.

    Raises:
        ValueError: the two were not measured on the same images in the same runs.
    """
    if new.fingerprint != best.fingerprint:
        raise ValueError("Expected two models measured on the same images in the same runs.")

    def difference(sums: Array) -> Array:
        iou = intersection_over_union(*np.moveaxis(sums, 2, 0))
        return np.subtract(*mean_defined(iou).T)

    sums = np.moveaxis(np.stack([[getattr(one, name) for name in PARTS] for one in (new, best)]), 2, 0)
    added = np.subtract(*(_added(one) for one in (new, best)))
    joined = join(sums, units(new.groups, range(len(sums)), added[:, None], least=new.least))
    bootstrap = BlockBootstrap.draw(len(joined), config, seed=seed)
    return Verdict(
        difference=bootstrap.estimate(difference, joined, within=(-1.0, 1.0)),
        units=len(joined),
        margin=config.promote_tolerance,
        confidence=config.confidence,
        worse=_worse_classes(joined, config.confidence),
    )


def compare_apart(new: Estimate, best: Estimate, *, units: int, config: EvaluationConfig) -> Verdict:
    """A new model's mIoU against that of a model which was measured on other images.

    The interval of the difference of two independent estimates comes from their own intervals (Zou & Donner
    2008, equation 8).

    Args:
        units: independent units behind the estimate that has fewer of them.
    """
    low = math.hypot(new.value - new.low, best.high - best.value)
    high = math.hypot(new.high - new.value, best.value - best.low)
    value = new.value - best.value
    return Verdict(
        Estimate(value, value - low, value + high), units, config.promote_tolerance, config.confidence
    )


def _worse_classes(sums: Array, confidence: float) -> dict[int, Estimate]:
    """The classes whose IoU is lower in the new model beyond its interval, from sums [u, 2, 3, C] of the new
    and the best model."""
    true_positive, true, predicted = np.moveaxis(sums, 2, 0)
    union = true + predicted - true_positive
    difference, (low, high) = paired_difference(
        *(part[:, model] for model in (0, 1) for part in (true_positive, union)), confidence=confidence
    )
    held = true[:, 0].any(axis=0)
    return {
        index: Estimate(float(difference[index]), float(low[index]), float(high[index]))
        for index in np.flatnonzero(held & (high < 0)).tolist()
    }


def _added(overlap: Overlap) -> Array:
    """What each run [r] adds to the mIoU beyond its share."""
    union = overlap.true + overlap.predicted - overlap.true_positive
    return ratio_residuals(overlap.true_positive, union).mean(axis=1)
