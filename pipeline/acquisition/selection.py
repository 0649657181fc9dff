"""Choosing a queue: the audit draw, then the strategy's order under redundancy control.

Legend: K items of the queue.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.acquisition.budget import Budget, class_quotas, deficit_weights, queue_budget, requested_size
from pipeline.acquisition.candidates import Candidates, Reading
from pipeline.acquisition.coverage import NEAR_DUPLICATE, Cover, Embed, cover
from pipeline.acquisition.draws import Draws
from pipeline.acquisition.redundancy import Occupancy, Similarity
from pipeline.acquisition.shortlist import AUDIT, OVERALL, KeepLimits, Shortlist
from pipeline.acquisition.strategies import STRATEGIES, Plan, Stride, per_cost, with_power_noise
from pipeline.config import SelectionConfig

NO_STRATUM = -1
OVERSAMPLING = 4
"""Candidates kept for each one to be chosen, in the first reading."""
OVERSAMPLING_GROWTH = 8
"""Factor on `OVERSAMPLING` for each further reading, when redundancy control has used the kept ones up."""


@dataclass(frozen=True)
class Selection:
    """The chosen candidates in the order of the queue."""

    items: Candidates
    """[K]: in the order of the queue, not of images."""
    index: npt.NDArray[np.int64]
    """[K]: their positions in the order of reading."""
    audit: npt.NDArray[np.bool_]
    """[K]: drawn by the audit, not by the strategy."""
    stratum: npt.NDArray[np.int16]
    """[K]: the class whose budget an item was chosen from, or `NO_STRATUM`."""
    inclusion_probability: float | None
    """Of each audit item; None without an audit."""
    budget: Budget
    shortlist: Shortlist
    """What they were chosen from."""


class EmptyPool(Exception):
    """The reading of the pool has no block."""


class _TooFewKept(Exception):
    """An order has used up its kept candidates, although the pool has more."""


def choose(
    read: Reading,
    config: SelectionConfig,
    *,
    round_number: int,
    embed: Embed | None = None,
    class_shares: Sequence[float] | None = None,
) -> Selection:
    """The queue of a round. The same candidates, settings and round give the same queue, in whatever blocks
    they are read.

    The slices alternate, so that a queue of which only a part is labeled still holds each of them in
    proportion. Memory follows the budget. The pool is read once, and again with more candidates kept where
    redundancy control has rejected too many (and once before that for `strided`, twice for `coverage`).

    Args:
        embed: features of candidates, for `coverage` and for `max_similarity`.
        class_shares: [C] of the labeled pixels, for `class_power`; None where they are not known.

    Raises:
        EmptyPool: the reading has no block.
    """
    draws = Draws(seed=config.seed, round_number=round_number)
    weights = None
    if class_shares is not None and config.class_power:
        weights = deficit_weights(class_shares, config.class_power)
    plan = _plan(read, config, draws, embed)
    requested, oversampling = None, OVERSAMPLING
    while True:
        shortlist = _shortlist(
            read(), config, draws, plan, requested=requested, oversampling=oversampling, weights=weights
        )
        budget = queue_budget(config, shortlist.regions / max(1, shortlist.images), shortlist.available)
        requested = budget.requested
        if requested > shortlist.limits.requested:
            continue  # the first block had smaller images than the others
        try:
            return _choose_from(
                shortlist, config, budget, similarity=_similarity(shortlist, config, plan, embed)
            )
        except _TooFewKept:
            oversampling *= OVERSAMPLING_GROWTH


def _choose_from(
    shortlist: Shortlist, config: SelectionConfig, budget: Budget, *, similarity: Similarity | None
) -> Selection:
    kept = shortlist.candidates
    occupancy = Occupancy(kept, config, similarity)
    audit = shortlist.orders[AUDIT][: budget.audit]
    for index in audit.tolist():
        occupancy.accept(index)
    chosen = list(_fill(shortlist, budget.selected, occupancy))

    turns = np.concatenate([_spread(len(audit)), _spread(len(chosen))])
    order = np.argsort(turns, kind="stable")
    rows = np.concatenate([audit, np.array([index for index, _ in chosen], dtype=np.int64)])[order]
    strata = [NO_STRATUM] * len(audit) + [stratum for _, stratum in chosen]
    return Selection(
        items=kept.only(rows),
        index=shortlist.position[rows],
        audit=(np.arange(len(turns)) < len(audit))[order],
        stratum=np.array(strata, dtype=np.int16)[order],
        inclusion_probability=budget.audit / shortlist.available if budget.audit else None,
        budget=budget,
        shortlist=shortlist,
    )


def _shortlist(
    blocks: Iterable[Candidates],
    config: SelectionConfig,
    draws: Draws,
    plan: Plan | None,
    *,
    requested: int | None,
    oversampling: int,
    weights: dict[int, float] | None,
) -> Shortlist:
    """One reading. Without `requested`, the first block says how many regions an image has."""
    strategy = STRATEGIES[config.strategy]
    shortlist = None
    for block in blocks:
        priority = strategy.rank(block, draws, plan)
        if config.cost_power and strategy.measure is not None:
            priority = per_cost(priority, block, power=config.cost_power)
        if config.noise_beta is not None and strategy.takes_noise:
            priority = with_power_noise(priority, block, draws, beta=config.noise_beta)
        if shortlist is None:
            if requested is None:
                requested = requested_size(
                    config, float(np.mean(block.regions)) if len(block.regions) else 1.0
                )
            shortlist = Shortlist(
                draws=draws,
                limits=KeepLimits(
                    requested=requested, oversampling=oversampling, audit_fraction=config.audit_fraction
                ),
                stratified=priority.within_class is not None,
                weights=weights,
            )
        shortlist.add(block, priority)
    if shortlist is None:
        raise EmptyPool
    shortlist.close()
    return shortlist


def _similarity(
    shortlist: Shortlist, config: SelectionConfig, plan: Plan | None, embed: Embed | None
) -> Similarity | None:
    """The features of the kept candidates, where nearly the same ones come last."""
    if isinstance(plan, Cover):
        return Similarity(plan.embed(shortlist.candidates), config.max_similarity or NEAR_DUPLICATE)
    if config.max_similarity is None or embed is None:
        return None
    return Similarity(embed(shortlist.candidates), config.max_similarity)


def _plan(read: Reading, config: SelectionConfig, draws: Draws, embed: Embed | None) -> Plan | None:
    """What the strategy needs to know of the whole pool before it ranks."""
    kind = STRATEGIES[config.strategy].plans
    if kind is None:
        return None
    if kind is Stride:
        return _stride(read(), config)
    if embed is None:
        raise ValueError("Expected features for `coverage`, but got None.")
    images = regions = available = 0
    for block in read():
        images, regions = images + len(block.image_id), regions + int(block.regions.sum())
        available += len(block)
    if not available:
        raise EmptyPool
    budget = queue_budget(config, regions / max(1, images), available)
    return cover(read, embed, draws, clusters=budget.selected, available=available)


def _stride(blocks: Iterable[Candidates], config: SelectionConfig) -> Stride:
    """The walk through the images that have a candidate: one reading, about 20 bytes an image."""
    walked: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.int64]]] = []
    images = regions = available = 0
    for block in blocks:
        owners = np.unique(block.image)
        walked.append((block.image_id[owners], block.group[owners], block.position[owners]))
        images, regions = images + len(block.image_id), regions + int(block.regions.sum())
        available += len(block)
    if not walked:
        raise EmptyPool
    budget = queue_budget(config, regions / max(1, images), available)
    image_id, group, position = (np.concatenate(columns) for columns in zip(*walked, strict=True))
    return Stride.over(image_id, group, position, budget.selected)


def _fill(shortlist: Shortlist, size: int, occupancy: Occupancy) -> Iterator[tuple[int, int]]:
    """Kept candidates, each with the stratum that it is chosen for. What a stratum cannot fill goes to
    all candidates.

    Raises:
        _TooFewKept: more candidates must be kept.
    """
    quotas = class_quotas(shortlist.classes, size, shortlist.weights) if shortlist.stratified else {}
    sources = {
        NO_STRATUM: occupancy.open_candidates(shortlist.orders[OVERALL]),
        **{name: occupancy.open_candidates(shortlist.orders[name]) for name in quotas},
    }

    def take(stratum: int) -> int | None:
        index = next(sources[stratum], None)
        if index is not None:
            occupancy.accept(index)
        elif not shortlist.is_complete(OVERALL if stratum == NO_STRATUM else stratum):
            raise _TooFewKept
        return index

    taken = 0
    for stratum in _in_turn(quotas | {NO_STRATUM: size - sum(quotas.values())}):
        if (index := take(stratum)) is not None:
            taken += 1
            yield index, stratum
    while taken < size and (index := take(NO_STRATUM)) is not None:
        taken += 1
        yield index, NO_STRATUM


def _in_turn(quotas: dict[int, int]) -> list[int]:
    """Each stratum as often as its quota says, evenly spread.

    >>> _in_turn({7: 1, -1: 3})
    [-1, 7, -1, -1]
    """
    names = np.repeat(list(quotas), list(quotas.values()))
    turns = np.concatenate([_spread(quota) for quota in quotas.values()])
    return names[np.argsort(turns, kind="stable")].tolist()


def _spread(count: int) -> npt.NDArray[np.float64]:
    """`count` numbers, evenly spaced between 0 and 1."""
    return (np.arange(count) + 0.5) / max(1, count)
