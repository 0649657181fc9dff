"""CVAT's encoding of masks: connected pieces, each with a box and the lengths of its runs.

Runs are counted row by row in the box, and begin with the pixels before the first painted one.

Legend: H height, W width, P pieces.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from skimage.measure import label as connected

from pipeline.config import IGNORE
from pipeline.data.masks import Mask
from pipeline.errors import DataError

MOST_PIECES = 2000
"""Shapes that are written for an image, besides one more for each class: more cannot be handled."""

_RUNS = re.compile("[0-9, ]+")
_REMEDY = "Export it from CVAT again."


@dataclass(frozen=True)
class Piece:
    """A shape of one class, in pixels of the image; `runs` count unpainted and painted pixels in turn."""

    index: int
    left: int
    top: int
    width: int
    height: int
    runs: npt.NDArray[np.int64]


def number_pieces(mask: Mask, *, most: int = MOST_PIECES) -> tuple[npt.NDArray[np.int32], list[int]]:
    """The pieces of a mask [H, W]: their numbers [H, W] from 1 on, 0 where it has no class, and the class of
    each.

    Pixels that touch at a corner belong to one piece, as in OpenCV's contours, by which CVAT makes polygons
    of masks; this also gives fewer pieces. Beyond `most`, the smallest pieces of a class are merged.
    """
    numbers: npt.NDArray[np.int32] = np.asarray(
        connected(mask.astype(np.int32), background=IGNORE, connectivity=2), dtype=np.int32
    )
    sizes = np.bincount(numbers.ravel())
    classes = np.zeros(len(sizes), dtype=np.int32)
    classes[numbers.ravel()] = mask.ravel()
    if len(sizes) - 1 > most:
        merged = np.arange(len(sizes))
        small = 1 + np.argsort(-sizes[1:], kind="stable")[most:]
        for index in np.unique(classes[small]):
            of_class = small[classes[small] == index]
            merged[of_class] = of_class.min()
        kept, table = np.unique(merged, return_inverse=True)
        numbers, classes = table.astype(np.int32)[numbers], classes[kept]
    return numbers, classes[1:].tolist()


def encode(mask: Mask) -> Iterator[Piece]:
    """The pieces of a mask [H, W], without the pixels that have no class."""
    numbers, classes = number_pieces(mask)
    height, width = numbers.shape
    padded = np.zeros((height, width + 1), dtype=np.int32)
    padded[:, :width] = numbers
    flat = padded.ravel()
    begins = np.flatnonzero(np.diff(flat, prepend=0))
    ends = np.append(begins[1:], flat.size)
    painted = flat[begins] > 0
    begins, ends = begins[painted], ends[painted]
    owners = flat[begins]
    order = np.argsort(owners, kind="stable")
    begins, ends = begins[order], ends[order]
    borders = np.searchsorted(owners[order], np.arange(1, len(classes) + 2))
    for index, first, last in zip(classes, borders[:-1], borders[1:], strict=True):
        rows, columns = np.divmod(begins[first:last], width + 1)
        stops = columns + ends[first:last] - begins[first:last]
        left, top = int(columns.min()), int(rows[0])
        box_width, box_height = int(stops.max()) - left, int(rows[-1]) - top + 1
        places = np.stack([columns, stops], axis=1) - left + ((rows - top) * box_width)[:, None]
        yield Piece(index, left, top, box_width, box_height, _runs(places.ravel(), box_width * box_height))


def parse_runs(text: str, *, width: int, height: int) -> npt.NDArray[np.int64]:
    """The runs of a box, from untrusted text.

    Raises:
        DataError: they are no counts, or do not fill the box.
    """
    if _RUNS.fullmatch(text) is None:
        raise DataError("It has a mask whose runs are no counts.", _REMEDY)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            runs = np.fromstring(text, dtype=np.int64, sep=",")
    except (ValueError, DeprecationWarning) as error:
        raise DataError("It has a mask whose runs are no counts.", _REMEDY) from error
    area = width * height
    if len(runs) != text.count(",") + 1 or (runs > area).any() or int(runs.sum()) != area:
        raise DataError(f"It has a mask whose runs do not fill its box of {width}×{height} pixels.", _REMEDY)
    return runs


def _runs(places: npt.NDArray[np.int64], area: int) -> npt.NDArray[np.int64]:
    """Runs, from the rising positions where painting begins and ends; a run may continue in the next row."""
    joined = np.flatnonzero(places[1:-1:2] == places[2::2])
    places = np.delete(places, np.concatenate([2 * joined + 1, 2 * joined + 2]))
    if places[-1] == area:
        places = places[:-1]
    return np.diff(places, prepend=0, append=area)
