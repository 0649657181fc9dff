"""A simulation as text."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pipeline.evaluation.crossed import Crossed
from pipeline.evaluation.estimate import Estimate
from pipeline.evaluation.simulation_verdict import per
from pipeline.format import count, counted, number, percent, table
from pipeline.summaries.simulations.figures import SimulationFigures


def lines(found: SimulationFigures) -> Iterator[str]:
    """The tables and the verdicts as text, at most 80 columns wide."""
    yield (
        f"Simulation {found.hash[:8]}: {counted(len(found.seeds), 'seed')}, measured on "
        f"{counted(found.test_images, 'test image')}."
    )
    if found.missing:
        yield f"warning: a seed with an unfinished cell is left out: {counted(found.missing, 'cell')}."
    if not found.seeds:
        return
    labeled = "clicks to draw the labels" if found.in_clicks else f"{found.unit}s labeled"
    yield f"mIoU by {labeled}, ± the half of its interval over seeds and test images:"
    yield from table(
        ("strategy", *map(count, found.budgets)),
        [(one.name, *map(_half, one.curve)) for one in found.strategies],
    )
    yield from _last(found)
    yield from _differences(found)
    yield from _first(found)
    yield from (one.sentence for one in found.verdicts)


def _last(found: SimulationFigures) -> Iterator[str]:
    """What the last budget has reached and cost."""
    head = ["strategy", "ECE", "rare classes", "of all labels", f"{found.unit}s", "to draw", "to correct"]
    rows = [
        [
            one.name,
            number(one.ece.value),
            "–" if one.rare is None else number(one.rare.value),
            "–" if one.full_share is None else percent(one.full_share.value),
            count(round(one.costs["labels"][-1])) if found.in_clicks else "–",
            *(
                count(round(one.costs[cost][-1])) if cost in one.costs else "–"
                for cost in ("clicks", "clicks_correcting")
            ),
        ]
        for one in found.strategies
    ]
    kept = [at for at in range(len(head)) if any(row[at] != "–" for row in rows)]
    reached = counted(found.budgets[-1], found.budget_unit)
    yield f"With {reached}; clicks to draw the labels, and to correct proposals instead:"
    yield from table([head[at] for at in kept], [[row[at] for at in kept] for row in rows])
    if found.rare:
        yield f"  rare classes: {', '.join(found.rare)}"


def _differences(found: SimulationFigures) -> Iterator[str]:
    """Each strategy against each control."""
    for name in dict.fromkeys(one.strategy for one in found.comparisons):
        yield f"{name} − control: mIoU along the curve; labels or clicks saved at equal mIoU:"
        yield from table(
            ("control", "per", "difference", "saved"),
            [
                (
                    one.control,
                    per(cost, unit=found.unit),
                    _signed(one.areas[cost].over_both),
                    percent(one.saved[cost].value),
                )
                for one in found.comparisons
                if one.strategy == name
                for cost in one.compared
            ],
        )


def _first(found: SimulationFigures) -> Iterator[str]:
    """The ways to choose the first labels."""
    if not found.cold_starts:
        return
    shared = found.cold_starts[0].name
    yield f"The first {counted(found.budgets[0], found.budget_unit)}, chosen in several ways:"
    yield from table(
        ("first labels", "mIoU", f"− {shared}", "clicks"),
        [
            (
                one.name,
                _half(one.miou),
                "–" if one.difference is None else _signed(one.difference.over_both),
                count(round(one.clicks)),
            )
            for one in found.cold_starts
        ],
    )


def _half(one: Crossed) -> str:
    reach = (one.over_both.high - one.over_both.low) / 2
    return number(one.value) + ("" if np.isnan(reach) else f" ± {number(reach)}")


def _signed(one: Estimate) -> str:
    return one.text(sign="+").replace(" (no interval)", "")
