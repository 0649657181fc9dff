"""One reading of a pool of any size: counts over all candidates, and the few candidates that may be chosen.

Legend: N candidates of a block, K kept ones. An order ranks candidates by a priority, equal ones by a random
key. Of each order (over all candidates, inside each stratum, and of the audit's draw) only the best
are kept: memory follows the budget and the number of classes, not the pool.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

import numpy as np
import numpy.typing as npt

from pipeline.acquisition.budget import STRATIFIED_SHARE, audit_size
from pipeline.acquisition.candidates import Candidates
from pipeline.acquisition.draws import Draws
from pipeline.acquisition.quantiles import QuantileBins
from pipeline.acquisition.routing import INFORMATION_SHARES, UNSURE_SHARES
from pipeline.acquisition.strategies import Priority

OVERALL, AUDIT = -1, -2
"""Orders over all candidates; any other order is a class index, and ranks the candidates of that class."""
SPARE = 1000
"""Candidates that each order keeps beyond a multiple of those that may be chosen from it."""
BUFFER = 50_000
"""Candidates beside the kept ones that are collected before the worst are dropped."""


@dataclass(frozen=True)
class KeepLimits:
    """The number of candidates that are kept of each order.

    Attributes:
        requested: the budget of the queue.
        oversampling: candidates kept for each one that may be chosen, as redundancy control rejects some.
    """

    requested: int
    oversampling: int
    audit_fraction: float

    def of(self, order: int, *, share: float) -> int:
        """The number for one order; `share` is a class's part of the stratified budget."""
        if order == AUDIT:
            return audit_size(self.requested, self.audit_fraction) + 1
        budget = self.requested if order == OVERALL else ceil(self.requested * STRATIFIED_SHARE * share) + 1
        return self.oversampling * budget + SPARE


@dataclass(frozen=True)
class _Rows:
    """Candidates [K] with their priorities and random keys."""

    candidates: Candidates
    position: npt.NDArray[np.int64]
    """[K]: in the order of reading."""
    priority: Priority
    overall_key: npt.NDArray[np.uint64]
    within_key: npt.NDArray[np.uint64]
    audit_key: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.candidates)

    def only(self, rows: npt.NDArray[np.int64]) -> _Rows:
        within = self.priority.within_class
        return _Rows(
            candidates=self.candidates.only(rows),
            priority=Priority(self.priority.overall[rows], None if within is None else within[rows]),
            **{name: getattr(self, name)[rows] for name in _COLUMNS},
        )

    @staticmethod
    def joined(parts: Sequence[_Rows]) -> _Rows:
        within = [part.priority.within_class for part in parts if part.priority.within_class is not None]
        return _Rows(
            candidates=Candidates.joined([part.candidates for part in parts]),
            priority=Priority(
                overall=np.concatenate([part.priority.overall for part in parts]),
                within_class=np.concatenate(within) if within else None,
            ),
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS},
        )

    def of(self, order: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.uint64]]:
        """The rows that an order ranks, their priorities and their random keys."""
        if order == AUDIT:
            return np.arange(len(self)), np.zeros(len(self)), self.audit_key
        if order == OVERALL:
            return np.arange(len(self)), self.priority.overall, self.overall_key
        rows = np.flatnonzero(self.candidates.stratum == order)
        if self.priority.within_class is None:
            raise ValueError("Expected a priority within classes, but got None.")
        return rows, self.priority.within_class[rows], self.within_key[rows]


_COLUMNS = ("position", "overall_key", "within_key", "audit_key")


@dataclass
class Shortlist:
    """The result of one reading; `add` each block, then `close`.

    Attributes:
        weights: of each class in the budget; None where it is split evenly.
        available: candidates of the pool.
        images, regions: of the pool, including those that are no candidates.
        classes: candidates of each stratum.
        candidates: [K] kept, in the order of reading.
        position: [K] in the order of reading, counted over the pool.
        orders: the best of each order, as rows of `candidates`, best first.
    """

    draws: Draws
    limits: KeepLimits
    stratified: bool
    weights: Mapping[int, float] | None = None
    available: int = 0
    images: int = 0
    regions: int = 0
    classes: Counter[int] = field(default_factory=Counter)
    information: QuantileBins = field(default_factory=lambda: QuantileBins(INFORMATION_SHARES))
    entropy: QuantileBins = field(default_factory=lambda: QuantileBins(UNSURE_SHARES))
    orders: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict)
    _parts: list[_Rows] = field(default_factory=list)
    _capacity: int = BUFFER
    _worst: dict[int, tuple[float, int]] = field(default_factory=dict)

    @property
    def candidates(self) -> Candidates:
        return self._parts[0].candidates

    @property
    def position(self) -> npt.NDArray[np.int64]:
        return self._parts[0].position

    def add(self, block: Candidates, priority: Priority) -> None:
        """Count a block, and keep the candidates of it that may be chosen."""
        first = self.available
        self.available += len(block)
        self.images += len(block.image_id)
        self.regions += int(block.regions.sum())
        names, counts = np.unique(block.stratum, return_counts=True)
        self.classes.update(dict(zip(names.tolist(), counts.tolist(), strict=True)))
        if block.expected_entropy is not None and block.mutual_information is not None:
            self.entropy.count(block.expected_entropy)
            self.information.count(block.mutual_information)
        owner, index = block.owner, block.region_index
        rows = _Rows(
            candidates=block,
            position=np.arange(first, self.available),
            priority=priority,
            overall_key=self.draws.integers("overall", owner, index),
            within_key=self.draws.integers("within_class", owner, index),
            audit_key=self.draws.integers("audit", owner, index),
        )
        good = np.zeros(len(block), dtype=bool)
        for order in (AUDIT, OVERALL, *(names.tolist() if self.stratified else ())):
            members, value, tie = rows.of(order)
            if order in self._worst:
                worst, last = self._worst[order]
                members = members[(value > worst) | ((value == worst) & (tie <= np.uint64(last)))]
            good[members] = True
        self._parts.append(rows.only(np.flatnonzero(good)))
        if sum(map(len, self._parts)) > self._capacity:
            self.close()

    def close(self) -> None:
        """Drop the candidates that are not among the best of any order."""
        rows = _Rows.joined(self._parts)
        self._parts = []  # frees memory before the rows are copied
        keep = np.zeros(len(rows), dtype=bool)
        for order in (AUDIT, OVERALL, *(self.classes if self.stratified else ())):
            members, value, tie = rows.of(order)
            depth = self.limits.of(order, share=self._share(order))
            best = _best(value, tie, depth)
            self.orders[order] = members[best]
            keep[members[best]] = True
            if len(best) == depth:
                self._worst[order] = float(value[best[-1]]), int(tie[best[-1]])
        kept = np.flatnonzero(keep)
        self.orders = {order: np.searchsorted(kept, best) for order, best in self.orders.items()}
        self._parts = [rows.only(kept)]
        self._capacity = len(kept) + len(kept) // 4 + BUFFER

    def _share(self, order: int) -> float:
        """The part of the stratified budget that a class gets."""
        if self.weights is None or order < 0:
            return 1 / max(1, len(self.classes))
        return self.weights[order] / sum(self.weights[name] for name in self.classes)

    def is_complete(self, order: int) -> bool:
        """Whether an order holds all candidates that it ranks."""
        return len(self.orders[order]) == (self.classes[order] if order >= 0 else self.available)


def _best(value: npt.NDArray[np.float64], tie: npt.NDArray[np.uint64], depth: int) -> npt.NDArray[np.int64]:
    """The first `depth` of an order, or all where there are fewer."""
    some = np.arange(len(value))
    if len(value) > depth:
        some = np.flatnonzero(value >= np.partition(value, len(value) - depth)[len(value) - depth])
    return some[np.lexsort((tie[some], -value[some]))][:depth]
