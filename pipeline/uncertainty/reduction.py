"""Maps reduced to regions on the device: only [images, regions, columns] are copied to the host.

Legend: B images of one size, R regions (of a grid: Y rows and X columns), C classes, M measures, N columns,
h w the maps' size, K cells that meet a region, P pairs of a region and a cell that meet.

A cell of the maps holds the pixels that are nearest to its position (see `network.cell_bounds`), and counts
for a region by the area, in image pixels, that the two share: one that straddles a border is split exactly.
Grids are reduced by two small matrix products, regions of any shape by scattered sums; the numbers are the
same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, log

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config import Measure, RegionConfig
from pipeline.data.bands import bands
from pipeline.regions.shapes import CellBounds, CellShares, Regions, box_regions
from pipeline.uncertainty.measures import predicted_class
from pipeline.uncertainty.predictor import Prediction

TOP_CELLS = 0.1
"""Share of a region's area that `entropy_top10` averages."""
TOP_REGIONS = 0.25
"""Share of an image's regions that its score averages: road and sky would dominate a mean over all."""
LEAST_SHARE = 0.01
"""Share of a region from which on a class counts as present in it."""
RAREST_SHARE = 1e-6
"""Share of the training labels that a class without a labeled pixel counts as having."""

Floats = npt.NDArray[np.float32]

_WHOLE = RegionConfig(kind="image")


@dataclass(frozen=True)
class RegionColumns:
    """The regions of one image, or one row for the image itself; `measures` has [R] for each measure.

    `stratum` is the class of `salient_class`, and `stratum_share` its share; None where the shares of the
    classes are not known.
    """

    index: npt.NDArray[np.int32]
    boxes: npt.NDArray[np.int32]
    pixels: npt.NDArray[np.int64]
    predicted_class: npt.NDArray[np.int16]
    class_share: Floats
    impurity: Floats
    measures: dict[Measure, Floats]
    entropy_top10: Floats
    stratum: npt.NDArray[np.int16] | None = None
    stratum_share: Floats | None = None
    outlines: tuple[str | None, ...] | None = None
    """R of them, as in `outlines`; None where every region fills its box."""
    border: Floats | None = None
    """[R]: length of the borders between predicted classes, in pixels of the image."""


@dataclass(frozen=True)
class RegionGrid:
    """How the cells of maps of one size meet the regions of images of one size.

    Attributes:
        regions: R of them.
        rows, columns: shared lengths [Y, h] and [X, w] in image pixels; their product is the shared area.
        row_cells, column_cells: the cells that meet a row [Y, Kh] or column [X, Kw] of regions, padded.
        row_lengths, column_lengths: their shared lengths; 0 where padded.
        top: cells of one region that are enough to fill `TOP_CELLS` of its area.
    """

    regions: Regions
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

    Columns: predicted class, its share, stratum, its share, impurity, each of `measures`, `entropy_top10`,
    length of the predicted borders.

    Attributes:
        shapes: the regions of each image; one that has fewer than R fills the first rows of its table.
        stratified: whether the stratum rests on known shares; otherwise it is the predicted class.
    """

    shapes: Sequence[Regions]
    measures: tuple[Measure, ...]
    regions: Tensor
    images: Tensor
    stratified: bool

    def columns(self) -> list[tuple[RegionColumns, RegionColumns]]:
        """Bring the table to the host: for each image its regions, and the image as one region."""
        regions, images = self.regions.cpu().numpy(), self.images.cpu().numpy()
        return [
            (
                self._named(regions[item, : len(shapes)], shapes),
                self._named(images[item : item + 1], box_regions(_WHOLE, shapes.width, shapes.height)),
            )
            for item, shapes in enumerate(self.shapes)
        ]

    def _named(self, table: Floats, shapes: Regions) -> RegionColumns:
        return RegionColumns(
            index=shapes.index,
            boxes=shapes.boxes,
            pixels=shapes.pixels,
            predicted_class=table[:, 0].astype(np.int16),
            class_share=table[:, 1],
            stratum=table[:, 2].astype(np.int16) if self.stratified else None,
            stratum_share=table[:, 3] if self.stratified else None,
            impurity=table[:, 4],
            measures={name: table[:, 5 + index] for index, name in enumerate(self.measures)},
            entropy_top10=table[:, -2],
            outlines=shapes.outlines,
            border=table[:, -1],
        )


@torch.inference_mode()
def reduce_regions(
    prediction: Prediction, grid: RegionGrid, *, class_shares: Tensor | None = None
) -> Reduction:
    """The columns of each region of a grid, measures as the mean over the region, and those of each image.

    An image's measure is the mean over its `TOP_REGIONS` with the largest values of that measure; its classes
    and shares are those of all its pixels.

    Args:
        class_shares: [C], the share of each class in the training labels.
    """
    batch, classes, height, width = prediction.logits.shape
    index = torch.arange(classes, device=prediction.logits.device)[:, None, None]
    sums = prediction.logits.new_zeros(())
    entropies: list[Tensor] = []
    names: tuple[Measure, ...] = ()
    sides = _cell_sides(prediction.bounds, grid.regions, device=prediction.logits.device)
    above = None
    for rows in bands(height, batch * classes * width):
        maps = prediction.measures_of(rows)
        names = tuple(maps)
        predicted = predicted_class(prediction.probability[..., rows, :])
        votes = predicted[:, None] == index
        borders = _border_density(predicted, above, heights=sides[0][rows], widths=sides[1])
        above = predicted[:, -1:]
        stacked = torch.cat([torch.stack(list(maps.values()), dim=1), votes.float(), borders[:, None]], dim=1)
        sums = sums + grid.rows[:, rows] @ stacked @ grid.columns.T
        entropies.append(maps["entropy"])
    areas = (grid.rows.sum(dim=1)[:, None] * grid.columns.sum(dim=1)).flatten()
    sums = sums.flatten(2).transpose(1, 2)
    means = sums[..., : len(names)] / areas[:, None]
    histogram, border = sums[..., len(names) : -1], sums[..., -1:]
    shares = histogram / areas[:, None]
    impurity = torch.special.entr(shares).sum(dim=-1).clamp_(min=0) / log(classes)
    top = _top_mean(torch.cat(entropies, dim=-2), grid)
    ranked = torch.cat([impurity[..., None], means, top[..., None]], dim=-1)
    image_shares = histogram.sum(dim=1) / areas.sum()
    best = ranked.topk(ceil(TOP_REGIONS * ranked.shape[1]), dim=1).values.mean(dim=1)
    return Reduction(
        shapes=[grid.regions] * batch,
        measures=names,
        regions=torch.cat([_classes(shares, class_shares), ranked, border], dim=-1),
        images=torch.cat([_classes(image_shares, class_shares), best, border.sum(dim=1)], dim=-1),
        stratified=class_shares is not None,
    )


@torch.inference_mode()
def reduce_shapes(
    prediction: Prediction, shapes: Sequence[CellShares], *, class_shares: Tensor | None = None
) -> Reduction:
    """As `reduce_regions`, for regions of any shape: those of each of the B images."""
    maps = prediction.measures()
    device, classes = prediction.logits.device, prediction.logits.shape[1]
    cells = maps["entropy"][0].numel()
    counts = torch.tensor([len(of_image.regions) for of_image in shapes], device=device)
    rows = max(len(of_image.regions) for of_image in shapes)

    def joined(parts: list[npt.NDArray[np.int64]], step: int) -> Tensor:
        offset = [part + step * index for index, part in enumerate(parts)]
        return torch.from_numpy(np.concatenate(offset)).to(device, non_blocking=True)

    region = joined([of_image.region for of_image in shapes], rows)
    cell = joined([of_image.cell for of_image in shapes], cells)
    area = torch.from_numpy(np.concatenate([of_image.area for of_image in shapes])).to(device).double()
    total = len(shapes) * rows
    areas = _scattered(area, region, total)
    # Rows without a region have no area: their numbers are dropped, and must only be finite
    divisor = areas.clamp(min=torch.finfo(torch.float64).tiny)
    sums = [_scattered(plane.flatten()[cell].double() * area, region, total) for plane in maps.values()]
    means = torch.stack(sums, dim=-1) / divisor[:, None]
    classes_of_cells = predicted_class(prediction.probability)
    heights, widths = _cell_sides(prediction.bounds, shapes[0].regions, device=device)
    density = _border_density(classes_of_cells, None, heights=heights, widths=widths)
    border = _scattered(density.flatten()[cell].double() * area, region, total)
    predicted = classes_of_cells.flatten()[cell]
    histogram = _scattered(area, region * classes + predicted, total * classes).view(total, classes)
    shares = histogram / divisor[:, None]
    impurity = torch.special.entr(shares).sum(dim=-1).clamp_(min=0) / log(classes)
    top = _scattered_top(maps["entropy"].flatten()[cell].double(), region, area, areas, divisor)
    ranked = torch.cat([impurity[:, None], means, top[:, None]], dim=-1).view(len(shapes), rows, -1)
    table = torch.cat([_classes(shares, class_shares), ranked.flatten(0, 1), border[:, None]], dim=-1)
    whole = border.view(len(shapes), rows).sum(dim=1, keepdim=True)
    of_images = histogram.view(len(shapes), rows, classes).sum(dim=1)
    image_shares = of_images / of_images.sum(dim=-1, keepdim=True)
    index = torch.arange(rows, device=device)[:, None]
    target = (counts * TOP_REGIONS).ceil()[:, None, None]
    highest = ranked.masked_fill(index >= counts[:, None, None], -torch.inf).sort(dim=1, descending=True)
    best = highest.values.where(index < target, 0).sum(dim=1) / target[:, 0]
    return Reduction(
        shapes=[of_image.regions for of_image in shapes],
        measures=tuple(maps),
        regions=table.view(len(shapes), rows, -1).float(),
        images=torch.cat([_classes(image_shares, class_shares), best, whole], dim=-1).float(),
        stratified=class_shares is not None,
    )


def _cell_sides(bounds: CellBounds, regions: Regions, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """The heights [h] and widths [w] of the maps' cells, in image pixels."""
    sides = (
        torch.tensor(edges, dtype=torch.float32, device=device).diff() * (length / edges[-1])
        for edges, length in ((bounds.rows, regions.height), (bounds.columns, regions.width))
    )
    heights, widths = sides
    return heights, widths


def _border_density(predicted: Tensor, above: Tensor | None, *, heights: Tensor, widths: Tensor) -> Tensor:
    """Length of the borders of each cell with its left and upper neighbour, divided by the cell's area.

    Args:
        predicted: [B, h, w], classes.
        above: [B, 1, w], the row before the first one; None at the upper edge of the image.
        heights: [h] of the cells; `widths` [w] likewise.
    """
    first = predicted[:, :1] if above is None else above
    level = predicted != torch.cat([first, predicted[:, :-1]], dim=1)
    upright = predicted != torch.cat([predicted[..., :1], predicted[..., :-1]], dim=2)
    return level * _inverse(heights)[:, None] + upright * _inverse(widths)


def _inverse(sides: Tensor) -> Tensor:
    """1 / sides; 0 for a cell without an area, as one at the edge of a blended image may be."""
    return torch.where(sides > 0, 1 / sides, 0.0)


def salient_class(shares: Tensor, class_shares: Tensor) -> Tensor:
    """The class [...] of which a region has most in proportion to the training labels: that with the largest
    ratio of the two shares, of the classes that fill at least `LEAST_SHARE` of the region.

    A thin class, which nowhere fills most of a region, is salient wherever it is more frequent than on
    average.

    Args:
        shares: [..., C], of the region's area that each class is predicted on.
        class_shares: [C], of the labeled pixels; a class without any counts as very rare.

    >>> shares = torch.tensor([[0.94, 0.06], [0.995, 0.005]])
    >>> salient_class(shares, torch.tensor([0.98, 0.02])).tolist()
    [1, 0]
    """
    least = shares.amax(dim=-1, keepdim=True).clamp(max=LEAST_SHARE)
    ratio = shares / class_shares.to(shares).clamp(min=RAREST_SHARE)
    return ratio.where(shares >= least, 0).argmax(dim=-1)


def _classes(shares: Tensor, class_shares: Tensor | None) -> Tensor:
    """The predicted class, its share, the stratum and its share [..., 4], of shares [..., C]."""
    share, winner = shares.max(dim=-1)
    stratum = winner if class_shares is None else salient_class(shares, class_shares)
    of_stratum = shares.gather(-1, stratum[..., None])[..., 0]
    return torch.stack([winner.to(shares), share, stratum.to(shares), of_stratum], dim=-1)


def keep_regions(regions: RegionColumns, keep: int | str) -> RegionColumns:
    """The `keep` regions of each stratum with the highest entropy; all where it is `all`."""
    if isinstance(keep, str):
        return regions
    strata = regions.predicted_class if regions.stratum is None else regions.stratum
    order = np.lexsort((regions.index, -regions.measures["entropy"], strata))
    classes = strata[order]
    first_of_class = np.searchsorted(classes, classes)
    kept = np.sort(order[np.arange(len(order)) - first_of_class < keep])
    return RegionColumns(
        index=regions.index[kept],
        boxes=regions.boxes[kept],
        pixels=regions.pixels[kept],
        predicted_class=regions.predicted_class[kept],
        class_share=regions.class_share[kept],
        impurity=regions.impurity[kept],
        measures={name: values[kept] for name, values in regions.measures.items()},
        entropy_top10=regions.entropy_top10[kept],
        stratum=None if regions.stratum is None else regions.stratum[kept],
        stratum_share=None if regions.stratum_share is None else regions.stratum_share[kept],
        outlines=None if regions.outlines is None else tuple(regions.outlines[row] for row in kept),
        border=None if regions.border is None else regions.border[kept],
    )


def region_grid(
    config: RegionConfig,
    *,
    image_size: tuple[int, int],
    bounds: CellBounds,
    device: torch.device,
) -> RegionGrid:
    """The geometry of one image size; it is cached, because a pool has few sizes.

    Args:
        config: the kind of regions, `grid` or `image`.
        image_size: height and width of the image.
        bounds: of the maps' cells in the network's image.
        device: where the maps are.

    Raises:
        ValueError: the regions are of another kind.
    """
    if config.kind not in ("grid", "image"):
        raise ValueError(f"Expected regions of kind `grid` or `image`, but got `{config.kind}`.")
    whole = config.kind == "image"
    return _region_grid(whole, config.cell, image_size, bounds, device)


@lru_cache(maxsize=64)
def _region_grid(
    whole: bool,
    side: int,
    image_size: tuple[int, int],
    bounds: CellBounds,
    device: torch.device,
) -> RegionGrid:
    height, width = image_size
    found = box_regions(_WHOLE if whole else RegionConfig(cell=side), width, height)
    boxes = found.boxes
    rows = _shared(boxes[:, 1], boxes[:, 3], length=height, bounds=bounds.rows)
    columns = _shared(boxes[:, 0], boxes[:, 2], length=width, bounds=bounds.columns)
    row_cells, row_lengths = _meeting(rows)
    column_cells, column_lengths = _meeting(columns)
    return RegionGrid(
        regions=found,
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
    bounds: tuple[int, ...],
) -> Tensor:
    """Lengths [regions along the side, cells] that regions and cells share, float64, in image pixels."""
    intervals = np.unique(np.stack([starts, starts + sizes], axis=1), axis=0)
    begin, end = torch.from_numpy(intervals.astype(np.float64)).unbind(dim=1)
    edges = torch.tensor(bounds, dtype=torch.float64) * (length / bounds[-1])
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
    """The number of cells that cover `TOP_CELLS` of a region even if they are its smallest ones."""
    ascending = areas.flatten().sort().values
    ascending = ascending[ascending > 0]
    covered = ascending.cumsum(dim=0) >= TOP_CELLS * ascending.sum()
    return int((~covered).sum()) + 1


def _top_mean(entropy: Tensor, grid: RegionGrid) -> Tensor:
    """The mean of the highest `TOP_CELLS` of each region's area [B, R] of a map [B, h, w]."""
    cells = entropy[:, grid.row_cells[:, None, :, None], grid.column_cells[None, :, None, :]].flatten(-2)
    area = grid.row_lengths[:, None, :, None] * grid.column_lengths[None, :, None, :]
    area = area.flatten(-2).expand_as(cells)
    values, index = cells.masked_fill(area == 0, -1).topk(min(grid.top, cells.shape[-1]), dim=-1)
    target = TOP_CELLS * area.sum(dim=-1, keepdim=True)
    area = area.gather(-1, index)
    taken = torch.minimum(area, (target - (area.cumsum(dim=-1) - area)).clamp_(min=0))
    return ((values * taken).sum(dim=-1) / taken.sum(dim=-1)).flatten(1)


def _scattered(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """Sums [rows, …] of values [P, …], float64, so that a device's order of addition does not matter."""
    return values.new_zeros(rows, *values.shape[1:]).index_add_(0, row, values)


def _scattered_top(entropy: Tensor, region: Tensor, area: Tensor, areas: Tensor, divisor: Tensor) -> Tensor:
    """The mean of the highest `TOP_CELLS` of each region's area [R] of values [P]."""
    order = entropy.argsort(descending=True)
    order = order[region[order].argsort(stable=True)]
    entropy, region, area = entropy[order], region[order], area[order]
    before = area.cumsum(dim=0) - area - (areas.cumsum(dim=0) - areas)[region]
    taken = torch.minimum(area, (TOP_CELLS * areas[region] - before).clamp_(min=0))
    return _scattered(entropy * taken, region, len(areas)) / (TOP_CELLS * divisor)
