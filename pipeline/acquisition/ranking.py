"""Ranks of a queue's items among all candidates, counted in a second reading of the pool.

Legend: N candidates of a block, K items of the queue.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.acquisition.candidates import Candidates, Reading
from pipeline.acquisition.quantiles import Quantiles
from pipeline.acquisition.routing import Limits
from pipeline.acquisition.selection import NO_STRATUM, Selection


@dataclass(frozen=True)
class Ranks:
    """Ranks of the items [K].

    Attributes:
        overall: [K] candidates that score at least as high, the item included; 0 without a score.
        in_class: [K] the rank in an item's stratum by score × class share, from 1 on; 0 without a stratum or
            score.
        limits: thresholds of the routes, from quantiles over all candidates.
    """

    overall: npt.NDArray[np.int64]
    in_class: npt.NDArray[np.int64]
    limits: Limits | None


def rank_items(read: Reading, selection: Selection) -> Ranks:
    """The ranks of a selection's items, from one reading of the pool. The selection stays as it is."""
    items, shortlist = selection.items, selection.shortlist
    scores = None if items.score is None else _Counts(items.score)
    strata = {
        int(stratum): _Counts(_weighted(items)[selection.stratum == stratum])
        for stratum in np.unique(selection.stratum[selection.stratum != NO_STRATUM])
        if items.score is not None
    }
    information, entropy = Quantiles(shortlist.information), Quantiles(shortlist.entropy)
    if scores is not None or shortlist.information.total:
        for block in read():
            if scores is not None and block.score is not None:
                scores.add(block.score)
            if block.expected_entropy is not None and block.mutual_information is not None:
                entropy.count(block.expected_entropy)
                information.count(block.mutual_information)
            for stratum, counts in strata.items():
                counts.add(_weighted(block)[block.stratum == stratum])
    in_class = np.zeros(len(items), dtype=np.int64)
    for stratum, counts in strata.items():
        in_class[selection.stratum == stratum] = counts.above() + 1
    return Ranks(
        overall=np.zeros(len(items), dtype=np.int64) if scores is None else scores.at_least(),
        in_class=in_class,
        limits=Limits.of(information, entropy),
    )


class _Counts:
    """For each of a few thresholds: how many values are at least as large, and how many are larger."""

    def __init__(self, thresholds: npt.NDArray[np.float32]) -> None:
        self._rising, self._position = np.unique(thresholds, return_inverse=True)
        # [j]: values with exactly j thresholds at or below them, and with exactly j below them
        self._at_or_below = np.zeros(len(self._rising) + 1, dtype=np.int64)
        self._below = np.zeros(len(self._rising) + 1, dtype=np.int64)

    def add(self, values: npt.NDArray[np.float32]) -> None:
        size = len(self._below)
        self._at_or_below += np.bincount(np.searchsorted(self._rising, values, side="right"), minlength=size)
        self._below += np.bincount(np.searchsorted(self._rising, values, side="left"), minlength=size)

    def at_least(self) -> npt.NDArray[np.int64]:
        return self._at_or_below[::-1].cumsum()[::-1][1:][self._position]

    def above(self) -> npt.NDArray[np.int64]:
        return self._below[::-1].cumsum()[::-1][1:][self._position]


def _weighted(candidates: Candidates) -> npt.NDArray[np.float32]:
    if candidates.score is None:
        raise ValueError("Expected candidates with a score, but got `score` None.")
    return candidates.score * candidates.stratum_share
