"""Intervals over independent units (see `units`), never over pixels: bootstrap, or jackknife for few units.

Legend: n images, b units, R resamples or replicates.

Neighbouring pixels and neighbouring frames are strongly dependent. Intervals from single draws would be far
too narrow; drawing blocks of neighbours keeps their dependence inside a block (Künsch 1989; non-overlapping
blocks as Carlstein 1986).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from pipeline.config import EvaluationConfig
from pipeline.evaluation.estimate import Estimate

MOST_UNITS = 512
"""Above this number, blocks are merged at random: the intervals hardly change, the memory is bounded."""
RESAMPLES_AT_ONCE = 250
"""Resamples whose sums are in memory together."""
FEW_UNITS = 12
"""Below this number of units, intervals come from the jackknife instead of the bootstrap."""
ANY = (-math.inf, math.inf)
"""Range of a number that has no bounds."""
LOSS = (0.0, math.inf)
"""Range of a number that is never negative, such as a negative log-likelihood of classes."""
SHARE = (0.0, 1.0)

Statistic = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


def blocks(
    groups: Sequence[str], positions: Sequence[int], block: int, *, most: int = MOST_UNITS
) -> npt.NDArray[np.int64]:
    """The block [n] of each image, numbered from 0.

    Each group is cut, in the order of position, into runs of nearly equal length, about `block` images
    each; a group is never mixed with another one unless there are more than `most` blocks.

    >>> blocks(["a"] * 5 + ["b"], [5, 4, 3, 2, 1, 0], 2).tolist()
    [1, 1, 0, 0, 0, 2]

    Raises:
        ValueError: `groups` and `positions` differ in length, or `block` is not positive.
    """
    if len(groups) != len(positions):
        raise ValueError(f"Expected as many positions as groups, but got {len(positions)} and {len(groups)}.")
    if block < 1:
        raise ValueError(f"Expected argument `block` to be positive, but got {block}.")
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    result = np.empty(len(groups), dtype=np.int64)
    count = 0
    for indices in members.values():
        ordered = sorted(indices, key=lambda index: positions[index])
        runs = max(1, round(len(ordered) / block))
        result[ordered] = count + np.arange(len(ordered)) * runs // len(ordered)
        count += runs
    if count > most:
        merged = np.random.default_rng(0).permutation(count) % most
        result = merged[result]
    return result


def bootstrap_weights(count: int, *, resamples: int, seed: int) -> npt.NDArray[np.float64]:
    """How often each of `count` blocks was drawn in each resample: [R, b], each row summing to b.

    >>> weights = bootstrap_weights(5, resamples=3, seed=0)
    >>> weights.shape, weights.sum(axis=1).tolist()
    ((3, 5), [5.0, 5.0, 5.0])
    """
    generator = np.random.default_rng(seed)
    return generator.multinomial(count, np.full(count, 1.0 / count), size=resamples).astype(np.float64)


def percentile_interval(
    values: npt.NDArray[np.float64], confidence: float, *, count: int
) -> npt.NDArray[np.float64]:
    """Expanded percentile interval [2, ...] over the first axis, R resamples of `count` blocks.

    The plain percentile interval is too narrow where blocks are few (20 blocks: 90 % instead of 95 %). The
    tails are widened by Student's t with `count` − 1 degrees of freedom (Hesterberg 2015, section 3.3).
    Resamples in which a number is not defined (a class that was not drawn) are left out; where these are
    more than half, the interval is not defined either.

    Raises:
        ValueError: there are fewer than two blocks.
    """
    if count < 2:
        raise ValueError(f"Expected at least two blocks, but got {count}.")
    stretch = math.sqrt(count / (count - 1)) * student_quantile((1 + confidence) / 2, count - 1)
    tail = NormalDist().cdf(-stretch)
    undefined = np.isnan(values).mean(axis=0) > 0.5
    filled = np.where(undefined, 0.0, values)
    interval = np.nanquantile(filled, [tail, 1 - tail], axis=0)
    return np.where(undefined, np.nan, interval)


def jackknife_interval(
    values: npt.NDArray[np.float64], confidence: float, *, within: tuple[float, float] = ANY
) -> npt.NDArray[np.float64]:
    """Interval [2, ...] by Student's t from values [b, ...] that each leave one of b units out.

    With few units it covers what it promises, where a bootstrap does not (Cameron, Gelbach &
    Miller 2008; Efron & Tibshirani 1993, equation 11.5). Values that are not defined (the only unit with a
    class is left out) are left out; where these are half or more, the interval is not defined.

    Args:
        within: the least and the largest possible value; the interval is cut there.

    Raises:
        ValueError: there are fewer than two units.
    """
    if len(values) < 2:
        raise ValueError(f"Expected at least two units, but got {len(values)}.")
    defined = ~np.isnan(values)
    count = defined.sum(axis=0)
    known = (count >= 2) & (count * 2 > len(values))
    safe = np.maximum(count, 2)
    centre = np.where(defined, values, 0.0).sum(axis=0) / safe
    squares = np.where(defined, (values - centre) ** 2, 0.0).sum(axis=0)
    quantiles = [student_quantile((1 + confidence) / 2, max(degrees, 1)) for degrees in range(len(values))]
    reach = np.array(quantiles)[safe - 1] * np.sqrt((safe - 1) / safe * squares)
    interval = np.stack([centre - reach, centre + reach]).clip(*within)
    return np.where(known, interval, np.nan)


@dataclass(frozen=True)
class BlockBootstrap:
    """One set of resamples for every number of a report, so that its numbers can be compared.

    Attributes:
        weights: [R, b], from `bootstrap_weights`.
        confidence: of every interval.
    """

    weights: npt.NDArray[np.float64]
    confidence: float

    @classmethod
    def draw(cls, count: int, config: EvaluationConfig, *, seed: int) -> BlockBootstrap:
        """The resamples of `count` units, by the project's configuration."""
        weights = bootstrap_weights(count, resamples=config.resamples, seed=seed)
        return cls(weights, config.confidence)

    @property
    def count(self) -> int:
        """The number of units."""
        return self.weights.shape[1]

    @property
    def replicates(self) -> npt.NDArray[np.float64]:
        """Weights [R, b] whose numbers give the interval: the resamples, or with fewer than `FEW_UNITS` units
        all but one unit, in turn."""
        return 1.0 - np.eye(self.count) if 2 <= self.count < FEW_UNITS else self.weights

    def interval(
        self, statistic: Statistic, sums: npt.NDArray[np.float64], *, within: tuple[float, float] = ANY
    ) -> npt.NDArray[np.float64]:
        """Low and high end [2, ...] of a statistic; NaN where there are fewer than two units.

        Args:
            statistic: maps the sums of many replicates [R, *] to their numbers [R, ...].
            sums: of each unit [b, *].
            within: the least and the largest possible value.
        """
        if len(sums) < 2:
            return np.full((2, *statistic(sums.sum(axis=0)[None]).shape[1:]), np.nan)
        drawn = [statistic(np.tensordot(weights, sums, axes=1)) for weights in self.chunks()]
        return self.percentiles(np.concatenate(drawn), within=within)

    def chunks(self) -> Iterator[npt.NDArray[np.float64]]:
        """The replicates in parts, so that the sums of few of them are in memory together."""
        for start in range(0, len(self.replicates), RESAMPLES_AT_ONCE):
            yield self.replicates[start : start + RESAMPLES_AT_ONCE]

    def percentiles(
        self, drawn: npt.NDArray[np.float64], *, within: tuple[float, float] = ANY
    ) -> npt.NDArray[np.float64]:
        """Low and high end [2, ...] of numbers [R, ...] of the replicates; NaN with fewer than two units."""
        if self.count < 2:
            return np.full((2, *drawn.shape[1:]), np.nan)
        if self.count < FEW_UNITS:
            return jackknife_interval(drawn, self.confidence, within=within)
        return percentile_interval(drawn, self.confidence, count=self.count)

    def estimate(
        self, statistic: Statistic, sums: npt.NDArray[np.float64], *, within: tuple[float, float] = ANY
    ) -> Estimate:
        """One number of the sums of all units [b, *], with its interval."""
        low, high = self.interval(statistic, sums, within=within)
        return Estimate(float(statistic(sums.sum(axis=0)[None])[0]), float(low), float(high))


def student_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t: exact for 1 and 2 degrees of freedom, else within 0.1 % for probabilities
    up to 0.975 (Abramowitz & Stegun 26.7.5).

    >>> round(student_quantile(0.975, 10), 2), round(student_quantile(0.975, 1), 2)
    (2.23, 12.71)
    """
    if degrees == 1:
        return math.tan(math.pi * (probability - 0.5))
    if degrees == 2:
        return (2 * probability - 1) / math.sqrt(2 * probability * (1 - probability))
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees ** (power + 1) for power, term in enumerate(terms))
