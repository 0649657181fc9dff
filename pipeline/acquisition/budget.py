"""Budgets: how many candidates a queue holds, and how they are divided.

The audit slice of a queue is a simple random sample of the pool, without replacement: the candidates with the
smallest random keys. The strategy, the cap and the gap do not affect it, so every candidate is in it with the
same known probability, and it gives unbiased estimates of the pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.config import SelectionConfig

STRATIFIED_SHARE = 2 / 3
RAREST_SHARE = 1e-3
"""The share of the labeled pixels below which a class counts as equally rare."""


@dataclass(frozen=True)
class Budget:
    """A queue's length in candidates, and its two slices."""

    requested: int
    """As the configuration asks for."""
    total: int
    """`requested`, but no more than the candidates available."""
    audit: int
    selected: int


def requested_size(config: SelectionConfig, mean_regions: float) -> int:
    """The candidates that a configuration asks for, with `mean_regions` regions an image.

    >>> requested_size(SelectionConfig(budget=2, budget_unit="images"), 49)
    98
    """
    if config.unit == "region" and config.budget_unit == "images":
        return max(1, round(config.budget * mean_regions))
    return config.budget


def queue_budget(config: SelectionConfig, mean_regions: float, available: int) -> Budget:
    """The budget in candidates.

    Args:
        config: `budget`, `budget_unit`, `unit` and `audit_fraction` are read.
        mean_regions: regions an image, for a budget that is counted in images.
        available: candidates in the pool.

    >>> queue_budget(SelectionConfig(budget=2, budget_unit="images"), 49, 90)
    Budget(requested=98, total=90, audit=9, selected=81)
    """
    requested = requested_size(config, mean_regions)
    total = min(requested, available)
    audit = audit_size(total, config.audit_fraction)
    return Budget(requested=requested, total=total, audit=audit, selected=total - audit)


def audit_size(total: int, fraction: float) -> int:
    """Candidates of the audit slice, rounded, but at least one in a queue of two or more.

    >>> [audit_size(total, 0.1) for total in (1, 2, 14, 16, 100)]
    [0, 1, 1, 2, 10]
    """
    nearest = round(total * fraction)
    return 1 if nearest == 0 and fraction > 0 and total > 1 else nearest


def class_quotas(
    counts: Mapping[int, int], selected: int, weights: Mapping[int, float] | None = None
) -> dict[int, int]:
    """The budget of each stratum, rarest class first: two thirds of the whole, in proportion to the weights
    or evenly. What whole numbers leave over goes to the largest remainders, of equal ones to the rarest
    classes.

    Args:
        counts: candidates of each stratum.
        selected: candidates to choose.
        weights: of each class, larger than 0; see `deficit_weights`.

    >>> class_quotas({0: 3, 4: 2, 7: 1}, 12)
    {7: 3, 4: 3, 0: 2}
    >>> class_quotas({0: 3, 4: 2, 7: 1}, 12, {0: 1, 4: 1, 7: 2})
    {7: 4, 4: 2, 0: 2}
    """
    if not counts:
        return {}
    rarest_first = sorted(counts, key=lambda name: (counts[name], name))
    total = round(selected * STRATIFIED_SHARE)
    parts = [1.0 if weights is None else weights[name] for name in rarest_first]
    exact = [total * part / sum(parts) for part in parts]
    quotas = [int(part + 1e-9) for part in exact]
    by_remainder = sorted(range(len(parts)), key=lambda turn: round(quotas[turn] - exact[turn], 9))
    for turn in by_remainder[: total - sum(quotas)]:
        quotas[turn] += 1
    return dict(zip(rarest_first, quotas, strict=True))


def deficit_weights(class_shares: Sequence[float], power: float) -> dict[int, float]:
    """The weight of each class in the budget: its share of the labeled pixels to the power of −`power`.

    Args:
        class_shares: [C]; a class below `RAREST_SHARE` counts as that rare.

    >>> deficit_weights([0.8, 0.2], 0.5)
    {0: 1.118..., 1: 2.236...}
    """
    return {name: max(share, RAREST_SHARE) ** -power for name, share in enumerate(class_shares)}
