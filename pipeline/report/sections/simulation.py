"""Whether selecting beats its controls: the newest simulation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pipeline.evaluation.estimate import Estimate
from pipeline.evaluation.simulation_verdict import per
from pipeline.format import count, counted, number, percent
from pipeline.report.blocks import Block, Charts, Section, Table, Text, cells
from pipeline.report.charts import Line, line_chart
from pipeline.report.figures import series_numbers
from pipeline.report.svg import Axis, Chart, number_axis
from pipeline.summaries.simulations import SimulationSummary, StrategySummary

CLICKS = {"clicks": "clicks to draw", "clicks_correcting": "clicks to correct"}
TONES: dict[str, Any] = {"yes": "good", "no": "bad", "not shown": "warn"}


def simulation(found: SimulationSummary | None) -> list[Section]:
    """The section of a simulation; none where there is none, or no seed of it is finished."""
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
    if found.comparisons:
        charts.append(_gained(found))
    return charts


def _gained(found: SimulationSummary) -> Chart:
    """What each strategy is ahead of each control at each budget, paired by seed and by test image."""
    name = f"{found.budget_unit}s, by doublings"
    marks = [math.log2(budget) for budget in list(found.comparisons[0].at)]
    ticks = tuple((place, count(round(2**place))) for place in marks)
    colors = _colors(found)
    lines = [
        Line(
            f"{one.strategy} − {one.control}",
            colors[one.control],
            marks,
            [point.over_both for point in one.at.values()],
        )
        for one in found.comparisons
    ]
    ends = [0.0, *(v for line in lines for one in line.y for v in (one.low, one.high, one.value))]
    return line_chart(
        lines,
        title="Ahead of the controls, paired",
        x=Axis(marks[0] - 0.1, marks[-1] + 0.1, ticks, name),
        y=number_axis(ends, "difference in mean IoU"),
    )


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


def _colors(found: SimulationSummary) -> dict[str, str]:
    """The CSS class of each strategy's line; a difference has that of its control."""
    numbers = series_numbers(one.name for one in found.strategies)
    return {name: f"s{number}" for name, number in numbers.items()}


def _chart(found: SimulationSummary, places: dict[str, list[float]], axis: Axis, title: str) -> Chart:
    colors = _colors(found)
    lines = [
        Line(one.name, colors[one.name], places[one.name], [point.over_both for point in one.curve])
        for one in found.strategies
    ]
    ends = [v for line in lines for one in line.y for v in (one.low, one.high, one.value)]
    return line_chart(lines, title=title, x=axis, y=number_axis(ends, "mean IoU"))


def _reached(found: SimulationSummary) -> Table:
    """What the last budget has reached and cost; without columns that no strategy has a number for."""
    some = found.strategies
    columns: dict[str, Callable[[StrategySummary], Estimate | str]] = {
        "mIoU": lambda one: one.curve[-1].over_both,
        "ECE": lambda one: one.ece,
    }
    if found.rare:
        columns[f"mean IoU of {', '.join(found.rare)}"] = lambda one: one.rare or number(None)
    if any(one.full_share is not None for one in some):
        columns["of the mIoU with all labels"] = lambda one: one.full_share or number(None)
    for cost, name in {"labels": f"{found.unit}s", "pixels": "pixels", **CLICKS}.items():
        if any(cost in one.costs for one in some):
            columns[name] = lambda one, cost=cost: (
                count(round(one.costs[cost][-1])) if cost in one.costs else number(None)
            )
    rows = [cells(one.name, *(value(one) for value in columns.values())) for one in some]
    return Table(["strategy", *columns], rows, f"With {counted(found.budgets[-1], found.budget_unit)}")


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
    rows = [
        cells(
            f"{one.strategy} − {one.control}" if cost == one.compared[0] else "",
            f"per {per(cost, unit=found.unit)}",
            one.areas[cost].over_both,
            percent(one.saved[cost].value),
        )
        for one in found.comparisons
        for cost in one.compared
    ]
    head = ["difference", "", "mIoU", "saved at equal mIoU"]
    return Table(head, rows, "Along the curve, with intervals over seeds and test images")
