"""Whether selecting beats its controls, as a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.evaluation.crossed import POWER, Crossed
from pipeline.evaluation.learning_curves import Comparison
from pipeline.format import counted, percent

Answer = Literal["yes", "no", "not shown"]


@dataclass(frozen=True)
class Verdict:
    """The answer for one strategy: `yes` where it beats every control, `no` where a control beats it.

    Attributes:
        per: what the labels were counted in, as a person reads it; see `per`.
        seeds_needed: about how many would show an advantage of the measured size; None where it is shown, or
            where no number of seeds is enough.
    """

    strategy: str
    per: str
    answer: Answer
    sentence: str
    seeds_needed: int | None = None


def per(cost: str, *, unit: str) -> str:
    """What stands behind "per" for a cost.

    Args:
        unit: of a label, `region` or `image`.

    >>> [per(cost, unit="region") for cost in ("labels", "clicks", "clicks_correcting")]
    ['region', 'click (drawing)', 'click (correcting)']
    """
    return {"labels": unit, "clicks": "click (drawing)", "clicks_correcting": "click (correcting)"}[cost]


def verdict(comparisons: Sequence[Comparison], *, cost: str, unit: str) -> Verdict:
    """The verdict on a strategy from its comparisons with all controls, by the area under the curve.

    Every comparison must exclude 0 with its interval over seeds and test images: an intersection-union test,
    which needs no correction for their number (Berger 1982).

    Args:
        cost: along which the curves are compared, one that every comparison knows.
        unit: of a label, `region` or `image`.

    Raises:
        ValueError: there is no comparison.
    """
    if not comparisons:
        raise ValueError("Expected at least one comparison.")
    counted_in = per(cost, unit=unit)
    found = {one.control: one.areas[cost] for one in comparisons}
    strategy = comparisons[0].strategy
    behind = {name: one for name, one in found.items() if one.over_both.high < 0}
    open_ = {name: one for name, one in found.items() if not one.over_both.low > 0}
    if behind:
        worst = _lowest(behind)
        beaten = f"{strategy} is behind {_names(behind)}" + (
            f", most behind {worst}" if len(behind) > 1 else ""
        )
        sentence = f"No, per {counted_in}: {beaten}: {_difference(behind[worst])}."
        return Verdict(strategy, counted_in, "no", sentence)
    if not open_:
        nearest = _lowest(found)
        sentence = (
            f"Yes, per {counted_in}: {strategy} beats {_names(found)}; the best of them is {nearest}: "
            f"{_difference(found[nearest])}."
        )
        return Verdict(strategy, counted_in, "yes", sentence)
    nearest = _lowest(open_)
    one = open_[nearest]
    needed = one.seeds_needed() if one.value > 0 else None
    sentence = (
        f"Not shown, per {counted_in}, with {counted(one.seeds, 'seed')}: {strategy} against {nearest}: "
        f"{_difference(one)}. {_what_to_do(one, needed)}"
    )
    return Verdict(strategy, counted_in, "not shown", sentence, needed)


def _what_to_do(one: Crossed, needed: int | None) -> str:
    if one.seeds < 2:
        return "Two seeds are the least; ten are better."
    if one.units < 2:
        return "The test images are one independent unit: hold out more."
    if one.value <= 0:
        return "No advantage was measured that more seeds could confirm."
    if needed is None:
        return (
            f"More seeds cannot show so small an advantage on {counted(one.units, 'independent unit')} of "
            "test images: hold out more."
        )
    return (
        f"About {counted(needed, 'seed')} would show an advantage of this size in {percent(POWER)} of cases."
    )


def _lowest(found: Mapping[str, Crossed]) -> str:
    return min(found, key=lambda name: (math.isnan(found[name].value), found[name].value))


def _names(found: Mapping[str, Crossed]) -> str:
    *first, last = found
    return f"{', '.join(first)} and {last}" if first else last


def _difference(one: Crossed) -> str:
    return f"{one.over_both.text(sign='+')} mIoU"
