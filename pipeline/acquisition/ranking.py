"""Where the chosen stand among all candidates: a second reading, for what a person is told.

Legend: N candidates of a block, K items of the queue.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.acquisition.candidates import Candidates, Reading
from pipeline.acquisition.routing import Limits
from pipeline.acquisition.selection import NO_STRATUM, Selection


@dataclass(frozen=True)
class Ranks:
    """Places of the items [K] among all candidates.

    Attributes:
        above: [K] candidates that score at least as high, the item included; 0 without a score.
        rank: [K] in an item's stratum by score × class share, from 1 on; 0 without a stratum or a score.
        limits: of what is routed.
    """

    above: npt.NDArray[np.int64]
    rank: npt.NDArray[np.int64]
    limits: Limits | None


def rank_items(read: Reading, selection: Selection) -> Ranks:
    """Count, over the whole pool, what stands above each item."""
    items, shortlist = selection.items, selection.shortlist
    scores = None if items.score is None else _Counts(items.score)
    strata = {
        int(stratum): _Counts(_weighted(items)[selection.stratum == stratum])
        for stratum in np.unique(selection.stratum[selection.stratum != NO_STRATUM])
        if items.score is not None
    }
    if scores is not None or shortlist.information.total:
        for block in read():
            if scores is not None and block.score is not None:
                scores.add(block.score)
            if block.expected_entropy is not None and block.mutual_information is not None:
                shortlist.entropy.refine(block.expected_entropy)
                shortlist.information.refine(block.mutual_information)
            for stratum, counts in strata.items():
                counts.add(_weighted(block)[block.predicted_class == stratum])
    rank = np.zeros(len(items), dtype=np.int64)
    for stratum, counts in strata.items():
        rank[selection.stratum == stratum] = counts.above() + 1
    return Ranks(
        above=np.zeros(len(items), dtype=np.int64) if scores is None else scores.at_least(),
        rank=rank,
        limits=Limits.of(shortlist.information, shortlist.entropy),
    )


class _Counts:
    """How many of many values lie at or above each of a few, and how many above."""

    def __init__(self, values: npt.NDArray[np.float32]) -> None:
        self._rising, self._place = np.unique(values, return_inverse=True)
        self._below = np.zeros(
            len(self._rising) + 1, dtype=np.int64
        )  # [j]: j of the few are at most the value
        self._under = np.zeros(len(self._rising) + 1, dtype=np.int64)  # [j]: j of the few are below it

    def add(self, values: npt.NDArray[np.float32]) -> None:
        size = len(self._below)
        self._below += np.bincount(np.searchsorted(self._rising, values, side="right"), minlength=size)
        self._under += np.bincount(np.searchsorted(self._rising, values, side="left"), minlength=size)

    def at_least(self) -> npt.NDArray[np.int64]:
        return self._below[::-1].cumsum()[::-1][1:][self._place]

    def above(self) -> npt.NDArray[np.int64]:
        return self._under[::-1].cumsum()[::-1][1:][self._place]


def _weighted(candidates: Candidates) -> npt.NDArray[np.float32]:
    if candidates.score is None:
        raise ValueError("Expected candidates with a score, but got `score` None.")
    return candidates.score * candidates.class_share
