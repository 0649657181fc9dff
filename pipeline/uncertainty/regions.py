"""Regions: the unit of scoring and of labeling.

Legend: R regions; a box is (x, y, w, h) in image pixels, x to the right and y downwards.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.config import RegionConfig


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
    """Boxes [R, 4] of an image's regions; the row is the region's index, row by row from the top left.

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
