"""Budgets: how many candidates a queue holds, and how they are shared out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.config import SelectionConfig

STRATIFIED_SHARE = 2 / 3


@dataclass(frozen=True)
class Budget:
    """A queue's length in candidates, and its two slices."""

    asked: int
    """What the configuration asks for."""
    total: int
    """The same, but no more than there is."""
    audit: int
    selected: int


def asked_for(config: SelectionConfig, mean_regions: float) -> int:
    """The candidates that a configuration asks for, where an image has that many regions on average.

    >>> asked_for(SelectionConfig(budget=2, budget_unit="images"), 49)
    98
    """
    if config.unit == "region" and config.budget_unit == "images":
        return max(1, round(config.budget * mean_regions))
    return config.budget


def queue_budget(config: SelectionConfig, mean_regions: float, available: int) -> Budget:
    """The budget in candidates.

    Args:
        config: `budget`, `budget_unit`, `unit` and `audit_fraction` are read.
        mean_regions: of an image, for a budget of regions that is counted in images.
        available: candidates that there are.

    >>> queue_budget(SelectionConfig(budget=2, budget_unit="images"), 49, 90)
    Budget(asked=98, total=90, audit=9, selected=81)
    """
    asked = asked_for(config, mean_regions)
    total = min(asked, available)
    audit = audit_size(total, config.audit_fraction)
    return Budget(asked=asked, total=total, audit=audit, selected=total - audit)


def audit_size(total: int, fraction: float) -> int:
    """Candidates of the audit slice: the nearest whole number, but one at least in a queue of two or more.

    >>> [audit_size(total, 0.1) for total in (1, 2, 14, 16, 100)]
    [0, 1, 1, 2, 10]
    """
    nearest = round(total * fraction)
    return 1 if nearest == 0 and fraction > 0 and total > 1 else nearest


def class_quotas(counts: Mapping[int, int], selected: int) -> dict[int, int]:
    """Two thirds of a budget split evenly over the classes that are predicted; what is over goes to the
    rarest ones. Classes are listed from the rarest on.

    Args:
        counts: candidates of each predicted class.
        selected: candidates to choose.

    >>> class_quotas({0: 3, 4: 2, 7: 1}, 12)
    {7: 3, 4: 3, 0: 2}
    """
    if not counts:
        return {}
    rarest_first = sorted(counts, key=lambda name: (counts[name], name))
    each, over = divmod(round(selected * STRATIFIED_SHARE), len(rarest_first))
    return {name: each + (turn < over) for turn, name in enumerate(rarest_first)}
