"""The gallery: regions that were queued, with the model's prediction and its uncertainty.

Legend: H W image size, C classes. A box is (x, y, w, h) in image pixels.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.transforms import BboxTransformTo, Transform

from pipeline.config import IGNORE
from pipeline.drawing.heatmaps import COLORMAP
from pipeline.report.figures import INK, MUTED, in_style

RgbImage = npt.NDArray[np.uint8]
Map = npt.NDArray[np.float32]
Box = tuple[int, int, int, int]

CONTEXT = 0.6
"""How far a picture reaches beyond its region on each side, as a share of the region's longer side."""
ROW_INCHES = 2.3
HEADING_LETTERS = 24
REASON_LETTERS = 150
MISSING_RANKS = (
    "A missing rank is that of a region that was picked at random, or of a further region of an image: they "
    "are not shown."
)
COLUMNS = ("where", "image", "prediction", "entropy", "mutual information", "label")


@dataclass(frozen=True)
class GalleryRow:
    """A region with what is shown around it: image, prediction, uncertainty and label.

    Attributes:
        size: (W, H) of the image.
        overview: the image, or a smaller one of it, RGB uint8 [h, w, 3].
        image: RGB uint8 [h, w, 3], as all that follow of the part that `shown` names: each pixel of it or,
            of a large part, some of them.
        prediction: class index uint8 [h, w].
        entropy, mutual_information: [h, w], 0 to 1; the latter None without samples.
        label: class index or 255, uint8 [h, w]; None without a label.
        heading: rank and file of the region.
        reason: why it was queued.
    """

    size: tuple[int, int]
    box: Box
    overview: RgbImage
    image: RgbImage
    prediction: npt.NDArray[np.uint8]
    entropy: Map
    mutual_information: Map | None
    label: npt.NDArray[np.uint8] | None
    heading: str
    reason: str
    outline: str | None = None
    """The pixels of its box that belong to the region, as `regions.outlines` writes them; None: all."""

    @property
    def shown(self) -> Box:
        """The part of the image that is shown around the region."""
        return crop_around(self.box, width=self.size[0], height=self.size[1])


@in_style
def draw_gallery(
    rows: Sequence[GalleryRow],
    *,
    class_names: Sequence[str],
    colors: RgbImage,
    title: str,
    note: str = "",
) -> Figure:
    """A row a region: the image, a crop, the prediction, its uncertainty, and the label.

    Args:
        colors: of the classes [C, 3].
        note: a sentence below the title.

    Raises:
        ValueError: there is no region to draw.
    """
    if not rows:
        raise ValueError("Expected at least one region to draw.")
    head = 1.27 if note else 1.1
    figure = Figure(figsize=(13, ROW_INCHES * len(rows) + head + 0.55))
    total = figure.get_figheight()
    figure.text(0.012, 1 - 0.18 / total, title, fontsize=14, fontweight="bold", va="top")
    figure.text(0.012, 1 - 0.47 / total, note, fontsize=9, color=MUTED, va="top")
    grid = figure.add_gridspec(
        len(rows),
        len(COLUMNS),
        left=0.012,
        right=0.988,
        top=1 - head / total,
        bottom=0.82 / total,
        hspace=0.26,
        wspace=0.05,
    )
    scales = (
        end_of_scale([row.entropy for row in rows]),
        end_of_scale([row.mutual_information for row in rows]),
    )
    for index, row in enumerate(rows):
        axes = [figure.add_subplot(grid[index, column]) for column in range(len(COLUMNS))]
        _draw_row(axes, row, colors=colors, scales=scales)
        if index == 0:
            for name, one in zip(COLUMNS, axes, strict=True):
                _write_above(one, name, at=0.5, points=32, ha="center", fontweight="bold", color=INK)
    _draw_legends(figure, class_names=class_names, colors=colors, scales=scales)
    return figure


def crop_around(box: Box, *, width: int, height: int) -> Box:
    """A square around a box with some context, moved into the image; smaller where the image is.

    >>> crop_around((0, 0, 10, 10), width=100, height=100)
    (0, 0, 22, 22)
    >>> crop_around((90, 40, 10, 10), width=100, height=18)
    (78, 0, 22, 18)
    """
    x, y, w, h = box
    side = round(max(w, h) * (1 + 2 * CONTEXT))
    across, down = min(side, width), min(side, height)
    left = min(max(0, x + (w - across) // 2), width - across)
    top = min(max(0, y + (h - down) // 2), height - down)
    return left, top, across, down


def end_of_scale(parts: Sequence[Map | None]) -> float:
    """The 99.8 % quantile of the shown parts: one scale for all regions."""
    known = [part.ravel() for part in parts if part is not None]
    return max(float(np.quantile(np.concatenate(known), 0.998)), 1e-3) if known else 1.0


def painted(
    image: RgbImage, mask: npt.NDArray[np.uint8], colors: RgbImage, *, strength: float = 0.72
) -> RgbImage:
    """A mask over its image, RGB uint8 [H, W, 3]; unlabeled pixels are dimmed."""
    grey = image.mean(axis=2, keepdims=True).astype(np.float32).repeat(3, axis=2)
    labeled = mask != IGNORE
    color = colors[np.where(labeled, mask, 0)].astype(np.float32)
    mixed = np.where(labeled[..., None], (1 - strength) * grey + strength * color, 0.25 * grey + 24)
    return np.rint(mixed).clip(0, 255).astype(np.uint8)


def _draw_row(
    axes: Sequence[Axes], row: GalleryRow, *, colors: RgbImage, scales: tuple[float, float]
) -> None:
    extent, whole = _extent(row.shown), _extent((0, 0, *row.size))
    where, image, prediction, entropy, information, label = axes
    for one in axes:
        one.set_xticks([])
        one.set_yticks([])
        one.grid(False)
        for spine in one.spines.values():
            spine.set_visible(False)
    where.imshow(row.overview, extent=whole, interpolation="antialiased")
    where.set_anchor("C")
    image.imshow(row.image, extent=extent, interpolation="bicubic")
    for one, mask in ((prediction, row.prediction), (label, row.label)):
        if mask is None:
            _write_instead(one, "not labeled yet")
        else:
            one.imshow(painted(row.image, mask, colors), extent=extent, interpolation="nearest")
    for one, values, high in (
        (entropy, row.entropy, scales[0]),
        (information, row.mutual_information, scales[1]),
    ):
        if values is None:
            _write_instead(one, "needs samples")
        else:
            one.imshow(values, extent=extent, cmap=COLORMAP, vmin=0, vmax=high, interpolation="bicubic")
    for one in axes:
        if one.images:
            _outline(one, row.box)
    reason = textwrap.fill(row.reason, width=REASON_LETTERS)
    _write_above(where, _shorten(row.heading), at=0, points=5, fontsize=9.5, fontweight="bold")
    _write_above(image, reason, at=0, points=5, fontsize=9, color=MUTED, va="bottom")


def _write_above(axes: Axes, text: str, *, at: float, points: float, **style: Any) -> None:
    """Write a text above the cell of a picture; it may be wider. `at` is 0 to 1 across the cell."""
    place: dict[str, Any] = {"xycoords": _cell(axes), "textcoords": "offset points"}
    axes.annotate(text, (at, 1), xytext=(0, points), annotation_clip=False, **place, **style)


def _cell(axes: Axes) -> Transform:
    """Coordinates, 0 to 1, of a picture's cell, which may be wider than the picture."""
    figure, place = axes.figure, axes.get_subplotspec()
    if place is None:
        return axes.transAxes
    return BboxTransformTo(place.get_position(figure.figure)) + figure.transFigure


def _shorten(heading: str) -> str:
    """The heading, without its middle where it is wider than its column."""
    if len(heading) <= HEADING_LETTERS:
        return heading
    half = HEADING_LETTERS // 2
    return f"{heading[: half - 1]}…{heading[-half:]}"


def _write_instead(axes: Axes, words: str) -> None:
    axes.set_facecolor("#f3f4f6")
    axes.set_box_aspect(1)
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color=MUTED, fontsize=9)


def _extent(box: Box) -> tuple[float, float, float, float]:
    """Where the pixels of a box lie: left, right, bottom, top."""
    x, y, w, h = box
    return x - 0.5, x + w - 0.5, y + h - 0.5, y - 0.5


def _outline(axes: Axes, box: Box) -> None:
    x, y, w, h = box
    for color, width in (("black", 2.6), ("white", 1.2)):
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), w, h, fill=False, edgecolor=color, linewidth=width))


def _draw_legends(
    figure: Figure, *, class_names: Sequence[str], colors: RgbImage, scales: tuple[float, float]
) -> None:
    total = figure.get_figheight()
    shown = list(class_names)[:12]
    figure.legend(
        handles=[
            Patch(facecolor=colors[index] / 255, edgecolor=MUTED, linewidth=0.5, label=name)
            for index, name in enumerate(shown)
        ],
        loc="lower left",
        bbox_to_anchor=(0.005, 0.14 / total),
        ncols=6 if len(shown) > 6 else len(shown),
        fontsize=9.5,
        handlelength=1.2,
        columnspacing=1.4,
    )
    for left, name, high in zip(
        (0.512, 0.676), ("entropy / ln C", "mutual information / ln C"), scales, strict=True
    ):
        bar = figure.add_axes((left, 0.5 / total, 0.14, 0.11 / total))
        scale = ScalarMappable(Normalize(0, high), colormaps[COLORMAP])
        figure.colorbar(scale, cax=bar, orientation="horizontal", ticks=[0, high / 2, high], format="%.2g")
        bar.tick_params(labelsize=8, length=2, color=MUTED)
        bar.set_title(name, fontsize=8.5, fontweight="normal", pad=3, loc="center", color=INK)
