"""The learning curves of a simulation as a picture, such as a README shows."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from pipeline.format import count
from pipeline.report.figures import MUTED, SERIES, draw_interval, in_style, new_figure, series_numbers
from pipeline.summaries.simulations import SimulationSummary

PANELS = {"labels": "{unit}s labeled", "clicks": "clicks to draw the labels"}


@in_style
def draw_simulation(found: SimulationSummary, *, title: str) -> Figure:
    """Mean IoU over labels, and over the clicks that drawing them takes: a line a strategy, with a band that
    is its interval over seeds and test images; and what each strategy is ahead of each control.

    Raises:
        ValueError: no seed is finished.
    """
    if not found.seeds:
        raise ValueError("Expected at least one finished seed.")
    figure = new_figure(14.4, 4.4, title=title)
    panels = figure.subplots(1, 3, width_ratios=(1, 1, 1))
    for axes, (cost, name) in zip(panels[:2], PANELS.items(), strict=True):
        _draw(axes, found, cost)
        axes.set_xlabel(name.format(unit=found.unit))
        axes.set_title("mean IoU on the test images")
        axes.legend(loc="upper left", fontsize=9.5)
    panels[1].set_ylim(panels[0].get_ylim())
    _draw_gained(panels[2], found)
    return figure


def _draw(axes: Axes, found: SimulationSummary, cost: str) -> None:
    axes.set_xscale("log", base=2)
    colors = _colors(found)
    for one in found.strategies:
        color = colors[one.name]
        at, points = one.costs[cost], [point.over_both for point in one.curve]
        axes.fill_between(
            at, [p.low for p in points], [p.high for p in points], color=color, alpha=0.12, linewidth=0
        )
        axes.plot(
            at, [p.value for p in points], "o-", color=color, linewidth=2.2, markersize=6, label=one.name
        )
    _mark(axes, found.budgets if cost == found.budget_cost else ())


def _colors(found: SimulationSummary) -> dict[str, str]:
    """The colour of each strategy; a difference has that of its control."""
    numbers = series_numbers(one.name for one in found.strategies)
    return {name: SERIES[number] for name, number in numbers.items()}


def _draw_gained(axes: Axes, found: SimulationSummary) -> None:
    """What each strategy is ahead of each control, at each budget after the shared first one."""
    axes.set_xscale("log", base=2)
    axes.axhline(0, color=MUTED, linewidth=1)
    colors = _colors(found)
    for turn, one in enumerate(found.comparisons):
        apart = 2 ** (0.03 * (turn - (len(found.comparisons) - 1) / 2))
        at, points = [apart * budget for budget in one.at], [point.over_both for point in one.at.values()]
        color = colors[one.control]
        for x, point in zip(at, points, strict=True):
            draw_interval(axes, x, point, color=color)
        label = f"{one.strategy} − {one.control}"
        axes.plot(at, [p.value for p in points], "o-", color=color, linewidth=2.2, markersize=6, label=label)
    _mark(axes, found.budgets[1:])
    axes.set(title="difference, paired by seed and image", xlabel=f"{found.budget_unit}s")
    axes.set_ylim(top=1.35 * axes.get_ylim()[1])
    if found.comparisons:
        axes.legend(loc="upper left", fontsize=9.5)


def _mark(axes: Axes, budgets: Sequence[int]) -> None:
    """Name the budgets on the axis; without some, doublings."""
    if budgets:
        axes.xaxis.set_major_locator(FixedLocator(list(map(float, budgets))))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: count(round(place))))
