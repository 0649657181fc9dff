"""Choosing a queue: audit draw, then the strategy's order, thinned by redundancy control.

Legend: N candidates, K items of the queue.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.acquisition.audit import draw_audit
from pipeline.acquisition.budget import Budget, class_quotas, queue_budget
from pipeline.acquisition.candidates import Candidates
from pipeline.acquisition.redundancy import Occupancy
from pipeline.acquisition.strategies import STRATEGIES, Priority, ranked, with_power_noise
from pipeline.config import SelectionConfig

NO_STRATUM = -1


@dataclass(frozen=True)
class Selection:
    """The chosen candidates in the order of the queue."""

    index: npt.NDArray[np.int64]
    """[K]: rows of the candidates."""
    audit: npt.NDArray[np.bool_]
    """[K]: drawn by the audit, not by the strategy."""
    stratum: npt.NDArray[np.int16]
    """[K]: the class in whose budget an item was chosen, or `NO_STRATUM`."""
    inclusion_probability: float | None
    """Of each audit item."""
    budget: Budget


def choose(candidates: Candidates, config: SelectionConfig, *, round_number: int) -> Selection:
    """The queue of a round. The same candidates, settings and round give the same queue.

    The slices are woven into each other, so that a queue which is labeled only in part still holds each of
    them in proportion.
    """
    audit_rng, strategy_rng = (
        np.random.default_rng([config.seed % 2**63, round_number, stream]) for stream in range(2)
    )
    budget = queue_budget(config, candidates.regions, len(candidates))
    occupancy = Occupancy(candidates, config)
    audit, probability = draw_audit(len(candidates), budget.audit, audit_rng)
    for index in audit.tolist():
        occupancy.accept(index)

    strategy = STRATEGIES[config.strategy]
    priority = strategy.rank(candidates, budget.selected, strategy_rng)
    if config.noise_beta is not None and strategy.takes_noise:
        priority = with_power_noise(priority, beta=config.noise_beta, rng=strategy_rng)
    chosen = list(_fill(candidates, priority, budget.selected, occupancy, strategy_rng))

    turns = np.concatenate([_spread(len(audit)), _spread(len(chosen))])
    order = np.argsort(turns, kind="stable")
    strata = [NO_STRATUM] * len(audit) + [stratum for _, stratum in chosen]
    return Selection(
        index=np.concatenate([audit, np.array([index for index, _ in chosen], dtype=np.int64)])[order],
        audit=(np.arange(len(turns)) < len(audit))[order],
        stratum=np.array(strata, dtype=np.int16)[order],
        inclusion_probability=probability,
        budget=budget,
    )


def _fill(
    candidates: Candidates,
    priority: Priority,
    wanted: int,
    occupancy: Occupancy,
    rng: np.random.Generator,
) -> Iterator[tuple[int, int]]:
    """Candidates and the strata that they were chosen for. What a stratum cannot fill goes to all."""
    overall = occupancy.open_ones(ranked(priority.overall, rng))
    sources = {NO_STRATUM: overall}
    quotas = {NO_STRATUM: wanted}
    if priority.within_class is not None:
        inside = ranked(priority.within_class, rng)
        classes = candidates.predicted_class[inside]
        quotas = class_quotas(candidates.predicted_class, wanted)
        sources |= {name: occupancy.open_ones(inside[classes == name]) for name in quotas}
        quotas[NO_STRATUM] = wanted - sum(quotas.values())
    taken = 0
    for stratum in _in_turn(quotas):
        index = next(sources[stratum], None)
        if index is not None:
            occupancy.accept(index)
            taken += 1
            yield index, stratum
    while taken < wanted and (index := next(overall, None)) is not None:
        occupancy.accept(index)
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
    """`count` numbers evenly over 0 to 1."""
    return (np.arange(count) + 0.5) / max(1, count)
