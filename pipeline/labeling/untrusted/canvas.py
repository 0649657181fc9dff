"""A mask that untrusted shapes are painted on, with a bound on the work.

Legend: H height, W width, R runs. Pixels are numbered column by column, as in COCO.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import IGNORE
from pipeline.errors import DataError
from pipeline.labeling.exchange import DecodedMask
from pipeline.labeling.untrusted.coco_shapes import LONGEST_BORDER, Runs

MOST_COVERS = 64
"""Area of all shapes of an image, in areas of the image, that is allowed."""
_SPARSE = 8
"""A shape that fills less than one in so many pixels of its window is painted pixel by pixel."""


class Canvas:
    """A mask [H, W] to paint on. A later shape has the pixel; pixels that shapes of different classes cover
    are counted."""

    def __init__(self, *, width: int, height: int) -> None:
        self._height = height
        self._classes = np.full(width * height, IGNORE, dtype=np.uint8)
        self._contested = np.zeros(width * height, dtype=bool)
        self._left = MOST_COVERS * width * height + LONGEST_BORDER

    def paint(self, runs: Runs, value: int) -> None:
        """Paint a shape.

        Raises:
            DataError: the shapes cover the image more than `MOST_COVERS` times.
        """
        area = runs.area
        self._spend(area + runs.border)
        if not area:
            return
        first, last = int(runs.starts[0]), int(runs.starts[-1] + runs.lengths[-1])
        chosen = _chosen(runs, area=area, first=first, span=last - first)
        _paint(self._classes[first:last], self._contested[first:last], chosen, value)

    def paint_box(
        self, counts: npt.NDArray[np.int64], value: int, *, left: int, top: int, width: int
    ) -> None:
        """Paint a shape in a box inside the image.

        Args:
            counts: run lengths of unpainted and painted pixels in turn, row by row; they fill the box.

        Raises:
            DataError: as `paint`.
        """
        size, area = int(counts[1::2].sum()), int(counts.sum())
        if area > _SPARSE * size:
            self._spend(size + len(counts))
            rows, columns = np.divmod(_painted_indices(counts), width)
            _paint(self._classes, self._contested, (columns + left) * self._height + rows + top, value)
            return
        self._spend(area)
        box = slice(left, left + width), slice(top, top + area // width)
        turns = (np.arange(len(counts)) & 1).astype(bool)
        inside = np.repeat(turns, counts).reshape(-1, width).T
        _paint(
            self._classes.reshape(-1, self._height)[box],
            self._contested.reshape(-1, self._height)[box],
            inside,
            value,
        )

    def decoded(self) -> DecodedMask:
        """The painted mask, uint8 [H, W]: 255 where no shape is."""
        mask = np.ascontiguousarray(self._classes.reshape(-1, self._height).T)
        return DecodedMask(mask, overlapping=int(np.count_nonzero(self._contested)))

    def _spend(self, work: int) -> None:
        self._left -= work
        if self._left < 0:
            raise DataError(
                f"Its shapes cover the image more than {MOST_COVERS} times.",
                "Merge the shapes of a class, or leave out those that repeat.",
            )


def _paint(
    classes: npt.NDArray[np.uint8], contested: npt.NDArray[np.bool_], chosen: npt.NDArray[Any], value: int
) -> None:
    """Paint the chosen pixels of a window: indices, or bool of its shape."""
    if chosen.dtype == np.bool_:
        contested |= chosen & (classes != IGNORE) & (classes != value)
        np.copyto(classes, np.uint8(value), where=chosen)
        return
    before = classes[chosen]
    contested[chosen] |= (before != IGNORE) & (before != value)
    classes[chosen] = value


def _chosen(runs: Runs, *, area: int, first: int, span: int) -> npt.NDArray[Any]:
    """The shape's pixels of a window: indices where they are few, else bool [span]."""
    if area * _SPARSE < span:
        offsets = runs.starts - first - (np.cumsum(runs.lengths) - runs.lengths)
        return np.repeat(offsets, runs.lengths) + np.arange(area)
    edges = np.empty(2 * len(runs.starts), dtype=np.int64)
    edges[0::2], edges[1::2] = runs.starts, runs.starts + runs.lengths
    return np.repeat(np.arange(len(edges) - 1) % 2 == 0, np.diff(edges))


def _painted_indices(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The indices of a box's painted pixels, row by row."""
    lengths = counts[1::2]
    starts = (np.cumsum(counts) - counts)[1::2]
    return np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(int(lengths.sum()))
