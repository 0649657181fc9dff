"""Independent units: which held-out images count as one piece of evidence, estimated from the images.

Legend: n images, r runs of neighbouring images, S series of residuals.

The variance of a mean over images depends on how long neighbours stay alike, and on how much sites differ. So
whole groups are the units where there are at least eight (Cameron, Gelbach & Miller 2008). With fewer groups,
the units are blocks of neighbours, as long as the residuals are correlated; they are whole groups here too
where the groups differ by more than their blocks explain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from pipeline.evaluation.bootstrap import MOST_UNITS, blocks

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

FEWEST_GROUPS = 8
"""Groups of equal size from which on whole groups are resampled."""
LENGTHENING = 2.0
"""Blocks are this many times the length with the least error of the variance (Politis & White 2004), because
intervals cover best with longer blocks than the variance needs (Hall, Horowitz & Jing 1995)."""
TIMES = 12.0
"""Blocks are at least this many times as long as the first-order correlation makes them: blocks of length b
lose the share 2ρ / (1 − ρ²) / b of the variance, so at most a twelfth."""
FEWEST_BLOCKS = 3
"""The estimate lengthens blocks only as far as so many are left."""
DOUBT = 0.25
"""Groups count as alike only where the test of their difference has a p-value above this (Bancroft 1964)."""


@dataclass(frozen=True)
class Runs:
    """Images in runs of neighbours: sums are kept for each run, until the residuals tell the units.

    Attributes:
        of_image: [n] the run of each image, numbered from 0, along each group in the order of positions.
        groups: [r] the group of each run.
        least: runs in a block at least.
    """

    of_image: Integers
    groups: tuple[str, ...]
    least: int

    @classmethod
    def of(
        cls,
        groups: Sequence[str],
        positions: Sequence[int],
        *,
        block: int,
        independent: bool = False,
        most: int = MOST_UNITS,
    ) -> Runs:
        """Runs of one image, longer ones where there are more than `most` images; and whole groups where
        these are the units anyway.

        Args:
            groups, positions: [n].
            block: images in a block at least.
            independent: each image is a unit, whatever its group.

        Raises:
            ValueError: `groups` and `positions` differ in length, or `block` is not positive.
        """
        if independent:
            groups, block = [str(index) for index in range(len(groups))], 1
        length = max(1, math.ceil(len(groups) / most))
        if block < 1:
            raise ValueError(f"Expected argument `block` to be positive, but got {block}.")
        if _evidence(groups) >= FEWEST_GROUPS:
            length = max(1, len(groups))
        index = blocks(groups, positions, length, most=most)
        names: dict[int, str] = {}
        for run, group in zip(index.tolist(), groups, strict=True):
            names.setdefault(run, group)
        return cls(index, tuple(names[run] for run in range(len(names))), max(1, round(block / length)))

    def __len__(self) -> int:
        return len(self.groups)

    def units(self, residuals: Array, used: Sequence[int] | None = None) -> Integers:
        """The unit of each run, numbered from 0.

        Args:
            residuals: [r, S], see `units`.
            used: the runs that have residuals, in increasing order; all of them by default. Where only every
                k-th is used, blocks have fewer of them.
        """
        kept = range(len(self)) if used is None else used
        least = max(1, round(self.least * len(kept) / max(1, len(self))))
        return units([self.groups[run] for run in kept], list(kept), residuals, least=least)


def units(groups: Sequence[str], positions: Sequence[int], residuals: Array, *, least: int = 1) -> Integers:
    """The independent unit [n] of each image, numbered from 0.

    Args:
        groups, positions: [n].
        residuals: [n, S], what each image adds to each of S numbers beyond its share. The longest
            dependence counts.
        least: images in a block at least.

    >>> units(["a"] * 6 + ["b"] * 6, list(range(12)), np.zeros((12, 1)), least=3).tolist()
    [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]

    Raises:
        ValueError: the arguments differ in length, or `least` is not positive.
    """
    if len(residuals) != len(groups):
        raise ValueError(f"Expected residuals of {len(groups)} images, but got {len(residuals)}.")
    length = least
    whole = max(1, len(groups))
    if _evidence(groups) < FEWEST_GROUPS:
        length = max(least, block_length(groups, positions, residuals))
    else:
        length = whole
    found = blocks(groups, positions, length)
    if length < whole and _groups_differ(groups, found, residuals):
        return blocks(groups, positions, whole)
    return found


def block_length(groups: Sequence[str], positions: Sequence[int], residuals: Array) -> int:
    """How many neighbouring images to join, so that the blocks are independent enough for an interval.

    The larger one of two estimates: `LENGTHENING` times the automatic length of Politis & White (2004,
    corrected by Patton, Politis & White 2009, for non-circular blocks), and `TIMES` times 2ρ / (1 − ρ²) with
    the first autocorrelation ρ, corrected for its bias (Andrews 1991, equation 6.4; Kendall 1954).
    The first sees dependence of any shape, the second has the smaller error in short series.

    Args:
        groups, positions, residuals: see `units`.
    """
    series = _series(groups, positions, residuals)
    count = sum(map(len, series))
    longest = max(map(len, series), default=0)
    if longest < 3:
        return 1
    lengths = [
        _length([one[:, column] for one in series], count, longest) for column in range(residuals.shape[1])
    ]
    return max(1, min(math.ceil(max(lengths, default=1.0)), count // FEWEST_BLOCKS))


def join(sums: Array, unit: Integers, rows: Sequence[int] | None = None) -> Array:
    """Sums [r, ...] of runs added up by unit: [u, ...].

    Args:
        unit: of each run, or of these `rows` of the sums.
    """
    joined = np.zeros((int(unit.max()) + 1, *sums.shape[1:]))
    for row, index in zip(range(len(unit)) if rows is None else rows, unit.tolist(), strict=True):
        joined[index] += sums[row]
    return joined


def ratio_residuals(numerators: Array, denominators: Array) -> Array:
    """What each image adds to Σ numerators / Σ denominators beyond its share: [n, S] from [n, S] each."""
    total = denominators.sum(axis=0)
    safe = np.where(total > 0, total, 1.0)
    return (numerators - denominators * (numerators.sum(axis=0) / safe)) / safe


def _series(groups: Sequence[str], positions: Sequence[int], residuals: Array) -> list[Array]:
    """The residuals of each group in the order of positions, less their mean over the group."""
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    ordered = [sorted(rows, key=lambda row: positions[row]) for rows in members.values()]
    return [residuals[rows] - residuals[rows].mean(axis=0) for rows in ordered]


def _length(series: Sequence[Array], count: int, longest: int) -> float:
    """The length of blocks for one number, from the centred series of the groups."""
    covariance = sum(_autocovariance(one, longest) for one in series) / count
    if not isinstance(covariance, np.ndarray) or covariance[0] <= 0:
        return 1.0
    correlation = covariance / covariance[0]
    noise = 2 * math.sqrt(math.log10(count) / count)
    run = max(5, math.ceil(math.sqrt(math.log10(count))))
    quiet = np.abs(correlation[1:]) < noise
    calm = np.flatnonzero(np.convolve(quiet, np.ones(run), "valid") == run) if len(quiet) >= run else []
    last = int(calm[0]) if len(calm) else longest // 2
    reach = min(2 * max(last, 1), longest - 1)
    lag = np.arange(1, reach + 1)
    weighted = np.clip(2 * (1 - lag / reach), 0, 1) * covariance[1 : reach + 1]
    spread = covariance[0] + 2 * weighted.sum()
    bias = 2 * (lag * weighted).sum()
    automatic = (1.5 * (bias / spread) ** 2 * count) ** (1 / 3) if spread > 0 else float(longest)
    mean_length = count / len(series)
    first = float(correlation[1])
    if first < 2 / math.sqrt(count):
        return LENGTHENING * automatic
    first = min(first + (1 + 4 * first) / mean_length, 0.995)
    return max(LENGTHENING * automatic, TIMES * 2 * first / (1 - first**2))


def _autocovariance(series: Array, longest: int) -> Array:
    """Sums of products at each lag from 0 to `longest` − 1."""
    size = 2 * longest
    spectrum = np.abs(np.fft.rfft(series, size)) ** 2
    return np.fft.irfft(spectrum, size)[:longest]


def _groups_differ(groups: Sequence[str], unit: Integers, residuals: Array) -> bool:
    """Whether the groups differ by more than their blocks explain, in any number; also where each group
    is one block, so that nothing is known of it."""
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    count = int(group.max()) + 1
    if count < 2:
        return False
    size = np.bincount(unit).astype(float)
    of_unit = np.zeros(len(size), dtype=np.int64)
    of_unit[unit] = group
    free = len(size) - count
    if free < 1:
        return True
    smallest = 1.0
    for column in residuals.T:
        means = np.bincount(unit, weights=column) / size
        weight = np.bincount(of_unit, weights=size)
        centre = np.bincount(of_unit, weights=size * means) / weight
        between = (weight * (centre - column.mean()) ** 2).sum() / (count - 1)
        within = (size * (means - centre[of_unit]) ** 2).sum() / free
        if between > 0:
            ratio = between / within if within > 0 else math.inf
            smallest = min(smallest, float(stats.f.sf(ratio, count - 1, free)))
    return smallest * residuals.shape[1] < DOUBT


def _evidence(groups: Sequence[str]) -> float:
    """The number of groups of equal size that would weigh as much as these (Kish 1965)."""
    _, sizes = np.unique(np.asarray(groups), return_counts=True)
    return float(sizes.sum() ** 2 / (sizes.astype(float) ** 2).sum()) if len(sizes) else 0.0
