"""From maps to regions, on the device: only [images, regions, columns] leave it.

Legend: B images of one size, R regions in Y rows and X columns, C classes, M measures, N columns, h w the
maps' size, K cells that meet a region.

A cell of the maps counts for a region by the area, in image pixels, that the two share: a cell that
straddles a border is split exactly, and what reaches beyond the image counts for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, log
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config import Measure, RegionConfig
from pipeline.uncertainty.measures import predicted_class
from pipeline.uncertainty.predictor import Prediction
from pipeline.uncertainty.regions import region_boxes

TOP_CELLS = 0.1
"""Share of a region's area that `entropy_top10` averages."""
TOP_REGIONS = 0.25
"""Share of an image's regions that its own score averages: a plain mean drowns in road and sky."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class RegionColumns:
    """The regions of one image, or one row for the image itself; `measures` has [R] a measure."""

    index: npt.NDArray[np.int32]
    boxes: npt.NDArray[np.int32]
    pixels: npt.NDArray[np.int64]
    predicted_class: npt.NDArray[np.int16]
    class_share: Floats
    impurity: Floats
    measures: dict[Measure, Floats]
    entropy_top10: Floats


@dataclass(frozen=True)
class RegionGrid:
    """How the cells of maps of one size meet the regions of images of one size.

    Attributes:
        boxes: [R, 4] in image pixels.
        rows, columns: shared lengths [Y, h] and [X, w] in image pixels; their product is the shared area.
        row_cells, column_cells: the cells that meet a row [Y, Kh] or column [X, Kw] of regions, padded.
        row_lengths, column_lengths: their shared lengths; 0 where padded.
        top: cells of one region that are enough to fill `TOP_CELLS` of its area.
    """

    boxes: npt.NDArray[np.int32]
    rows: Tensor
    columns: Tensor
    row_cells: Tensor
    column_cells: Tensor
    row_lengths: Tensor
    column_lengths: Tensor
    top: int


@dataclass(frozen=True)
class Reduction:
    """Regions [B, R, N] and images [B, N], float32, still on the device.

    Columns: predicted class, its share, impurity, each of `measures`, `entropy_top10`.
    """

    grid: RegionGrid
    measures: tuple[Measure, ...]
    regions: Tensor
    images: Tensor

    def columns(self) -> list[tuple[RegionColumns, RegionColumns]]:
        """Bring the table to the host: for each image its regions, and the image as one region."""
        boxes = self.grid.boxes
        whole = np.array([[0, 0, (boxes[:, 0] + boxes[:, 2]).max(), (boxes[:, 1] + boxes[:, 3]).max()]])
        regions, images = self.regions.cpu().numpy(), self.images.cpu().numpy()
        return [
            (self._named(regions[item], boxes), self._named(images[item : item + 1], whole.astype(np.int32)))
            for item in range(len(regions))
        ]

    def _named(self, table: Floats, boxes: npt.NDArray[np.int32]) -> RegionColumns:
        return RegionColumns(
            index=np.arange(len(boxes), dtype=np.int32),
            boxes=boxes,
            pixels=boxes[:, 2].astype(np.int64) * boxes[:, 3],
            predicted_class=table[:, 0].astype(np.int16),
            class_share=table[:, 1],
            impurity=table[:, 2],
            measures={name: table[:, 3 + place] for place, name in enumerate(self.measures)},
            entropy_top10=table[:, -1],
        )


@torch.inference_mode()
def reduce_regions(prediction: Prediction, grid: RegionGrid) -> Reduction:
    """The mean of each measure over each region and what else a region's row holds; likewise for images.

    An image's measure is the mean over its `TOP_REGIONS` with the largest values of that measure; its class
    and share are those of all its pixels.
    """
    maps = prediction.measures()
    classes = prediction.logits.shape[1]
    predicted = predicted_class(prediction.probability)
    votes = predicted[:, None] == torch.arange(classes, device=predicted.device)[:, None, None]
    stacked = torch.cat([torch.stack(list(maps.values()), dim=1), votes.float()], dim=1)
    sums = grid.rows @ stacked @ grid.columns.T
    areas = (grid.rows.sum(dim=1)[:, None] * grid.columns.sum(dim=1)).flatten()
    sums = sums.flatten(2).transpose(1, 2)
    means = sums[..., : len(maps)] / areas[:, None]
    histogram = sums[..., len(maps) :]
    share, winner = (histogram / areas[:, None]).max(dim=-1)
    impurity = torch.special.entr(histogram / areas[:, None]).sum(dim=-1).clamp_(min=0) / log(classes)
    top = _top_mean(maps["entropy"], grid)
    ranked = torch.cat([impurity[..., None], means, top[..., None]], dim=-1)
    image_share, image_winner = (histogram.sum(dim=1) / areas.sum()).max(dim=-1)
    best = ranked.topk(ceil(TOP_REGIONS * ranked.shape[1]), dim=1).values.mean(dim=1)
    return Reduction(
        grid=grid,
        measures=tuple(maps),
        regions=torch.cat([winner[..., None], share[..., None], ranked], dim=-1),
        images=torch.cat([image_winner[:, None], image_share[:, None], best], dim=-1),
    )


def region_grid(
    config: RegionConfig,
    *,
    image_size: tuple[int, int],
    network_size: tuple[int, int],
    cell: int,
    device: torch.device,
) -> RegionGrid:
    """The geometry of one image size; few sizes make up a pool, so it is kept.

    Args:
        config: the kind of regions.
        image_size: height and width of the image.
        network_size: height and width of what the network saw.
        cell: pixels of the network's image a cell of the maps.
        device: where the maps are.
    """
    return _region_grid(config.kind, config.cell, image_size, network_size, cell, device)


@lru_cache(maxsize=64)
def _region_grid(
    kind: Literal["grid", "image"],
    side: int,
    image_size: tuple[int, int],
    network_size: tuple[int, int],
    cell: int,
    device: torch.device,
) -> RegionGrid:
    height, width = image_size
    boxes = region_boxes(RegionConfig(kind=kind, cell=side), width, height)
    rows = _shared(boxes[:, 1], boxes[:, 3], length=height, network_length=network_size[0], cell=cell)
    columns = _shared(boxes[:, 0], boxes[:, 2], length=width, network_length=network_size[1], cell=cell)
    row_cells, row_lengths = _meeting(rows)
    column_cells, column_lengths = _meeting(columns)
    return RegionGrid(
        boxes=boxes,
        rows=rows.float().to(device),
        columns=columns.float().to(device),
        row_cells=row_cells.to(device),
        column_cells=column_cells.to(device),
        row_lengths=row_lengths.float().to(device),
        column_lengths=column_lengths.float().to(device),
        top=max(
            _enough(row[:, None] * column)
            for row in _extremes(row_lengths)
            for column in _extremes(column_lengths)
        ),
    )


def _shared(
    starts: npt.NDArray[np.int32],
    sizes: npt.NDArray[np.int32],
    *,
    length: int,
    network_length: int,
    cell: int,
) -> Tensor:
    """Lengths [regions along the side, cells] that regions and cells share, float64, in image pixels."""
    intervals = np.unique(np.stack([starts, starts + sizes], axis=1), axis=0)
    begin, end = torch.from_numpy(intervals.astype(np.float64)).unbind(dim=1)
    edges = torch.arange(-(-network_length // cell) + 1, dtype=torch.float64) * cell
    edges = edges.clamp(max=network_length) * (length / network_length)
    low = torch.maximum(begin[:, None], edges[None, :-1])
    high = torch.minimum(end[:, None], edges[None, 1:])
    return (high - low).clamp_(min=0)


def _meeting(shared: Tensor) -> tuple[Tensor, Tensor]:
    """The cells [regions, K] that a region meets, and the lengths they share; padded with length 0."""
    order = (shared > 0).to(torch.int8).argsort(dim=1, descending=True, stable=True)
    most = int((shared > 0).sum(dim=1).max())
    cells = order[:, :most]
    return cells, shared.gather(1, cells)


def _extremes(lengths: Tensor) -> list[Tensor]:
    """The different rows of [regions, K]: most regions of a grid meet their cells alike."""
    return list(torch.unique(lengths, dim=0))


def _enough(areas: Tensor) -> int:
    """How many cells cover `TOP_CELLS` of a region, whichever they are: the smallest ones do."""
    ascending = areas.flatten().sort().values
    ascending = ascending[ascending > 0]
    covered = ascending.cumsum(dim=0) >= TOP_CELLS * ascending.sum()
    return int((~covered).sum()) + 1


def _top_mean(entropy: Tensor, grid: RegionGrid) -> Tensor:
    """The mean of the highest `TOP_CELLS` of each region's area [B, R] of a map [B, h, w]."""
    cells = entropy[:, grid.row_cells[:, None, :, None], grid.column_cells[None, :, None, :]].flatten(-2)
    area = grid.row_lengths[:, None, :, None] * grid.column_lengths[None, :, None, :]
    area = area.flatten(-2).expand_as(cells)
    values, place = cells.masked_fill(area == 0, -1).topk(min(grid.top, cells.shape[-1]), dim=-1)
    wanted = TOP_CELLS * area.sum(dim=-1, keepdim=True)
    area = area.gather(-1, place)
    taken = torch.minimum(area, (wanted - (area.cumsum(dim=-1) - area)).clamp_(min=0))
    return ((values * taken).sum(dim=-1) / taken.sum(dim=-1)).flatten(1)
