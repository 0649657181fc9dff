"""How far calibration reorders a queue: the same regions, ranked with and without it.

Legend: R regions.

A temperature changes no predicted class, but it does change entropies by different amounts, and so the order
in which regions are labeled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

FEWEST_AT_TOP = 10


@dataclass(frozen=True)
class Reordering:
    """Attributes:
    spearman: rank correlation of the two orders; NaN where one of them has no order.
    top_overlap: share of the top that is in both.
    top: regions that count as the top.
    regions: R.
    """

    spearman: float
    top_overlap: float
    top: int
    regions: int


def compare_orders(
    before: npt.NDArray[np.floating], after: npt.NDArray[np.floating], *, share: float
) -> Reordering:
    """Spearman's rank correlation (ties at their mean rank), and how much of the top stays.

    Args:
        before, after: scores [R] of the same regions, larger first; the earlier region first if equal.
        share: of the regions, as in a queue; at least 10 regions count as the top.

    >>> compare_orders(np.arange(20.0), np.arange(20.0)[::-1], share=0.5)
    Reordering(spearman=-1.0, top_overlap=0.0, top=10, regions=20)

    Raises:
        ValueError: there is no region, or not as many before as after.
    """
    if before.shape != after.shape or before.ndim != 1 or len(before) == 0:
        raise ValueError(f"Expected two arrays of one length, but got {before.shape} and {after.shape}.")
    regions = len(before)
    top = min(regions, max(FEWEST_AT_TOP, round(share * regions)))
    first, second = (set(np.argsort(-scores, kind="stable")[:top].tolist()) for scores in (before, after))
    ranks = [rankdata(scores) for scores in (before, after)]
    ordered = all(np.ptp(rank) > 0 for rank in ranks)
    correlation = float(np.corrcoef(*ranks)[0, 1]) if ordered else math.nan
    return Reordering(
        spearman=round(correlation, 9), top_overlap=len(first & second) / top, top=top, regions=regions
    )
