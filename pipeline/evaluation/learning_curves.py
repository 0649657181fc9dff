"""Learning curves of strategies: differences, areas, and labels saved at equal mIoU.

Legend: s seeds, k budgets, r runs of neighbouring test images, u independent units, C classes.

All strategies of a seed start from the same labels and the same first model, so their differences are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.bootstrap import jackknife_interval
from pipeline.evaluation.crossed import Crossed, Statistic, crossed
from pipeline.evaluation.estimate import Estimate
from pipeline.evaluation.overlap import intersection_over_union, mean_defined
from pipeline.evaluation.units import join, ratio_residuals, units

Array = npt.NDArray[np.float64]

CONTROLS = ("random", "class_random", "strided")
"""The strategies that ask no model what it is unsure of."""
COSTS = ("labels", "pixels", "clicks", "clicks_correcting")
"""What labeling is counted in: labels of regions or images, their pixels, and the clicks to draw them, or to
correct what a model proposes."""
COMPARED_COSTS = tuple(cost for cost in COSTS if cost != "pixels")
"""Those that curves are compared over."""
RARE = 0.25
"""A class is rare where its share of the test pixels is below this part of an equal share."""


@dataclass(frozen=True)
class Curves:
    """What one strategy reached, of every seed and budget.

    Attributes:
        overlap: [s, k, r, 3, C], pixels of each class in both, in the mask, and in the prediction.
        costs: [s, k] for each of `COSTS`: what had been labeled. One that a cell does not know is missing.
        ece: [s, k], NaN where it was not measured.
    """

    overlap: Array
    costs: Mapping[str, Array]
    ece: Array

    def miou(self) -> Array:
        """[s, k], over all test images."""
        return mean_iou(self.overlap.sum(axis=2))


@dataclass(frozen=True)
class Trials:
    """The finished cells of a simulation: of every strategy, the same seeds and budgets.

    Attributes:
        unit: of a label, `region` or `image`.
        budgets: ascending, in `budget_cost`; the first labels are shared.
        groups: [r] the group of each run of test images.
        least: runs in a unit at least.
        full: [s, r, 3, C] with all labels; None where that was not run.
        budget_cost: `labels`, or `clicks`.
    """

    unit: str
    budgets: tuple[int, ...]
    seeds: tuple[int, ...]
    groups: tuple[str, ...]
    least: int
    curves: Mapping[str, Curves]
    full: Array | None = None
    budget_cost: str = "labels"

    @property
    def rare(self) -> list[int]:
        """The rare classes of the test images; none where all are about as frequent."""
        of_class = next(iter(self.curves.values())).overlap[0, 0, :, 1].sum(axis=0)
        held = of_class > 0
        return np.flatnonzero(held & (of_class < RARE * of_class.sum() / max(1, held.sum()))).tolist()


@dataclass(frozen=True)
class Comparison:
    """A strategy against a control.

    Attributes:
        at: the difference of mIoU at each budget after the first.
        areas: of the area under the curve of mIoU over the doublings of a cost, a mean difference: for each
            of `COMPARED_COSTS` that is known, that of the budgets first, the others as far as both went.
        rare: of the mean IoU of the rare classes at the last budget; None without a rare class.
        saved: the share of labels saved at the mIoU that both reach with the last budget, by cost, with an
            interval over seeds; below 0 where the strategy needs more.
    """

    strategy: str
    control: str
    at: dict[int, Crossed]
    areas: dict[str, Crossed]
    rare: Crossed | None
    saved: dict[str, Estimate]

    @property
    def area(self) -> Crossed:
        """Over the doublings of the budget."""
        return next(iter(self.areas.values()))

    @property
    def compared(self) -> list[str]:
        """The costs of `areas`, in the order of `COMPARED_COSTS`."""
        return [cost for cost in COMPARED_COSTS if cost in self.areas]


def mean_iou(overlap: Array) -> Array:
    """mIoU [...] of overlaps [..., 3, C]."""
    return mean_defined(intersection_over_union(*np.moveaxis(overlap, -2, 0)))


def area(values: Array, budgets: Array) -> Array:
    """Mean height [...] of curves [..., k] over the doublings of their budgets, [k] or [..., k].

    >>> area(np.array([0.0, 1.0, 1.0]), np.array([1.0, 2.0, 4.0])).item()
    0.75
    """
    steps = np.log2(budgets)
    width = np.diff(steps, axis=-1)
    heights = (values[..., 1:] + values[..., :-1]) / 2
    return (heights * width).sum(axis=-1) / width.sum(axis=-1)


def area_up_to(values: Array, costs: Array, last: Array) -> Array:
    """As `area` of curves [s, k] over their own costs [s, k], cut at the cost `last` [s] of each."""
    found = np.empty(len(values))
    for row, (height, cost, end) in enumerate(zip(values, costs, last, strict=True)):
        steps, cut = np.log2(cost), np.log2(end)
        inside = steps < cut
        x = np.append(steps[inside], cut)
        y = np.append(height[inside], np.interp(cut, steps, height))
        found[row] = area(y, 2.0**x) if len(x) > 1 else y[-1]
    return found


def cost_at(level: float, values: Array, costs: Array) -> float:
    """The cost at which a curve [k] first reaches a level, interpolated over doublings; infinite where it
    never does.

    >>> cost_at(0.5, np.array([0.4, 0.6, 0.7]), np.array([1.0, 4.0, 8.0]))
    2.0
    """
    above = np.flatnonzero(values >= level)
    if not len(above):
        return float("inf")
    place = int(above[0])
    if place == 0:
        return float(costs[0])
    low, high = values[place - 1], values[place]
    share = (level - low) / (high - low)
    start, end = np.log2(costs[place - 1]), np.log2(costs[place])
    return float(2.0 ** (start + share * (end - start)))


def saved_share(mine: Array, my_costs: Array, others: Array, other_costs: Array) -> float:
    """The share of labels saved against another curve, at the level that both reach with the last budget."""
    level = min(float(mine[-1]), float(others[-1]))
    return 1.0 - cost_at(level, mine, my_costs) / cost_at(level, others, other_costs)


def curve_at(trials: Trials, strategy: str, *, confidence: float) -> list[Crossed]:
    """The mIoU of a strategy at each budget, with its intervals.

    The independent units are estimated from what each run of test images adds in the mean of all strategies,
    so that those that share a cell have the same interval there.
    """
    added = np.mean([_added(one.overlap) for one in trials.curves.values()], axis=0)
    joined = _joined(trials.curves[strategy].overlap, _units(trials, added))
    return [
        crossed(lambda sums, at=at: mean_iou(sums[:, at]), joined, confidence=confidence)
        for at in range(len(trials.budgets))
    ]


def compare(trials: Trials, strategy: str, control: str, *, confidence: float) -> Comparison:
    """A strategy against a control, paired by seed and by unit.

    The independent units are estimated from what each run of test images adds to the difference.
    """
    mine, other = trials.curves[strategy], trials.curves[control]
    unit = _units(trials, _added(mine.overlap) - _added(other.overlap))
    both = np.stack([_joined(one.overlap, unit) for one in (mine, other)], axis=2)
    budgets = np.array(trials.budgets, dtype=np.float64)

    def difference(statistic: Statistic) -> Crossed:
        """Of a statistic of mIoU [s, k]; `both` has the strategies behind the units."""
        return crossed(
            lambda sums: statistic(mean_iou(sums[:, 0])) - statistic(mean_iou(sums[:, 1])),
            both,
            confidence=confidence,
        )

    def over(cost: str) -> Crossed:
        """The difference along a cost that is no budget."""
        costs = [one.costs[cost] for one in (mine, other)]
        last = np.minimum(costs[0][:, -1], costs[1][:, -1])

        def along(sums: Array) -> Array:
            ours, theirs = (area_up_to(mean_iou(sums[:, turn]), costs[turn], last) for turn in (0, 1))
            return ours - theirs

        return crossed(along, both, confidence=confidence)

    known = [cost for cost in COMPARED_COSTS if cost in mine.costs and cost in other.costs]
    areas = {trials.budget_cost: difference(lambda values: area(values, budgets))}
    areas |= {cost: over(cost) for cost in known if cost != trials.budget_cost}
    rare = trials.rare
    return Comparison(
        strategy=strategy,
        control=control,
        at={
            budget: difference(lambda values, at=at: values[:, at])
            for at, budget in enumerate(trials.budgets)
            if at
        },
        areas=areas,
        rare=crossed(
            lambda sums: mean_iou(sums[:, 0, -1][..., rare]) - mean_iou(sums[:, 1, -1][..., rare]),
            both,
            confidence=confidence,
        )
        if rare
        else None,
        saved={
            name: _saved(mine, other, name, confidence=confidence)
            for name in COSTS
            if name in mine.costs and name in other.costs
        },
    )


def compare_first(trials: Trials, strategy: str, control: str, *, confidence: float) -> Crossed:
    """The difference of mIoU with the first labels, paired by seed and by unit."""
    mine, other = (trials.curves[name].overlap[:, :1] for name in (strategy, control))
    unit = _units(trials, _added(mine) - _added(other))
    both = np.stack([_joined(one, unit) for one in (mine, other)], axis=2)
    return crossed(
        lambda sums: mean_iou(sums[:, 0, 0]) - mean_iou(sums[:, 1, 0]), both, confidence=confidence
    )


def full_share(trials: Trials, strategy: str, *, confidence: float) -> Estimate | None:
    """mIoU at the last budget as a share of that with all labels, over seeds; None where that was not run."""
    if trials.full is None:
        return None
    reached = trials.curves[strategy].miou()[:, -1]
    full = mean_iou(trials.full.sum(axis=1))
    return _over_seeds(lambda rows: float(reached[rows].mean() / full[rows].mean()), len(full), confidence)


def _saved(mine: Curves, other: Curves, cost: str, *, confidence: float) -> Estimate:
    """`saved_share` of the mean curves, with an interval over seeds."""
    values = [one.miou() for one in (mine, other)]
    costs = [one.costs[cost] for one in (mine, other)]

    def share(rows: list[int]) -> float:
        (ours, theirs), (my_costs, other_costs) = (
            [part[rows].mean(axis=0) for part in parts] for parts in (values, costs)
        )
        return saved_share(ours, my_costs, theirs, other_costs)

    return _over_seeds(share, len(values[0]), confidence)


def _over_seeds(statistic: Callable[[list[int]], float], seeds: int, confidence: float) -> Estimate:
    """A statistic of the means over seeds, with an interval from leaving one seed out in turn."""
    whole = list(range(seeds))
    value = statistic(whole)
    if seeds < 2:
        return Estimate(value)
    without = np.array([statistic([row for row in whole if row != left]) for left in whole])
    low, high = jackknife_interval(without, confidence)
    reach = float(high - low) / 2
    return Estimate(value, value - reach, value + reach)


def _units(trials: Trials, added: Array) -> npt.NDArray[np.int64]:
    """The independent unit of each run, from what the runs add [r] beyond their share."""
    return units(trials.groups, range(len(added)), added[:, None], least=trials.least)


def _added(overlap: Array) -> Array:
    """What each run [r] adds beyond its share to the mIoU, in the mean of all seeds and budgets."""
    true_positive, true, predicted = np.moveaxis(overlap, 3, 0)
    union = true + predicted - true_positive
    return np.stack(
        [
            ratio_residuals(inside, whole).mean(axis=1)
            for inside, whole in zip(*(np.concatenate(part) for part in (true_positive, union)), strict=True)
        ]
    ).mean(axis=0)


def _joined(overlap: Array, unit: npt.NDArray[np.int64]) -> Array:
    """Overlaps [s, k, r, 3, C] summed by unit: [s, u, k, 3, C]."""
    return np.stack([join(np.moveaxis(one, 1, 0), unit) for one in overlap])
