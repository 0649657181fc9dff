"""Budgets: how many candidates a queue holds, and how they are shared out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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


def queue_budget(config: SelectionConfig, regions: npt.NDArray[np.int32], available: int) -> Budget:
    """The budget in candidates.

    Args:
        config: `budget`, `budget_unit`, `unit` and `audit_fraction` are read.
        regions: [M] regions of each image, for a budget of regions that is counted in images.
        available: candidates that there are.

    >>> queue_budget(SelectionConfig(budget=2, budget_unit="images"), np.array([48, 50]), 90)
    Budget(asked=98, total=90, audit=9, selected=81)
    """
    asked = config.budget
    if config.unit == "region" and config.budget_unit == "images":
        asked = max(1, round(config.budget * float(np.mean(regions))))
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


def class_quotas(predicted_class: npt.NDArray[np.int16], selected: int) -> dict[int, int]:
    """Two thirds of a budget split evenly over the classes that are predicted; what is over goes to the
    rarest ones. Classes are listed from the rarest on.

    Args:
        predicted_class: [N] of the candidates.
        selected: candidates to choose.

    >>> class_quotas(np.array([0, 0, 0, 4, 4, 7], dtype=np.int16), 12)
    {7: 3, 4: 3, 0: 2}
    """
    classes, counts = np.unique(predicted_class, return_counts=True)
    if len(classes) == 0:
        return {}
    rarest_first = classes[np.argsort(counts, kind="stable")].tolist()
    each, over = divmod(round(selected * STRATIFIED_SHARE), len(rarest_first))
    return {name: each + (turn < over) for turn, name in enumerate(rarest_first)}
