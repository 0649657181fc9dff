"""One reading of a pool of any size: how much there is, and the few candidates that a queue can be made of.

Legend: N candidates of a block, K kept ones. An order is a priority, and a number drawn for each candidate
that says which of two equal ones comes first. Of each order (over all, inside each predicted class, and of
the audit's draw) only the best are kept: memory follows the budget and the number of classes, not the pool.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import ceil

import numpy as np
import numpy.typing as npt

from pipeline.acquisition.budget import STRATIFIED_SHARE, audit_size
from pipeline.acquisition.candidates import Candidates
from pipeline.acquisition.draws import Draws
from pipeline.acquisition.quantiles import Quantiles
from pipeline.acquisition.routing import INFORMATION_SHARES, UNSURE_SHARES
from pipeline.acquisition.strategies import Priority

OVERALL, AUDIT = -1, -2
"""Orders beside those inside classes, which go by the class."""
SPARE = 1000
"""Candidates that each order keeps beyond a multiple of what may be chosen from it."""
ROOM = 50_000
"""Candidates that may wait before the worst of them are dropped."""


@dataclass(frozen=True)
class KeepLimits:
    """How many candidates of each order are kept.

    Attributes:
        requested: the budget that the audit's order is long enough for.
        oversampling: candidates kept for each one that may be chosen: redundancy control passes some over.
    """

    requested: int
    oversampling: int
    audit_fraction: float

    def of(self, order: int, *, classes: int) -> int:
        """Of one order, when so many classes are predicted: the more there are, the less each may choose."""
        if order == AUDIT:
            return audit_size(self.requested, self.audit_fraction) + 1
        wanted = self.requested if order == OVERALL else ceil(self.requested * STRATIFIED_SHARE / classes) + 1
        return self.oversampling * wanted + SPARE


@dataclass(frozen=True)
class _Rows:
    """Candidates [K], and where each stands in every order."""

    candidates: Candidates
    place: npt.NDArray[np.int64]
    """[K]: how many candidates were read before it."""
    priority: Priority
    tie: npt.NDArray[np.uint64]
    within_tie: npt.NDArray[np.uint64]
    audit: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.candidates)

    def only(self, rows: npt.NDArray[np.int64]) -> _Rows:
        within = self.priority.within_class
        return _Rows(
            candidates=self.candidates.only(rows),
            place=self.place[rows],
            priority=Priority(self.priority.overall[rows], None if within is None else within[rows]),
            tie=self.tie[rows],
            within_tie=self.within_tie[rows],
            audit=self.audit[rows],
        )

    def of(self, order: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.uint64]]:
        """The rows that an order ranks, their priorities and their numbers."""
        if order == AUDIT:
            return np.arange(len(self)), np.zeros(len(self)), self.audit
        if order == OVERALL:
            return np.arange(len(self)), self.priority.overall, self.tie
        rows = np.flatnonzero(self.candidates.predicted_class == order)
        if self.priority.within_class is None:
            raise ValueError("Expected a priority within classes, but got None.")
        return rows, self.priority.within_class[rows], self.within_tie[rows]


@dataclass
class Shortlist:
    """What one reading has found; `add` each block, then `close`.

    Attributes:
        available: candidates.
        images, regions: of the pool, candidates or not.
        classes: candidates of each predicted class.
        kept: [K] in the order of reading.
        place: [K] how many candidates were read before each.
        orders: the best of each order, as rows of `kept`, first one first.
    """

    draws: Draws
    limits: KeepLimits
    stratified: bool
    available: int = 0
    images: int = 0
    regions: int = 0
    classes: Counter[int] = field(default_factory=Counter)
    information: Quantiles = field(default_factory=lambda: Quantiles(INFORMATION_SHARES))
    entropy: Quantiles = field(default_factory=lambda: Quantiles(UNSURE_SHARES))
    orders: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict)
    _waiting: list[_Rows] = field(default_factory=list)
    _room: int = ROOM
    _worst: dict[int, tuple[float, int]] = field(default_factory=dict)

    @property
    def kept(self) -> Candidates:
        return self._waiting[0].candidates

    @property
    def place(self) -> npt.NDArray[np.int64]:
        return self._waiting[0].place

    def add(self, block: Candidates, priority: Priority) -> None:
        """Count a block, and keep of it what may be chosen."""
        first = self.available
        self.available += len(block)
        self.images += len(block.image_id)
        self.regions += int(block.regions.sum())
        names, counts = np.unique(block.predicted_class, return_counts=True)
        self.classes.update(dict(zip(names.tolist(), counts.tolist(), strict=True)))
        if block.expected_entropy is not None and block.mutual_information is not None:
            self.entropy.count(block.expected_entropy)
            self.information.count(block.mutual_information)
        owner, index = block.owner, block.region_index
        rows = _Rows(
            candidates=block,
            place=np.arange(first, self.available),
            priority=priority,
            tie=self.draws.integers("overall", owner, index),
            within_tie=self.draws.integers("within_class", owner, index),
            audit=self.draws.integers("audit", owner, index),
        )
        good = np.zeros(len(block), dtype=bool)
        for order in (AUDIT, OVERALL, *(names.tolist() if self.stratified else ())):
            members, value, tie = rows.of(order)
            if order in self._worst:
                worst, last = self._worst[order]
                members = members[(value > worst) | ((value == worst) & (tie <= np.uint64(last)))]
            good[members] = True
        self._waiting.append(rows.only(np.flatnonzero(good)))
        if sum(map(len, self._waiting)) > self._room:
            self.close()

    def close(self) -> None:
        """Drop what is not among the best of any order.

        Raises:
            LookupError: no block was added.
        """
        if not self._waiting:
            raise LookupError("Expected at least one block of candidates, but got none.")
        rows = _joined(self._waiting)
        self._waiting = []  # before the rest is copied
        keep = np.zeros(len(rows), dtype=bool)
        for order in (AUDIT, OVERALL, *(self.classes if self.stratified else ())):
            members, value, tie = rows.of(order)
            depth = self.limits.of(order, classes=len(self.classes))
            best = _best(value, tie, depth)
            self.orders[order] = members[best]
            keep[members[best]] = True
            if len(best) == depth:
                self._worst[order] = float(value[best[-1]]), int(tie[best[-1]])
        kept = np.flatnonzero(keep)
        self.orders = {order: np.searchsorted(kept, best) for order, best in self.orders.items()}
        self._waiting = [rows.only(kept)]
        self._room = len(kept) + len(kept) // 4 + ROOM

    def is_whole(self, order: int) -> bool:
        """Whether an order holds all that it ranks."""
        return len(self.orders[order]) == (self.classes[order] if order >= 0 else self.available)


def _best(value: npt.NDArray[np.float64], tie: npt.NDArray[np.uint64], depth: int) -> npt.NDArray[np.int64]:
    """The first `depth` of an order, or all where there are fewer."""
    some = np.arange(len(value))
    if len(value) > depth:
        some = np.flatnonzero(value >= np.partition(value, len(value) - depth)[len(value) - depth])
    return some[np.lexsort((tie[some], -value[some]))][:depth]


def _joined(parts: list[_Rows]) -> _Rows:
    if len(parts) == 1:
        return parts[0]
    within = [part.priority.within_class for part in parts if part.priority.within_class is not None]
    return _Rows(
        candidates=Candidates.joined([part.candidates for part in parts]),
        place=np.concatenate([part.place for part in parts]),
        priority=Priority(
            overall=np.concatenate([part.priority.overall for part in parts]),
            within_class=np.concatenate(within) if within else None,
        ),
        tie=np.concatenate([part.tie for part in parts]),
        within_tie=np.concatenate([part.within_tie for part in parts]),
        audit=np.concatenate([part.audit for part in parts]),
    )
