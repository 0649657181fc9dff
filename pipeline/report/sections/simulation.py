"""Whether selecting beats its controls: the newest simulation."""

from __future__ import annotations

import math
from typing import Any

from pipeline.format import count, counted, number, percent
from pipeline.report.blocks import Block, Cell, Charts, Section, Table, Text, cells
from pipeline.report.charts import Line, line_chart
from pipeline.report.contents import Contents
from pipeline.report.svg import Axis, Chart, number_axis
from pipeline.summaries.simulations import SimulationSummary, StrategySummary

TONES: dict[str, Any] = {"yes": "good", "no": "bad", "not shown": "warn"}


def simulation(contents: Contents) -> list[Section]:
    """The section of the newest simulation; none where no seed of one is finished."""
    found = contents.simulation
    if found is None or not found.seeds:
        return []
    blocks: list[Block] = [Text(one.sentence, tone=TONES[one.answer]) for one in found.verdicts]
    blocks += [Charts([_by_labels(found), _by_clicks(found)]), _reached(found)]
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


def _by_labels(found: SimulationSummary) -> Chart:
    places = [math.log2(budget) for budget in found.budgets]
    ticks = tuple((place, count(budget)) for place, budget in zip(places, found.budgets, strict=True))
    axis = Axis(places[0] - 0.1, places[-1] + 0.1, ticks, f"{found.unit}s labeled, by doublings")
    return _chart(found, {one.name: places for one in found.strategies}, axis, "mIoU over labels")


def _by_clicks(found: SimulationSummary) -> Chart:
    places = {
        one.name: [math.log2(max(1.0, clicks)) for clicks in one.costs["clicks"]] for one in found.strategies
    }
    low = math.floor(min(min(row) for row in places.values()))
    high = math.ceil(max(max(row) for row in places.values()))
    step = max(1, (high - low) // 5)
    ticks = tuple((float(place), count(2**place)) for place in range(low, high + 1, step))
    return _chart(
        found, places, Axis(low, high, ticks, "clicks to draw them, by doublings"), "mIoU over clicks"
    )


def _chart(found: SimulationSummary, places: dict[str, list[float]], axis: Axis, title: str) -> Chart:
    lines = [
        Line(one.name, f"s{turn}", places[one.name], [point.over_both for point in one.curve])
        for turn, one in enumerate(found.strategies)
    ]
    ends = [v for line in lines for one in line.y for v in (one.low, one.high, one.value)]
    return line_chart(lines, title=title, x=axis, y=number_axis(ends, "mean IoU"))


def _reached(found: SimulationSummary) -> Table:
    rare = f"mean IoU of {', '.join(found.rare)}" if found.rare else ""
    head = ["strategy", "mIoU", "ECE", *([rare] if rare else []), "of all labels", "clicks", "pixels"]
    return Table(
        head,
        [_row(one, rare=bool(rare)) for one in found.strategies],
        f"With {count(found.budgets[-1])} {found.unit}s",
    )


def _row(one: StrategySummary, *, rare: bool) -> list[Cell]:
    return cells(
        one.name,
        one.curve[-1].over_both,
        one.ece,
        *([one.rare] if rare and one.rare is not None else []),
        number(None) if one.full_share is None else percent(one.full_share.value),
        *(count(round(one.costs[cost][-1])) for cost in ("clicks", "pixels")),
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
    return Table(head, rows, f"The first {counted(found.budgets[0], found.unit)}, chosen in several ways")


def _differences(found: SimulationSummary) -> Table:
    rows = [
        cells(
            f"{one.strategy} − {one.control}",
            one.area.over_both,
            one.area_by_clicks.over_both,
            *(percent(one.saved[cost].value) for cost in ("labels", "clicks")),
        )
        for one in found.comparisons
    ]
    head = [
        "difference",
        f"mIoU, per {found.unit}",
        "mIoU, per click",
        f"{found.unit}s saved",
        "clicks saved",
    ]
    return Table(head, rows, "Along the curve, with intervals over seeds and test images")
