"""Drawing on an inline SVG: axes, lines, bands, dots, bars, in the page's own colours.

A colour is the name of a CSS class that sets `color`, so one drawing serves light, dark and print. Every
text passes through markupsafe, which escapes it. Lengths are in user units, about a CSS pixel on a desktop.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from pipeline.evaluation.estimate import Estimate

WIDTH, HEIGHT = 440, 272
FLAT = 1e-9
"""A span below this, relative to its values, counts as zero."""
LETTER = 6.5
"""Mean width of a letter at the size of tick labels."""


@dataclass(frozen=True)
class Axis:
    """A linear scale from `low` to `high`, with its ticks as (value, text)."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    label: str = ""

    def share(self, value: float) -> float:
        """The position of a value between the ends, 0 to 1; clipped beyond them."""
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)


@dataclass(frozen=True)
class Chart:
    """A drawing with its title, legend and note.

    Attributes:
        legend: a colour and a name each.
        note: a sentence below the drawing.
    """

    title: str
    svg: Markup
    legend: tuple[tuple[str, str], ...] = ()
    note: str = ""


def number_axis(
    values: Iterable[float],
    label: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
    percent: bool = False,
    intervals: int = 5,
) -> Axis:
    """An axis with round ticks that spans every value; NaN is left out.

    >>> number_axis([0.0, 0.93]).ticks
    ((0.0, '0'), (0.2, '0.2'), (0.4, '0.4'), (0.6, '0.6'), (0.8, '0.8'), (1.0, '1'))
    >>> [text for _, text in number_axis([0.0, 0.041], percent=True).ticks]
    ['0 %', '1 %', '2 %', '3 %', '4 %', '5 %']
    """
    known = [value for value in values if math.isfinite(value)]
    bottom = low if low is not None else min(known, default=0.0)
    top = high if high is not None else max(known, default=1.0)
    if top - bottom < FLAT * max(1.0, abs(top), abs(bottom)):
        top = bottom + (abs(bottom) if abs(bottom) > FLAT else 1.0)
    step = _round_step((top - bottom) / intervals)
    first = bottom if low is not None else math.floor(bottom / step + 1e-9) * step
    last = top if high is not None else math.ceil(top / step - 1e-9) * step
    start, end = math.ceil(first / step - 1e-9), math.floor(last / step + 1e-9)
    ticks = [round(index * step, 12) + 0.0 for index in range(start, end + 1)]
    unit = step * 100 if percent else step
    decimals = max(0, -math.floor(math.log10(unit) + 1e-9))
    return Axis(first, last, tuple((tick, _tick(tick, decimals, percent)) for tick in ticks), label)


def named_axis(names: Sequence[str], label: str = "") -> Axis:
    """Equal steps 0, 1, 2, … with a name each, and half a step of room at both ends."""
    return Axis(
        -0.5, max(len(names) - 0.5, 0.5), tuple((float(i), name) for i, name in enumerate(names)), label
    )


class Plot:
    """A plot with two axes; marks are drawn in the order in which they are added."""

    def __init__(
        self,
        x: Axis,
        y: Axis,
        *,
        width: float = WIDTH,
        height: float = HEIGHT,
        left: float = 52,
        right: float = 14,
        top: float = 12,
        bottom: float = 46,
    ) -> None:
        self.x, self.y = x, y
        self.width, self.height = width, height
        self.left, self.right = left, width - right
        self.top, self.bottom = top, height - bottom
        self.marks: list[Markup] = []

    def px(self, value: float) -> float:
        """Horizontal position of a value."""
        return round(self.left + self.x.share(value) * (self.right - self.left), 2)

    def py(self, value: float) -> float:
        """Vertical position of a value."""
        return round(self.bottom - self.y.share(value) * (self.bottom - self.top), 2)

    def add(self, template: str, *values: object) -> None:
        """Add a mark from a template of SVG, which escapes the values."""
        self.marks.append(Markup(template).format(*values))

    def line(self, x: Sequence[float], y: Sequence[float], color: str, *, kind: str = "line") -> None:
        """A line through the points, broken where a value is NaN. `kind` is a CSS class."""
        for part in _unbroken(x, y):
            if len(part) > 1:
                points = " ".join(f"{self.px(a)},{self.py(b[0])}" for a, b in part)
                self.add('<polyline class="{} {}" points="{}"/>', kind, color, points)

    def band(self, x: Sequence[float], low: Sequence[float], high: Sequence[float], color: str) -> None:
        """The area between two lines."""
        for part in _unbroken(x, low, high):
            if len(part) > 1:
                forth = [f"{self.px(a)},{self.py(b[1])}" for a, b in part]
                back = [f"{self.px(a)},{self.py(b[0])}" for a, b in reversed(part)]
                self.add('<polygon class="band {}" points="{}"/>', color, " ".join(forth + back))

    def dot(
        self, x: float, y: float, color: str, *, title: str = "", hollow: bool = False, radius: float = 4
    ) -> None:
        """A point, with a tooltip."""
        if math.isfinite(x) and math.isfinite(y):
            kind, place = "dot hollow" if hollow else "dot", (self.px(x), self.py(y))
            circle = '<circle class="{} {}" cx="{}" cy="{}" r="{}"><title>{}</title></circle>'
            self.add(circle, kind, color, *place, radius, title)

    def whisker(self, at: float, low: float, high: float, color: str, *, across: bool = False) -> None:
        """An interval, upright, or `across` at the height `at`."""
        if math.isfinite(low) and math.isfinite(high):
            ends = (
                (self.px(low), self.py(at), self.px(high), self.py(at))
                if across
                else (self.px(at), self.py(low), self.px(at), self.py(high))
            )
            self.add('<path class="whisker {}" d="M{} {}L{} {}"/>', color, *ends)

    def bar(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        color: str,
        *,
        title: str = "",
        kind: str = "bar",
    ) -> None:
        """A rectangle between two values on each axis."""
        left, right = sorted((self.px(x[0]), self.px(x[1])))
        top, bottom = sorted((self.py(y[0]), self.py(y[1])))
        bar = '<rect class="{} {}" x="{}" y="{}" width="{:.2f}" height="{:.2f}"><title>{}</title></rect>'
        self.add(bar, kind, color, left, top, right - left, bottom - top, title)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        anchor: str = "start",
        color: str = "",
        dx: float = 0,
        dy: float = 4,
    ) -> None:
        """A text at a point, moved by `dx`, `dy`."""
        text = '<text class="word {}" text-anchor="{}" x="{:.1f}" y="{:.1f}">{}</text>'
        self.add(text, color, anchor, self.px(x) + dx, self.py(y) + dy, words)

    def curve(self, x: Sequence[float], y: Sequence[Estimate], color: str, *, kind: str = "line") -> None:
        """A line through estimates, with the band between their intervals."""
        self.band(x, [v.low for v in y], [v.high for v in y], color)
        self.line(x, [v.value for v in y], color, kind=kind)

    def point(
        self, x: float, y: Estimate, color: str, title: str, *, hollow: bool = False, radius: float = 4
    ) -> None:
        """An estimate with its interval upright, and a tooltip."""
        self.whisker(x, y.low, y.high, color)
        self.dot(x, y.value, color, title=title, hollow=hollow, radius=radius)

    def svg(self, description: str) -> Markup:
        """The SVG; a screen reader reads `description`."""
        marks, self.marks = self.marks, []
        self._across()
        self._upright()
        axes, self.marks = self.marks, marks
        return Markup(
            '<svg viewBox="0 0 {} {}" role="img" aria-label="{}"><g class="axes">{}</g>{}</svg>'
        ).format(self.width, self.height, description, _join(axes), _join(marks))

    def _across(self) -> None:
        lines = max((text.count("\n") + 1 for _, text in self.x.ticks), default=1)
        for value, words in _apart(self.x.ticks, self.right - self.left, self.x):
            x = self.px(value)
            for row, word in enumerate(words.split("\n")):
                y = self.bottom + 16 + 13 * row
                self.add('<text text-anchor="middle" x="{}" y="{}">{}</text>', x, y, word)
            self.add('<path class="tick" d="M{} {}V{}"/>', x, self.bottom, self.bottom + 4)
        if self.x.label:
            label = '<text class="label" text-anchor="middle" x="{}" y="{}">{}</text>'
            self.add(label, (self.left + self.right) / 2, self.bottom + 21 + 13 * lines, self.x.label)
        if self.x.ticks:
            self.add('<path class="base" d="M{} {}H{}"/>', self.left, self.bottom, self.right)

    def _upright(self) -> None:
        for value, words in self.y.ticks:
            y = self.py(value)
            self.add('<path class="grid" d="M{} {}H{}"/>', self.left, y, self.right)
            self.add('<text text-anchor="end" x="{}" y="{}">{}</text>', self.left - 7, y + 4, words)
        if self.y.label:
            turned = f"translate(12 {(self.top + self.bottom) / 2}) rotate(-90)"
            label = '<text class="label" text-anchor="middle" transform="{}">{}</text>'
            self.add(label, turned, self.y.label)


def _join(parts: Sequence[Markup]) -> Markup:
    return Markup("").join(parts)


def _round_step(step: float) -> float:
    """The next larger of 1, 2, 5 times a power of ten.

    >>> _round_step(0.13), _round_step(30)
    (0.2, 50.0)
    """
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _tick(value: float, decimals: int, percent: bool) -> str:
    text = f"{value * 100 if percent else value:.{decimals}f}"
    if "." in text and float(text) == round(float(text)) and not percent:
        text = f"{float(text):.0f}"
    return f"{text} %" if percent else text


def _apart(ticks: Sequence[tuple[float, str]], room: float, axis: Axis) -> list[tuple[float, str]]:
    """As many ticks as fit side by side: all, every second, …"""
    if len(ticks) < 2:
        return list(ticks)
    widest = max(len(line) for _, words in ticks for line in words.split("\n")) * LETTER + 8
    gap = min(axis.share(b[0]) - axis.share(a[0]) for a, b in pairwise(ticks)) * room
    return list(ticks[:: max(1, math.ceil(widest / max(gap, 1)))])


def _unbroken(x: Sequence[float], *lines: Sequence[float]) -> list[list[tuple[float, tuple[float, ...]]]]:
    """Runs of points without NaN."""
    runs: list[list[tuple[float, tuple[float, ...]]]] = [[]]
    for place, *values in zip(x, *lines, strict=True):
        if all(math.isfinite(value) for value in values):
            runs[-1].append((place, tuple(values)))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]
