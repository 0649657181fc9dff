"""Curves: mIoU and calibration over the labeled share, and risk over coverage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from pipeline.format import counted, number, percent
from pipeline.report.figures import (
    AFTER,
    BEFORE,
    INK,
    MUTED,
    draw_interval,
    in_style,
    line_color,
    new_figure,
    percentages,
)
from pipeline.summaries.rounds import RoundSummary

Array = npt.NDArray[np.float64]

TICKED_ROUNDS = 6
"""With more points than this, the horizontal axis has ordinary ticks."""
MEASURE_COLORS = {
    "entropy": "#2563eb",
    "mutual_information": "#db2777",
    "least_confidence": "#059669",
    "margin": "#d97706",
    "energy": "#7c3aed",
    "max_logit": "#64748b",
}


@dataclass(frozen=True)
class RiskCurve:
    """Error rate [n] of the most certain share of pixels, with its interval; NaN where not defined."""

    risk: Array
    low: Array
    high: Array


@in_style
def draw_learning_curve(
    points: Sequence[RoundSummary],
    *,
    class_names: Sequence[str],
    colors: npt.NDArray[np.uint8],
    title: str,
    narrow: bool = False,
) -> Figure:
    """mIoU and ECE over the labeled share of the pool: a point a round, with its interval.

    Args:
        narrow: one plot below the other, for a column of 600 to 800 pixels.

    Raises:
        ValueError: there is no point to draw.
    """
    if not points:
        raise ValueError("Expected at least one round to draw.")
    if narrow:
        figure = new_figure(7.0, 8.0, title=title)
        first, second = figure.subplots(2, 1, height_ratios=(1.25, 1))
    else:
        figure = new_figure(11.4, 5.0, title=title)
        first, second = figure.subplots(1, 2, width_ratios=(1.25, 1))
    _draw_iou(first, points, class_names=class_names, colors=colors)
    _draw_calibration(second, points)
    for axes in (first, second):
        _label_shares(axes, points)
    return figure


@in_style
def draw_risk_coverage(curves: Mapping[str, RiskCurve], *, coverage: Array, title: str) -> Figure:
    """Error rate of the most certain pixels over their share [n]; lower is better.

    Raises:
        ValueError: there is no curve to draw.
    """
    if not curves:
        raise ValueError("Expected at least one curve to draw.")
    figure = new_figure(7.4, 4.9, title=title)
    axes = figure.subplots()
    for name, curve in curves.items():
        color = MEASURE_COLORS.get(name, MUTED)
        style = "-" if name in ("entropy", "mutual_information") else (0, (5, 2))
        label = name.replace("_", " ")
        axes.plot(coverage, curve.risk, color=color, linewidth=2, linestyle=style, label=label, zorder=3)
        if name == "entropy":
            axes.fill_between(coverage, curve.low, curve.high, color=color, alpha=0.12, linewidth=0)
    error = next(iter(curves.values())).risk[-1]
    axes.axhline(error, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        "error rate of all pixels",
        (0.01, error),
        xytext=(0, 4),
        textcoords="offset points",
        fontsize=9,
        color=MUTED,
    )
    axes.set(xlim=(0, 1), ylim=(0, 1.3 * max(error, 1e-4)), xlabel="share of pixels kept, most certain first")
    axes.set_ylabel("error rate among them")
    axes.xaxis.set_major_formatter(percentages())
    axes.yaxis.set_major_formatter(percentages(decimals=1))
    axes.legend(loc="upper left", bbox_to_anchor=(0.0, 0.73), fontsize=9)
    return figure


def _draw_iou(
    axes: Axes, points: Sequence[RoundSummary], *, class_names: Sequence[str], colors: npt.NDArray[np.uint8]
) -> None:
    share = [point.labeled_share for point in points]
    ends: list[tuple[float, str, str]] = []
    for index, name in enumerate(class_names):
        values = [point.classes[index].iou.value for point in points]
        color = line_color(colors[index])
        axes.plot(share, values, color=color, linewidth=1.4, marker="o", markersize=3, alpha=0.9)
        if not math.isnan(values[-1]):
            ends.append((values[-1], name, color))
    mean = [point.mean_iou for point in points]
    low, high = [item.low for item in mean], [item.high for item in mean]
    axes.fill_between(share, low, high, color=INK, alpha=0.1, linewidth=0)
    for x, item in zip(share, mean, strict=True):
        draw_interval(axes, x, item, color=INK)
    axes.plot(share, [item.value for item in mean], color=INK, linewidth=2.6, zorder=3)
    for point in points:
        face = INK if point.promoted else "white"
        axes.plot(point.labeled_share, point.mean_iou.value, "o", color=INK, mfc=face, markersize=8, zorder=4)
        if len(points) <= TICKED_ROUNDS and point.mean_iou.defined:
            axes.annotate(
                number(point.mean_iou.value),
                (point.labeled_share, point.mean_iou.value),
                xytext=(8, -14),
                textcoords="offset points",
                fontweight="bold",
            )
    ends.append((mean[-1].value, "mean", INK))
    _name_lines(axes, share[-1], ends)
    axes.set_title("IoU on held-out images, with the interval of the mean")
    axes.set_ylabel("intersection over union")
    axes.set_ylim(top=1.02)
    if any(not point.promoted for point in points):
        axes.plot([], [], "o", color=INK, mfc="white", markersize=8, label="model refused")
        axes.legend(loc="lower left", fontsize=9)


def _name_lines(axes: Axes, x: float, ends: list[tuple[float, str, str]]) -> None:
    """Write each line's name beside its end, without overlap."""
    bottom, top = axes.get_ylim()
    apart = (max(top, 1.02) - bottom) / 20
    y = -math.inf
    for value, name, color in sorted(ends):
        if math.isnan(value):
            continue
        y = max(value, y + apart)
        axes.annotate(
            name,
            (x, value),
            xytext=(1.02, y),
            textcoords=axes.get_yaxis_transform(),
            color=color,
            fontsize=9.5,
            fontweight="bold" if name == "mean" else "normal",
            va="center",
            annotation_clip=False,
        )


def _draw_calibration(axes: Axes, points: Sequence[RoundSummary]) -> None:
    gap = 0.006 * (max(point.labeled_share for point in points) or 1)
    for kind, sign, color in (("before", -1, BEFORE), ("after", 1, AFTER)):
        for index, point in enumerate(points):
            estimate = point.ece_before if kind == "before" else point.ece_after
            x = point.labeled_share + sign * gap
            draw_interval(axes, x, estimate, color=color)
            axes.plot(
                x,
                estimate.value,
                "o",
                color=color,
                markersize=8,
                zorder=3,
                label=f"{kind} calibration" if index == 0 else None,
            )
    for point in points:
        axes.annotate(
            "",
            (point.labeled_share + gap, point.ece_after.value),
            xytext=(point.labeled_share - gap, point.ece_before.value),
            arrowprops={"arrowstyle": "-|>", "color": MUTED, "shrinkA": 5, "shrinkB": 5, "linewidth": 1},
        )
    axes.set_title("Expected calibration error (lower is better)")
    axes.set_ylabel("ECE")
    axes.set_ylim(0, 1.22 * axes.get_ylim()[1])
    axes.legend(loc="upper right", fontsize=9, ncols=2)


def _label_shares(axes: Axes, points: Sequence[RoundSummary]) -> None:
    axes.set_xlabel("labeled share of the pool's pixels")
    last = max(point.labeled_share for point in points) or 1.0
    axes.set_xlim(0, last * 1.16)
    digits = 0 if last > 0.1 else 1 if last > 0.01 else 2
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: percent(share, digits)))
    if len(points) <= TICKED_ROUNDS:
        axes.set_xticks(
            [point.labeled_share for point in points],
            [
                f"{percent(point.labeled_share, digits)}\nround {point.number}\n"
                f"{counted(point.labeled_regions, 'region')}"
                for point in points
            ],
        )
