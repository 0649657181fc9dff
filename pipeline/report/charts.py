"""The kinds of chart in the report, each from plain numbers; NaN is not drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.evaluation.estimate import Estimate
from pipeline.format import counted, percent
from pipeline.report.svg import LETTER, WIDTH, Axis, Chart, Plot, named_axis, number_axis

MEASURE_COLORS = {
    "entropy": "s0",
    "mutual_information": "s1",
    "least_confidence": "s2",
    "margin": "s3",
    "energy": "s4",
    "max_logit": "s5",
    "expected_entropy": "s6",
    "variation_ratio": "s7",
    "max_logit_norm": "s8",
    "impurity": "s9",
}
SAMPLER_COLORS = {"none": "s5", "mc_dropout": "s0", "tta": "s3", "head_ensemble": "s2", "ensemble": "s4"}
BEFORE, AFTER = "s3", "s0"
"""Before and after calibration, everywhere."""
ROW = 22
"""Height of a row of a dot plot."""
SMALLEST_SHARE = 1e-4
"""A bin with a smaller share of the pixels has no point: its accuracy is meaningless."""


@dataclass(frozen=True)
class Line:
    """Estimates over x, with a whisker each and a band between them; `kind` is `line`, `line faint` for a
    dashed one, or `points` for values without an order."""

    name: str
    color: str
    x: Sequence[float]
    y: Sequence[Estimate]
    kind: str = "line"
    hollow: Sequence[bool] = ()


@dataclass(frozen=True)
class DotRow:
    """A name, and an estimate for each series that has one."""

    name: str
    values: Mapping[str, Estimate]


def dot_rows(values: Iterable[tuple[str, str, Estimate]]) -> list[DotRow]:
    """A row a name from (name, series, estimate), in the order of first appearance."""
    found: dict[str, dict[str, Estimate]] = {}
    for name, series, value in values:
        found.setdefault(name, {})[series] = value
    return [DotRow(name, series) for name, series in found.items()]


@dataclass(frozen=True)
class Bin:
    """Pixels of about one confidence: the confidence, the accuracy, and their share of all pixels."""

    confidence: float
    accuracy: Estimate
    share: float


def spoken(name: str) -> str:
    """A name of the code as text.

    >>> spoken("mc_dropout"), spoken("mutual_information")
    ('MC dropout', 'mutual information')
    """
    known = {"mc_dropout": "MC dropout", "tta": "TTA", "none": "one pass", "fgsm": "FGSM"}
    return known.get(name, name.replace("_", " "))


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x: Axis,
    y: Axis,
    note: str = "",
    dots: bool = True,
    width: float = WIDTH,
    height: float = 272,
    legend: bool = True,
) -> Chart:
    """Lines over a common axis, with their intervals."""
    plot = Plot(x, y, width=width, height=height, left=max(46, 34 + _widest(y) * LETTER))
    for line in lines:
        if line.kind != "points":
            plot.band(line.x, [v.low for v in line.y], [v.high for v in line.y], line.color)
    for line in lines:
        if line.kind != "points":
            plot.line(line.x, [v.value for v in line.y], line.color, kind=line.kind)
        for index, (place, value) in enumerate(zip(line.x, line.y, strict=True) if dots else ()):
            hollow = bool(line.hollow and line.hollow[index])
            plot.point(place, value, line.color, f"{line.name}: {value.text()}", hollow=hollow)
    names = tuple((line.color, line.name) for line in lines) if legend else ()
    return Chart(title, plot.svg(title), names, note)


def dot_chart(
    rows: Sequence[DotRow],
    *,
    title: str,
    colors: Mapping[str, str],
    x: Axis,
    note: str = "",
    width: float = WIDTH,
) -> Chart:
    """A row for each name, and in it a dot with its interval for each series.

    Args:
        colors: of the series, in order; only those that have a value are named in the legend.
    """
    used = [name for name in colors if any(name in row.values for row in rows)]
    gap = 9.0 if len(used) > 2 else 8.0
    step = max(ROW, gap * len(used) + 8)
    label_width = min(150.0, 14 + max((len(row.name) for row in rows), default=0) * LETTER)
    rows_axis = Axis(-0.5, max(len(rows) - 0.5, 0.5), ())
    height = 8 + step * len(rows) + 46
    plot = Plot(x, rows_axis, left=label_width, top=8, width=width, height=height)
    for value, _ in x.ticks:
        plot.line([value, value], [-0.5, len(rows) - 0.5], "", kind="grid")
    for index, row in enumerate(rows):
        middle = len(rows) - 1 - index
        plot.text(x.low, middle, _cut(row.name, label_width), anchor="end", dx=-8)
        present = [name for name in used if name in row.values]
        for order, name in enumerate(present):
            at = middle - (order - (len(present) - 1) / 2) * gap / step
            estimate = row.values[name]
            plot.whisker(at, estimate.low, estimate.high, colors[name], across=True)
            plot.dot(estimate.value, at, colors[name], title=f"{row.name}, {spoken(name)}: {estimate.text()}")
    names = tuple((colors[name], spoken(name)) for name in used)
    return Chart(title, plot.svg(title), names if len(names) > 1 else (), note)


def bar_chart(
    counts: Mapping[str, int],
    *,
    title: str,
    unit: str = "region",
    colors: Mapping[str, str] | None = None,
    width: float = WIDTH,
) -> Chart:
    """Counts as bars, the number beside each; `unit` is one of what is counted."""
    label_width = min(170.0, 14 + max((len(name) for name in counts), default=0) * LETTER)
    height = 12 + ROW * len(counts)
    x = Axis(0, max(counts.values(), default=1) or 1, ())
    y = Axis(-0.5, max(len(counts) - 0.5, 0.5), ())
    plot = Plot(x, y, width=width, height=height, left=label_width, right=44, top=6, bottom=6)
    total = sum(counts.values()) or 1
    for index, (name, count) in enumerate(counts.items()):
        at = len(counts) - 1 - index
        color = (colors or {}).get(name, "s0")
        plot.text(0, at, _cut(name, label_width), anchor="end", dx=-8)
        tooltip = f"{name}: {counted(count, unit)}, {percent(count / total)}"
        plot.bar((0, count), (at - 0.34, at + 0.34), color, title=tooltip)
        plot.text(count, at, str(count), dx=6, color="muted")
    return Chart(title, plot.svg(title))


def reliability_chart(bins: Sequence[Bin], *, title: str, color: str, axis: str) -> Chart:
    """Accuracy over confidence with its interval, and below it the share of pixels of each bin.

    Args:
        axis: the name of the confidence.
    """
    ends = number_axis([0, 1], axis, low=0, high=1, percent=True)
    side = number_axis([0, 1], "accuracy of these pixels", low=0, high=1, percent=True)
    plot = Plot(ends, side, height=330, left=64, bottom=92)
    plot.line([0, 1], [0, 1], "", kind="reference")
    _reliability_marks(plot, bins, color)
    _shares(plot, bins, color)
    return Chart(title, plot.svg(title))


def small_reliability(before: Sequence[Bin], after: Sequence[Bin], *, title: str, note: str = "") -> Chart:
    """A small diagram of one part of the pixels, before and after calibration."""
    ends = number_axis([0, 1], "", low=0, high=1, percent=True, intervals=2)
    plot = Plot(ends, ends, width=210, height=170, left=42, bottom=24, top=8, right=10)
    plot.line([0, 1], [0, 1], "", kind="reference")
    for bins, color in ((before, BEFORE), (after, AFTER)):
        _reliability_marks(plot, bins, color)
    return Chart(title, plot.svg(f"Reliability: {title}"), (), note)


def histogram_chart(
    edges: Sequence[float],
    shares: Mapping[str, Sequence[float]],
    *,
    title: str,
    label: str,
    colors: Mapping[str, str],
    note: str = "",
    percent: bool = False,
) -> Chart:
    """Distributions over common bins, as shares of each one's total."""
    parts = {name: [v / (sum(values) or 1) for v in values] for name, values in shares.items()}
    x = number_axis(edges, label, low=edges[0], high=edges[-1], percent=percent)
    y = number_axis([v for values in parts.values() for v in values], "share", low=0, percent=True)
    plot = Plot(x, y, left=58)
    for name, values in parts.items():
        steps_x = [edges[0], *(edge for edge in edges[1:-1] for _ in (0, 1)), edges[-1]]
        steps_y = [value for value in values for _ in (0, 1)]
        plot.band(steps_x, [0.0] * len(steps_x), steps_y, colors[name])
        plot.line(steps_x, steps_y, colors[name])
    return Chart(title, plot.svg(title), tuple((colors[name], name) for name in parts), note)


def scatter_chart(
    points: Sequence[tuple[float, Estimate, bool, str]], *, title: str, x_label: str, y_label: str, note: str
) -> Chart:
    """Estimates over a prediction; a point that is not `inside` is in another colour, with its name."""
    top = max([point[0] for point in points] + [point[1].high for point in points], default=1.0)
    ends = number_axis([0, top], x_label, low=0, percent=True)
    plot = Plot(ends, Axis(ends.low, ends.high, ends.ticks, y_label), height=320, left=58)
    plot.line([ends.low, ends.high], [ends.low, ends.high], "", kind="reference")
    for predicted, found, inside, name in points:
        color = "s0" if inside else "bad"
        plot.point(predicted, found, color, f"{name}: predicted {predicted:.3f}, observed {found.text()}")
    legend = (("s0", "the interval contains the prediction"), ("bad", "it does not"))
    return Chart(title, plot.svg(title), legend, note)


def spark_chart(values: Sequence[Estimate], names: Sequence[str], *, title: str, color: str) -> Chart:
    """One number over the rounds, small; the same axis from 0 to 1 in all of them."""
    x = named_axis(names)
    y = number_axis([0, 1], low=0, high=1, percent=True, intervals=2)
    plot = Plot(x, y, width=210, height=116, left=46, right=8, top=8, bottom=22)
    plot.curve(range(len(values)), values, color)
    for index, value in enumerate(values):
        plot.point(index, value, color, f"{names[index]}: {value.text()}", radius=3)
    last = next((v for v in reversed(values) if v.defined), None)
    return Chart(title, plot.svg(f"{title} over rounds"), (), last.text() if last else "not defined")


def _reliability_marks(plot: Plot, bins: Sequence[Bin], color: str) -> None:
    """Draw the points of bins with enough pixels, and a band through their intervals."""
    shown = [one for one in bins if one.share >= SMALLEST_SHARE and one.accuracy.defined]
    plot.curve([one.confidence for one in shown], [one.accuracy for one in shown], color)
    for one in shown:
        accuracy = f"confidence {percent(one.confidence, 1)}, accuracy {one.accuracy.text()}"
        title = f"{accuracy}, {percent(one.share)} of pixels"
        plot.point(one.confidence, one.accuracy, color, title, radius=3.2)


def _shares(plot: Plot, bins: Sequence[Bin], color: str) -> None:
    """The share of pixels of each bin, as columns of a logarithmic height under the diagram."""
    low = math.log10(SMALLEST_SHARE)
    foot, head = plot.height - 4, plot.height - 40
    below = Plot(plot.x, Axis(low, 0, ()), width=plot.width, height=plot.height, left=plot.left)
    below.top, below.bottom = head, foot
    width = 0.8 / max(len(bins), 1)
    for one in bins:
        if one.share >= SMALLEST_SHARE and not math.isnan(one.confidence):
            left = min(max(one.confidence - width / 2, 0), 1 - width)
            pixels = f"{percent(one.share)} of the pixels"
            below.bar(
                (left, left + width), (low, math.log10(one.share)), color, title=pixels, kind="bar soft"
            )
    below.text(0, low, "pixels", anchor="end", color="muted", dx=-7, dy=-10)
    below.text(0, low, "(log)", anchor="end", color="muted", dx=-7, dy=2)
    plot.marks += below.marks


def _widest(axis: Axis) -> int:
    return max((len(words) for _, words in axis.ticks), default=1)


def _cut(name: str, width: float) -> str:
    """A name, without its middle where it is wider than its column."""
    room = int((width - 10) / LETTER)
    if len(name) <= room:
        return name
    half = (room - 1) // 2
    return f"{name[:half]}…{name[-half:]}"
