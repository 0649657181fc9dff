"""Intervals of numbers that were measured with several seeds on the same test units.

Legend: s seeds, u independent units.

Seeds and units are two crossed random samples: of trainings, and of images. An interval over the seeds alone
says what other seeds would give on these images; one over both says what other seeds would give on other
images. The second is that of multi-reader multi-case studies, from an analysis of variance of the jackknife
pseudo-values (Dorfman, Berbaum & Metz 1992; degrees of freedom by Satterthwaite 1946). A bootstrap over seeds
covers far less than it promises where there are three or five of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from pipeline.evaluation.estimate import Estimate

Array = npt.NDArray[np.float64]
Statistic = Callable[[Array], Array]

POWER = 0.8
"""How often a difference of the measured size is to be shown, where seeds are planned for it."""
MOST_SEEDS = 1000
"""More seeds than this are not planned for."""


@dataclass(frozen=True)
class Crossed:
    """A mean over seeds with both of its intervals.

    Attributes:
        over_seeds: for these units, and other seeds.
        over_both: for other units, and other seeds.
        seeds, units: how many there are.
        seed_variance: of the number of one seed, on these units.
        unit_variance: of the mean over infinitely many seeds, through the choice of units.
        confidence: of both intervals.
    """

    over_seeds: Estimate
    over_both: Estimate
    seeds: int
    units: int
    seed_variance: float
    unit_variance: float
    confidence: float

    @property
    def value(self) -> float:
        return self.over_seeds.value

    def seeds_needed(self) -> int | None:
        """The seeds with which a true difference of this size would be shown in `POWER` of all cases, by the
        interval over both; None where no number of seeds up to `MOST_SEEDS` is enough.

        NaN variances, those of a single seed or unit, are never enough.
        """
        for seeds in range(2, MOST_SEEDS + 1):
            part = self.seed_variance / seeds
            variance = part + self.unit_variance
            if not variance >= 0:
                return None
            degrees = _degrees([(part, seeds - 1), (self.unit_variance, self.units - 1)])
            tails = stats.t.ppf((1 + self.confidence) / 2, degrees) + stats.t.ppf(POWER, degrees)
            if abs(self.value) >= float(tails) * math.sqrt(variance):
                return seeds
        return None


def crossed(statistic: Statistic, sums: Array, *, confidence: float) -> Crossed:
    """The mean over seeds of a statistic of sums over units, with its intervals.

    Args:
        statistic: maps the sums over units of every seed [s, ...] to a number of each [s].
        sums: of every seed and unit [s, u, ...].
        confidence: of the intervals.

    >>> sums = np.array([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]])
    >>> found = crossed(lambda totals: totals / 3, sums, confidence=0.95)
    >>> found.value, found.over_seeds.low < 2.5 < found.over_seeds.high
    (2.5, True)
    """
    total = sums.sum(axis=1)
    of_seed = statistic(total)
    seeds, units = sums.shape[:2]
    over_seeds, seed_variance = mean_over_seeds(of_seed, confidence=confidence)
    if seeds < 2 or units < 2:
        return Crossed(
            over_seeds,
            Estimate(over_seeds.value),
            seeds,
            units,
            seed_variance,
            math.nan,
            confidence,
        )
    without = np.stack([statistic(total - sums[:, unit]) for unit in range(units)], axis=1)
    left_out = np.isnan(without).any(axis=0)  # the only unit that holds what the statistic needs
    pseudo = (units * of_seed[:, None] - (units - 1) * without)[:, ~left_out]
    both, unit_variance = _over_both(of_seed, pseudo, confidence=confidence)
    return Crossed(over_seeds, both, seeds, units, seed_variance, unit_variance, confidence)


def mean_over_seeds(values: Array, *, confidence: float) -> tuple[Estimate, float]:
    """The mean of values [s] with its interval by Student's t, and their variance; NaN with one value."""
    mean = float(values.mean())
    if len(values) < 2:
        return Estimate(mean), math.nan
    variance = float(values.var(ddof=1))
    reach = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * math.sqrt(variance / len(values))
    return Estimate(mean, mean - reach, mean + reach), variance


def _over_both(of_seed: Array, pseudo: Array, *, confidence: float) -> tuple[Estimate, float]:
    """The interval over seeds and units from the numbers of the seeds [s] and pseudo-values [s, u], and the
    variance that the units add to the mean."""
    value = float(of_seed.mean())
    seeds, units = pseudo.shape
    if units < 2:
        return Estimate(value), math.nan
    row, column, mean = pseudo.mean(axis=1), pseudo.mean(axis=0), pseudo.mean()
    size = seeds * units
    among_seeds = units * float(((row - mean) ** 2).sum()) / (seeds - 1) / size
    among_units = seeds * float(((column - mean) ** 2).sum()) / (units - 1) / size
    rest = pseudo - row[:, None] - column + mean
    interaction = float((rest**2).sum()) / ((seeds - 1) * (units - 1)) / size
    of_units = max(0.0, among_units - interaction)
    variance = among_seeds + of_units
    parts = [(among_seeds, seeds - 1)]
    if of_units:
        parts += [(among_units, units - 1), (interaction, (seeds - 1) * (units - 1))]
    degrees = _degrees(parts, of=variance)
    reach = float(stats.t.ppf((1 + confidence) / 2, degrees)) * math.sqrt(variance)
    return Estimate(value, value - reach, value + reach), of_units


def _degrees(parts: list[tuple[float, int]], *, of: float | None = None) -> float:
    """Satterthwaite's degrees of freedom of a sum of mean squares, each with its own; at least 1.

    Args:
        of: the sum, where some of the mean squares are subtracted.
    """
    total = sum(part for part, _ in parts) if of is None else of
    spread = sum(part**2 / degrees for part, degrees in parts if degrees > 0)
    return max(1.0, total**2 / spread) if spread > 0 else 1.0
