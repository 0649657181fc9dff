"""Reliability diagrams: is a prediction of 90 % right 90 % of the time, before and after calibration?

Legend: K bins of confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.evaluation.estimate import Estimate
from pipeline.format import confidence_name
from pipeline.report.figures import AFTER, BEFORE, INK, MUTED, in_style, new_figure, percentages

Array = npt.NDArray[np.float64]

FEWEST_PIXELS = 1e-4
"""Share of all pixels below which a bin is not drawn."""
OVER = "#dc2626"
"""Colour of bins with more confidence than accuracy."""


@dataclass(frozen=True)
class Reliability:
    """Pixels by the confidence of their prediction; NaN where a bin is empty or has no interval.

    Attributes:
        edges: of the bins [K + 1], from 0 to 1.
        pixels: in each bin [K].
        confidence, accuracy: their means [K].
        low, high: the interval of the accuracy [K].
        ece: expected calibration error over these bins.
    """

    edges: Array
    pixels: Array
    confidence: Array
    accuracy: Array
    low: Array
    high: Array
    ece: Estimate

    @classmethod
    def from_document(cls, document: dict[str, Any], *, ece: Estimate) -> Reliability:
        """From the `reliability` of a stored evaluation."""
        names = ("edges", "pixels", "confidence", "accuracy", "accuracy_low", "accuracy_high")
        return cls(*(null_as_nan(document[name]) for name in names), ece=ece)


def null_as_nan(values: Sequence[float | None]) -> Array:
    """Numbers of a JSON document; null is NaN."""
    return np.array(values, dtype=np.float64)


@in_style
def draw_reliability(
    before: Reliability, after: Reliability | None, *, title: str, passed: bool = False
) -> Figure:
    """Accuracy over confidence, and below it how many pixels there are, before and after calibration.

    A bin with hardly any pixel has no bar: its accuracy is meaningless.

    Args:
        passed: whether the calibrator's report lets its scores be called probabilities.
    """
    panels = [("before calibration", before, BEFORE, confidence_name(False))]
    if after is not None:
        panels.append(("after calibration", after, AFTER, confidence_name(passed)))
    figure = new_figure(4.9 * len(panels) + 0.6, 6.7, title=title)
    grid = figure.subplots(2, len(panels), height_ratios=(3.4, 1), sharex=True, sharey="row", squeeze=False)
    for column, (name, reliability, color, confidence) in enumerate(panels):
        _draw_diagram(grid[0, column], reliability, color=color)
        grid[0, column].set_title(f"{name}: ECE {reliability.ece.text()}")
        _draw_counts(grid[1, column], reliability, color=color)
        grid[1, column].set_xlabel(f"{confidence} of the prediction")
    grid[0, 0].set_ylabel("accuracy of these pixels")
    grid[1, 0].set_ylabel("share of pixels")
    grid[0, -1].legend(loc="upper left", fontsize=9)
    return figure


def _draw_diagram(axes: Axes, reliability: Reliability, *, color: str) -> None:
    width = np.diff(reliability.edges)
    filled = reliability.pixels >= FEWEST_PIXELS * reliability.pixels.sum()
    filled &= ~np.isnan(reliability.accuracy)
    start, width = reliability.edges[:-1][filled], width[filled]
    accuracy, confidence = reliability.accuracy[filled], reliability.confidence[filled]
    axes.bar(start, accuracy, width, align="edge", color=color, alpha=0.75, edgecolor="white", linewidth=0.8)
    gap = confidence - accuracy
    for chosen, hatch_color, name in (
        (gap > 0, OVER, "too sure"),
        (gap <= 0, INK, "not sure enough"),
    ):
        axes.bar(
            start[chosen],
            gap[chosen],
            width[chosen],
            bottom=accuracy[chosen],
            align="edge",
            fill=False,
            hatch="////",
            edgecolor=hatch_color,
            alpha=0.55,
            linewidth=0.5,
            label=name,
        )
    has_interval = ~np.isnan(reliability.low[filled])
    middle = (start + width / 2)[has_interval]
    low, high = reliability.low[filled][has_interval], reliability.high[filled][has_interval]
    axes.vlines(middle, low, high, color=INK, linewidth=1.4, zorder=4, label="interval of the accuracy")
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=3)
    axes.set(xlim=(0, 1), ylim=(0, 1.0))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(percentages())


def _draw_counts(axes: Axes, reliability: Reliability, *, color: str) -> None:
    share = reliability.pixels / max(reliability.pixels.sum(), 1)
    axes.bar(
        reliability.edges[:-1],
        share,
        np.diff(reliability.edges),
        align="edge",
        color=color,
        alpha=0.75,
        edgecolor="white",
        linewidth=0.8,
    )
    axes.set_yscale("log")
    axes.set_ylim(FEWEST_PIXELS, 1.3)
    axes.set_yticks([1e-3, 1e-2, 1e-1, 1], ["0.1 %", "1 %", "10 %", "100 %"])
    axes.minorticks_off()
