"""Rank correlation of the scores of regions with their errors, with an interval over independent units.

Legend: n regions, b units, R resamples, S score bins, U error bins.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.stats import rankdata

from pipeline.evaluation.bootstrap import BlockBootstrap
from pipeline.evaluation.estimate import Estimate

Array = npt.NDArray[np.float64]

RANK_BINS = 48
"""Quantile bins of the untied values of each side, for the resamples only."""


def rank_correlation(
    score: Array, error: Array, unit: npt.NDArray[np.int64], *, bootstrap: BlockBootstrap
) -> Estimate:
    """Spearman's rank correlation of n scores and errors, ties at their mean rank.

    The value is exact; each resample is ranked again, in quantile bins.

    Args:
        score, error: [n].
        unit: [n], the independent unit of each region, below the bootstrap's number of units.
    """
    if len(score) < 2:
        return Estimate(np.nan)
    count = bootstrap.count
    columns, rows = _quantile_bin(score), _quantile_bin(error)
    table = np.zeros((count, columns.max() + 1, rows.max() + 1))
    np.add.at(table, (unit, columns, rows), 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = bootstrap.interval(_correlation, table, within=(-1.0, 1.0))
        value = np.corrcoef(rankdata(score), rankdata(error))[0, 1]
    return Estimate(float(value), float(low), float(high))


def correlation_residuals(score: Array, error: Array) -> Array:
    """What each region adds to the rank correlation beyond its share: [n] (the influence of Devlin,
    Gnanadesikan & Kettenring 1975, of ranks)."""
    first, second = (np.asarray(stats.zscore(rankdata(values)), np.float64) for values in (score, error))
    correlation = float((first * second).mean())
    return first * second - correlation * (first**2 + second**2) / 2


def _quantile_bin(values: Array) -> npt.NDArray[np.int64]:
    """[n] bins, monotone in the values. A value that 1/48 of all share has a bin of its own; the others are
    in bins of about equal mass."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    tied = counts * RANK_BINS >= len(values)
    others = np.where(tied, 0, counts)
    quantile = (others.cumsum() - others) * RANK_BINS // max(others.sum(), 1)
    begins = np.diff(quantile, prepend=-1).astype(bool) | tied | np.roll(tied, 1)
    return (begins.cumsum() - 1)[inverse]


def _correlation(table: Array) -> Array:
    """Spearman's correlation [R] of joint histograms [R, S, U]."""
    total = table.sum(axis=(1, 2))[:, None]
    centred: list[Array] = []
    variance: list[Array] = []
    for axis in (2, 1):
        margin = table.sum(axis=axis)
        rank = margin.cumsum(axis=1) - margin / 2 - total / 2
        centred.append(rank)
        variance.append((margin * rank**2).sum(axis=1))
    product = np.einsum("rsu,rs,ru->r", table, centred[0], centred[1], optimize=True)
    return product / np.sqrt(variance[0] * variance[1])
