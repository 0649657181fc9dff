"""Paints a stranger's shapes over each other, with a bound on the work.

Legend: H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipeline.config import IGNORE
from pipeline.errors import DataError
from pipeline.labeling.exchange import DecodedMask
from pipeline.labeling.untrusted.coco_shapes import LONGEST_BORDER, read_shape

MOST_LAYERS = 64
"""So often may every pixel of an image be painted."""
_SPARSE = 8
_REMEDY = "Export it from CVAT again."


class Canvas:
    """A mask [H, W] in the making. A later shape lies over an earlier one; the pixels that shapes of
    different classes claim are counted."""

    def __init__(self, *, width: int, height: int) -> None:
        self._mask = np.full((height, width), IGNORE, dtype=np.uint8)
        self._contested = np.zeros((height, width), dtype=bool)
        self._left = MOST_LAYERS * width * height + LONGEST_BORDER

    def painted(self) -> DecodedMask:
        """What has been painted."""
        return DecodedMask(mask=self._mask, overlapping=int(self._contested.sum()))

    def check_box(self, *, left: int, top: int, width: int, height: int) -> None:
        """Make sure that a box is inside the image.

        Raises:
            DataError: it is not.
        """
        rows, columns = self._mask.shape
        if min(left, top) < 0 or left + width > columns or top + height > rows:
            raise DataError("It has a mask that is not inside the image.", _REMEDY)

    def paint_runs(self, index: int, runs: npt.NDArray[np.int64], *, left: int, top: int, width: int) -> None:
        """Paint a class in a box inside the image, by runs that fill the box.

        Raises:
            DataError: there has been too much to paint.
        """
        columns, height = self._mask.shape[1], int(runs.sum()) // width
        size = int(runs[1::2].sum())
        if width * height > _SPARSE * size:
            self._spend(size + len(runs))
            places = _places(runs)
            row, column = np.divmod(places, width)
            self._paint(index, (row + top) * columns + column + left)
        else:
            self._spend(width * height)
            turns = (np.arange(len(runs)) & 1).astype(bool)
            self._paint_box(index, np.repeat(turns, runs).reshape(height, width), left=left, top=top)

    def paint_polygon(self, index: int, points: Sequence[float]) -> None:
        """Paint a class in a polygon (x, y in turn), as COCO's tools do it: Datumaro, and with it CVAT, make
        masks of polygons by them. What is outside of the image is cut off.

        Raises:
            DataError: a point is far away from the image, or there has been too much to paint.
        """
        rows, columns = self._mask.shape
        shape = read_shape([list(points)], width=columns, height=rows)
        self._spend(shape.area + shape.border)
        offsets = shape.starts - (np.cumsum(shape.lengths) - shape.lengths)
        column, row = np.divmod(np.repeat(offsets, shape.lengths) + np.arange(shape.area), rows)
        self._paint(index, row * columns + column)

    def _paint_box(self, index: int, inside: npt.NDArray[np.bool_], *, left: int, top: int) -> None:
        box = slice(top, top + inside.shape[0]), slice(left, left + inside.shape[1])
        before = self._mask[box]
        self._contested[box] |= inside & (before != IGNORE) & (before != index)
        before[inside] = index

    def _paint(self, index: int, places: npt.NDArray[np.int64]) -> None:
        mask, contested = self._mask.reshape(-1), self._contested.reshape(-1)
        before = mask[places]
        contested[places[(before != IGNORE) & (before != index)]] = True
        mask[places] = index

    def _spend(self, work: int) -> None:
        self._left -= work
        if self._left < 0:
            raise DataError(
                f"Its shapes cover the image more than {MOST_LAYERS} times.",
                "Merge shapes of a class in CVAT.",
            )


def _places(runs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The painted places of a box, row by row."""
    ends = np.cumsum(runs)
    lengths = runs[1::2]
    starts = (ends - runs)[1::2]
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))
