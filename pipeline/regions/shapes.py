"""Regions: the unit of scoring and of labeling.

Legend: H W image size; h w size of the maps; R regions; P pairs of a region and a cell of the maps that meet;
a box is (x, y, w, h) in image pixels, x to the right and y downwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pipeline.config import RegionConfig
from pipeline.data.bands import bands
from pipeline.regions.outlines import encode_outline

NOWHERE = -1
"""In a region map: a pixel that belongs to no region."""

_SLIVER = 1e-6
"""Share of a pixel below which a cell and a pixel meet only by rounding."""


@dataclass(frozen=True)
class Regions:
    """The regions of one image of `width` × `height` pixels.

    Attributes:
        index: [R] what the regions are called: the row of a grid, the value in a region map.
        boxes: [R, 4].
        pixels: [R].
        outlines: R of them; None where every region fills its box.
    """

    width: int
    height: int
    index: npt.NDArray[np.int32]
    boxes: npt.NDArray[np.int32]
    pixels: npt.NDArray[np.int64]
    outlines: tuple[str | None, ...] | None = None

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class RegionMap:
    """Regions of any shape: `row` [H, W] is each pixel's row in `regions`, or `NOWHERE`."""

    regions: Regions
    row: npt.NDArray[np.int32]


class CellBounds(NamedTuple):
    """Which pixels of the network's image belong to which cell of its maps: `rows` [h + 1] and `columns`
    [w + 1], ascending from 0 to the image's height and width; cell i begins at the i-th value."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]


@dataclass(frozen=True)
class CellShares:
    """How regions of any shape meet the cells of maps of one size.

    Attributes:
        region: [P] row of the region.
        cell: [P] the cell, row by row.
        area: [P] what the two share, in image pixels.
    """

    regions: Regions
    region: npt.NDArray[np.int64]
    cell: npt.NDArray[np.int64]
    area: npt.NDArray[np.float32]


def cell_edges(length: int, cell: int) -> npt.NDArray[np.int32]:
    """Edges of the cells along one side: the remainder is a cell of its own from half a cell on, and is
    joined to the last cell below that.

    >>> cell_edges(100, 30).tolist(), cell_edges(110, 30).tolist(), cell_edges(5, 30).tolist()
    ([0, 30, 60, 100], [0, 30, 60, 90, 110], [0, 5])
    """
    cells = max(1, (2 * length + cell) // (2 * cell))
    edges = np.arange(cells + 1, dtype=np.int32) * cell
    edges[-1] = length
    return edges


def region_boxes(config: RegionConfig, width: int, height: int) -> npt.NDArray[np.int32]:
    """Boxes [R, 4] of the cells of a grid, or the box of the whole image; the row is the region's index, row
    by row from the top left.

    >>> region_boxes(RegionConfig(kind="grid", cell=50), 100, 60).tolist()
    [[0, 0, 50, 60], [50, 0, 50, 60]]
    >>> region_boxes(RegionConfig(kind="image"), 100, 60).tolist()
    [[0, 0, 100, 60]]
    """
    if config.kind == "image":
        return np.array([[0, 0, width, height]], dtype=np.int32)
    columns = cell_edges(width, config.cell)
    rows = cell_edges(height, config.cell)
    x, y = np.meshgrid(columns[:-1], rows[:-1])
    w, h = np.meshgrid(np.diff(columns), np.diff(rows))
    return np.stack([x.ravel(), y.ravel(), w.ravel(), h.ravel()], axis=1)


def box_regions(config: RegionConfig, width: int, height: int) -> Regions:
    """The cells of a grid, or the whole image, as regions."""
    boxes = region_boxes(config, width, height)
    return Regions(
        width=width,
        height=height,
        index=np.arange(len(boxes), dtype=np.int32),
        boxes=boxes,
        pixels=boxes[:, 2].astype(np.int64) * boxes[:, 3],
    )


def map_regions(values: npt.NDArray[np.integer], *, nowhere: int | None = None) -> RegionMap:
    """The regions of a map [H, W]: pixels of one value are one region, connected or not.

    Args:
        values: not negative; the value is the region's index.
        nowhere: the value of pixels that belong to no region.

    >>> found = map_regions(np.array([[7, 7, 2], [7, 2, 2]]))
    >>> found.regions.index.tolist(), found.regions.boxes.tolist(), found.regions.pixels.tolist()
    ([2, 7], [[1, 0, 2, 2], [0, 0, 2, 2]], [3, 3])
    """
    height, width = values.shape
    held = np.zeros(int(values.max(initial=0)) + 1, dtype=np.int64)
    for rows in bands(height, width):  # it makes int64 of all that it counts
        held += np.bincount(values[rows].ravel(), minlength=len(held))
    if nowhere is not None and nowhere < len(held):
        held[nowhere] = 0
    index = np.flatnonzero(held)
    row_of = np.full(len(held), NOWHERE, dtype=np.int32)
    row_of[index] = np.arange(len(index))
    row = row_of[values]
    windows = ndimage.find_objects(row + 1, max_label=len(index))
    boxes = np.array(
        [(x.start, y.start, x.stop - x.start, y.stop - y.start) for y, x in windows], dtype=np.int32
    ).reshape(-1, 4)
    outlines = tuple(encode_outline(row[window] == position) for position, window in enumerate(windows))
    regions = Regions(
        width=width,
        height=height,
        index=index.astype(np.int32),
        boxes=boxes,
        pixels=held[index].astype(np.int64),
        outlines=None if not any(outlines) else outlines,
    )
    return RegionMap(regions=regions, row=row)


def cell_shares(found: RegionMap, bounds: CellBounds) -> CellShares:
    """The area that each region shares with each cell of the maps: exact, also where images were resized and
    cells end inside of pixels."""
    height, width = found.row.shape
    columns = len(bounds.columns) - 1
    cells = columns * (len(bounds.rows) - 1)
    parts = [_pairs(found.row, rows, bounds) for rows in bands(height, width)]
    keys, areas = (np.concatenate(part) for part in zip(*parts, strict=True))
    pairs, which = np.unique(keys, return_inverse=True)
    area = np.bincount(which, weights=areas)
    return CellShares(
        regions=found.regions, region=pairs // cells, cell=pairs % cells, area=area.astype(np.float32)
    )


def _pairs(
    row: npt.NDArray[np.int32], rows: slice, bounds: CellBounds
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """In some rows of pixels, the pairs of a region and a cell that meet, as the region times the number of
    cells plus the cell, and the areas that they share."""
    height, width = row.shape
    columns = len(bounds.columns) - 1
    inside = row[rows].ravel() != NOWHERE
    base = row[rows].astype(np.int64) * (columns * (len(bounds.rows) - 1))
    keys: list[npt.NDArray[np.int64]] = []
    areas: list[npt.NDArray[np.float64]] = []
    for cell_row, tall in _cells_of_pixels(height, bounds.rows):
        for cell_column, wide in _cells_of_pixels(width, bounds.columns):
            key = base + (cell_row[rows] * columns)[:, None] + cell_column
            area = tall[rows, None] * wide
            kept = inside & (area.ravel() > _SLIVER)
            keys.append(key.ravel()[kept])
            areas.append(area.ravel()[kept])
    shared = np.concatenate(areas)
    if len(areas) == 1 and (shared == 1).all():  # each pixel lies in one cell: counting is enough
        pairs, counts = np.unique(keys[0], return_counts=True)
        return pairs, counts.astype(np.float64)
    pairs, which = np.unique(np.concatenate(keys), return_inverse=True)
    return pairs, np.bincount(which, weights=shared, minlength=len(pairs)).astype(np.float64)


@lru_cache(maxsize=256)
def _cells_of_pixels(
    length: int, bounds: tuple[int, ...]
) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
    """The cells that each line of pixels meets, and how much of the line lies in them: first cells [length],
    then second ones, and so on."""
    edges = np.array(bounds, dtype=np.float64) * (length / bounds[-1])
    start = np.arange(length, dtype=np.float64)
    first = np.searchsorted(edges, start + _SLIVER, side="right") - 1
    last = np.searchsorted(edges, start + 1 - _SLIVER, side="left") - 1
    met: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]] = []
    for step in range(int((last - first).max()) + 1):
        meets = (first + step).clip(max=len(edges) - 2)
        shared = np.minimum(edges[meets + 1], start + 1) - np.maximum(edges[meets], start)
        shared[first + step > last] = 0
        met.append((meets, np.where(np.abs(shared - 1) < _SLIVER, 1.0, shared.clip(min=0))))
    return met
