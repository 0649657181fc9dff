"""The common style of the report's pictures, and how they are written.

Figures are made without pyplot, so that drawing needs no display and leaves no state behind.
"""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from pipeline.evaluation.estimate import Estimate
from pipeline.files import atomic_write_bytes

INK, MUTED, RULE = "#1f2937", "#6b7280", "#e5e7eb"
BEFORE, AFTER = "#d97706", "#2563eb"
"""Before and after calibration, in every picture; also told apart by colour-blind eyes."""
SERIES = (
    *("#2563eb", "#c61a76", "#0b8f63", "#cf6a0c", "#7c3aed"),
    *("#64748b", "#b08900", "#0e8fa8", "#9f4a2f", "#4d7c0f"),
)
"""The series of a chart, as on the page."""
DPI = 130

_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "hatch.linewidth": 0.7,
}
P = ParamSpec("P")


def series_numbers(names: Iterable[str]) -> dict[str, int]:
    """The place in `SERIES` of each name; after the last one they begin again.

    >>> series_numbers(["entropy", "random"])
    {'entropy': 0, 'random': 1}
    """
    return {name: turn % len(SERIES) for turn, name in enumerate(names)}


def in_style(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw with the report's style, whatever the user's matplotlib settings are."""

    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with rc_context(_STYLE):
            return draw(*args, **kwargs)

    return styled


def new_figure(width: float, height: float, *, title: str) -> Figure:
    """A figure of so many inches with room for its title."""
    figure = Figure(figsize=(width, height))
    figure.set_layout_engine("constrained", h_pad=0.1, w_pad=0.1)
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold")
    return figure


def percentages(*, decimals: int | None = 0) -> PercentFormatter:
    """Tick labels of a share between 0 and 1."""
    return PercentFormatter(1, decimals=decimals, symbol=" %")


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure as a PNG, whole or not at all.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    atomic_write_bytes(path, png_of(figure))


def png_of(figure: Figure) -> bytes:
    """A figure as a PNG."""
    stream = io.BytesIO()
    with rc_context(_STYLE):
        figure.savefig(stream, format="png", dpi=DPI, facecolor="white")
    return stream.getvalue()


def draw_interval(axes: Axes, x: float, estimate: Estimate, *, color: str, width: float = 1.8) -> None:
    """Draw a vertical line from the interval's low end to its high end; nothing without an interval."""
    if not math.isnan(estimate.low):
        axes.plot([x, x], [estimate.low, estimate.high], color=color, linewidth=width, alpha=0.55, zorder=2)


def line_color(color: npt.NDArray[np.uint8], *, on_dark: bool = False) -> str:
    """A class colour (3 bytes) as hex, dark enough for a line on white, or light enough on a dark page.

    >>> line_color(np.array([255, 255, 255], dtype=np.uint8))
    '#7a7a7a'
    >>> line_color(np.array([0, 0, 0], dtype=np.uint8), on_dark=True)
    '#9e9e9e'
    """
    hue, lightness, saturation = colorsys.rgb_to_hls(*(float(value) / 255 for value in color))
    shown = max(lightness, 0.62) if on_dark else min(lightness, 0.48)
    parts = colorsys.hls_to_rgb(hue, shown, saturation)
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)
