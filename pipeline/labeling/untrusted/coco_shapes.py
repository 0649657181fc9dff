"""The shapes of COCO annotations: run lengths, compressed or not, and polygons (Lin et al. 2014).

No untrusted value reaches pycocotools' C code unchecked: run lengths are decoded here, and a
polygon's corners are finite, few and near the image.

Legend: H height, W width, R runs. Pixels are numbered column by column, as in COCO.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

from pipeline.errors import DataError

MOST_CORNERS = 1_000_000
"""Corners of an annotation's polygons."""

LONGEST_BORDER = 1 << 20
"""Pixels of the borders of an annotation's polygons together: enough to fill an image of a megapixel."""

_FIRST_DIGIT = 48
_DIGIT_BITS = 5
_GOES_ON, _NEGATIVE = 0x20, 0x10
_MOST_DIGITS = 7
_FAR = 10_000
"""Distance of a corner from the image that is allowed, in pixels, besides the image's own size."""

_DRAW_AGAIN = "Draw it again, or leave it out."


@dataclass(frozen=True)
class Runs:
    """The pixels of a shape: R runs, int64 [R] each, sorted and disjoint; and the length of the polygons'
    borders, where it comes from polygons."""

    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    border: int = 0

    @property
    def area(self) -> int:
        return int(self.lengths.sum())


def read_shape(segmentation: Any, *, width: int, height: int) -> Runs:
    """The pixels of an annotation's `segmentation`, in an image of this size.

    Polygons are filled as by pycocotools; several of them are one shape. Their parts outside of the image
    are cut off.

    Raises:
        DataError: it is none of COCO's kinds, is of another size, or is invalid.
    """
    if isinstance(segmentation, dict):
        return _of_run_lengths(segmentation, width=width, height=height)
    if isinstance(segmentation, list) and segmentation:
        return _of_polygons(segmentation, width=width, height=height)
    raise DataError("It has no mask and no polygon, perhaps only a box.", "Draw its shape.")


def decode_counts(text: str) -> npt.NDArray[np.int64]:
    """The run lengths of COCO's compressed encoding, int64 [R]: of pixels outside of the shape first, then
    of pixels inside, and so on. They may have any value.

    >>> decode_counts("021O").tolist()
    [0, 2, 1, 1]

    Raises:
        DataError: the text is not in that encoding.
    """
    if not text.isascii():
        raise DataError("Its run lengths have characters that none has.", _DRAW_AGAIN)
    digits = np.frombuffer(text.encode("ascii"), dtype=np.uint8).astype(np.int64) - _FIRST_DIGIT
    if len(digits) == 0:
        return digits
    if digits.min() < 0 or digits.max() > 63:
        raise DataError("Its run lengths have characters that none has.", _DRAW_AGAIN)
    lasts = np.flatnonzero((digits & _GOES_ON) == 0)
    firsts = np.concatenate(([0], lasts[:-1] + 1))
    sizes = lasts - firsts + 1
    if len(lasts) == 0 or lasts[-1] != len(digits) - 1 or sizes.max() > _MOST_DIGITS:
        raise DataError("Its run lengths are cut off.", _DRAW_AGAIN)
    shifts = _DIGIT_BITS * (np.arange(len(digits)) - np.repeat(firsts, sizes))
    counts = np.add.reduceat((digits & 0x1F) << shifts, firsts)
    counts -= np.where(digits[lasts] & _NEGATIVE, np.int64(1) << (_DIGIT_BITS * sizes), 0)
    counts[1::2] = np.cumsum(counts[1::2])  # from the fourth on, each is the difference to the last but one
    counts[2::2] = np.cumsum(counts[2::2])
    return counts


def _of_run_lengths(segmentation: dict[str, Any], *, width: int, height: int) -> Runs:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list) or len(size) != 2 or any(type(one) is not int for one in size):
        raise DataError("Its mask has no size.", _DRAW_AGAIN)
    if size != [height, width]:
        raise DataError(
            f"Its mask is of {size[1]}×{size[0]} pixels, and the image of {width}×{height}."[:200],
            "Draw it on the image that was exported.",
        )
    if isinstance(counts, str):
        return _runs(decode_counts(counts), pixels=width * height)
    if not isinstance(counts, list) or any(type(count) is not int for count in counts):
        raise DataError("Its mask has no run lengths.", _DRAW_AGAIN)
    if any(not 0 <= count <= width * height for count in counts):
        raise DataError("Its run lengths are not those of this image.", _DRAW_AGAIN)
    return _runs(np.array(counts, dtype=np.int64), pixels=width * height)


def _runs(counts: npt.NDArray[np.int64], *, pixels: int) -> Runs:
    if len(counts) == 0 or counts.min() < 0 or counts.max() > pixels or int(counts.sum()) != pixels:
        raise DataError("Its run lengths are not those of this image.", _DRAW_AGAIN)
    ends = np.cumsum(counts)
    starts, lengths = (ends - counts)[1::2], counts[1::2]
    return Runs(starts=starts[lengths > 0], lengths=lengths[lengths > 0])


def _of_polygons(polygons: list[Any], *, width: int, height: int) -> Runs:
    corners, border = 0, 0.0
    for polygon in polygons:
        corners += len(polygon) // 2 if isinstance(polygon, list) else 0
        if corners > MOST_CORNERS:
            raise DataError(f"Its polygons have more than {MOST_CORNERS} corners.", "Paint it as a mask.")
        border += _border(polygon, reach=width + height)
        if border > LONGEST_BORDER:
            raise DataError("The border of its polygons is too long.", "Paint it as a mask.")
    filled: dict[str, Any] = coco.merge(coco.frPyObjects(polygons, height, width))  # pyright: ignore
    runs = _runs(decode_counts(filled["counts"].decode("ascii")), pixels=width * height)
    return replace(runs, border=int(border))


def _border(polygon: Any, *, reach: int) -> float:
    """The length of a polygon's border, after a check of its corners."""
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        raise DataError("It has a polygon of fewer than three corners.", _DRAW_AGAIN)
    if any(type(number) not in (int, float) or not abs(number) <= _FAR + reach for number in polygon):
        raise DataError("It has a polygon with corners that are far outside of the image.", _DRAW_AGAIN)
    points = np.array(polygon, dtype=np.float64).reshape(-1, 2)
    steps = points - np.roll(points, 1, axis=0)
    return math.fsum(np.abs(steps).max(axis=1).tolist())
