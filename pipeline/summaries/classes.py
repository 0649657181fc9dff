"""The quality of each class: what the mean over classes hides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.evaluation.estimate import Estimate

UNDEFINED = Estimate(math.nan)


@dataclass(frozen=True)
class ClassFigures:
    """One class of an evaluated model.

    Attributes:
        iou: intersection over union; not defined for a class that the masks do not hold.
        recall: the share of the class's pixels that are predicted as it; not defined either for a model that
            was evaluated before recall was stored.
    """

    name: str
    iou: Estimate
    recall: Estimate


def class_figures(
    metrics: Mapping[tuple[str, int], Estimate], class_names: Sequence[str]
) -> tuple[ClassFigures, ...]:
    """The figures of each class, from the metrics of one evaluation; empty without an evaluation."""
    if not metrics:
        return ()
    return tuple(
        ClassFigures(name, metrics.get(("iou", index), UNDEFINED), metrics.get(("recall", index), UNDEFINED))
        for index, name in enumerate(class_names)
    )


def worst_class(classes: Sequence[ClassFigures]) -> str | None:
    """The class of the lowest IoU, with its IoU; None where all classes with an IoU have the same one, in two
    digits, or only one class has one.

    >>> worst_class([ClassFigures("road", Estimate(0.98), Estimate(0.99)),
    ...              ClassFigures("crack", Estimate(0.371), Estimate(0.5))])
    'crack 0.37'
    """
    defined = [one for one in classes if one.iou.defined]
    if len({f"{one.iou.value:.2f}" for one in defined}) < 2:
        return None
    worst = min(defined, key=lambda one: one.iou.value)
    return f"{worst.name} {worst.iou.value:.2f}"
