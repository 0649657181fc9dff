"""Whether selecting beats its controls: the newest simulation."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from pipeline.evaluation.simulation_verdict import per
from pipeline.format import count, counted, number, percent
from pipeline.report.blocks import Block, Cell, Charts, Section, Table, Text, cells
from pipeline.report.charts import Line, line_chart
from pipeline.report.contents import Contents
from pipeline.report.svg import Axis, Chart, number_axis
from pipeline.summaries.simulations import SimulationSummary, StrategySummary

CLICKS = {"clicks": "clicks to draw", "clicks_correcting": "clicks to correct"}
TONES: dict[str, Any] = {"yes": "good", "no": "bad", "not shown": "warn"}


def simulation(contents: Contents) -> list[Section]:
    """The section of the newest simulation; none where no seed of one is finished."""
    found = contents.simulation
    if found is None or not found.seeds:
        return []
    blocks: list[Block] = [Text(one.sentence, tone=TONES[one.answer]) for one in found.verdicts]
    blocks += [Charts(_curves(found)), _reached(found)]
    if found.comparisons:
        blocks.append(_differences(found))
    if found.cold_starts:
        blocks.append(_first_labels(found))
    return [
        Section(
            "simulation",
            "Does selecting help?",
            f"{counted(len(found.seeds), 'seed')} of whole rounds with labels from existing masks. The "
            "strategies of a seed start from the same labels and the same model; bands are intervals over "
            f"seeds and {counted(found.test_images, 'test image')}.",
            blocks,
        )
    ]


def _curves(found: SimulationSummary) -> list[Chart]:
    """mIoU over labels, and over both counts of clicks."""
    charts = [_over(found, "labels", f"{found.unit}s labeled"), _over(found, "clicks", "clicks to draw")]
    if all("clicks_correcting" in one.costs for one in found.strategies):
        charts.append(_over(found, "clicks_correcting", "clicks to correct proposals"))
    return charts


def _over(found: SimulationSummary, cost: str, name: str) -> Chart:
    places = {one.name: [math.log2(max(1.0, spent)) for spent in one.costs[cost]] for one in found.strategies}
    low, high = min(map(min, places.values())), max(map(max, places.values()))
    if cost == found.budget_cost:
        marks = [math.log2(budget) for budget in found.budgets]
    else:
        step = max(1, (math.ceil(high) - math.floor(low)) // 5)
        marks = [float(place) for place in range(math.floor(low), math.ceil(high) + 1, step)]
    ticks = tuple((place, count(round(2**place))) for place in marks)
    axis = Axis(min(low, marks[0]) - 0.1, max(high, marks[-1]) + 0.1, ticks, f"{name}, by doublings")
    return _chart(found, places, axis, f"mIoU over {name}")


def _chart(found: SimulationSummary, places: dict[str, list[float]], axis: Axis, title: str) -> Chart:
    lines = [
        Line(one.name, f"s{turn}", places[one.name], [point.over_both for point in one.curve])
        for turn, one in enumerate(found.strategies)
    ]
    ends = [v for line in lines for one in line.y for v in (one.low, one.high, one.value)]
    return line_chart(lines, title=title, x=axis, y=number_axis(ends, "mean IoU"))


def _reached(found: SimulationSummary) -> Table:
    rare = f"mean IoU of {', '.join(found.rare)}" if found.rare else ""
    costs = {"labels": f"{found.unit}s", "pixels": "pixels", **CLICKS}
    head = ["strategy", "mIoU", "ECE", *([rare] if rare else []), "of all labels", *costs.values()]
    return Table(
        head,
        [_row(one, costs, rare=bool(rare)) for one in found.strategies],
        f"With {counted(found.budgets[-1], found.budget_unit)}",
    )


def _row(one: StrategySummary, costs: Iterable[str], *, rare: bool) -> list[Cell]:
    return cells(
        one.name,
        one.curve[-1].over_both,
        one.ece,
        *([one.rare] if rare and one.rare is not None else []),
        number(None) if one.full_share is None else percent(one.full_share.value),
        *(count(round(one.costs[cost][-1])) if cost in one.costs else number(None) for cost in costs),
    )


def _first_labels(found: SimulationSummary) -> Table:
    rows = [
        cells(
            one.name,
            one.miou.over_both,
            number(None) if one.difference is None else one.difference.over_both,
            count(round(one.clicks)),
        )
        for one in found.cold_starts
    ]
    head = ["first labels", "mIoU", f"difference to {found.cold_starts[0].name}", "clicks"]
    return Table(
        head, rows, f"The first {counted(found.budgets[0], found.budget_unit)}, chosen in several ways"
    )


def _differences(found: SimulationSummary) -> Table:
    compared = found.comparisons[0].compared
    rows = [
        cells(
            f"{one.strategy} − {one.control}",
            *(one.areas[cost].over_both for cost in compared),
            *(percent(one.saved[cost].value) for cost in compared),
        )
        for one in found.comparisons
    ]
    head = [
        "difference",
        *(f"mIoU, per {per(cost, unit=found.unit)}" for cost in compared),
        *(f"saved, per {per(cost, unit=found.unit)}" for cost in compared),
    ]
    return Table(head, rows, "Along the curve, with intervals over seeds and test images")
