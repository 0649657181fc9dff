"""The hot path of scoring, a pipeline: files → batches → predictions → regions → the writer.

Threads decode files, this thread feeds the device, and one thread passes finished batches to the sink. The
device waits for files or for the database only where they fall far behind. The number of batches in flight is
bounded, so memory does not grow with the number of images.

Legend: B batch, C classes, H W image size, h w size of the maps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from math import ceil

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config import HeatmapConfig, RegionConfig
from pipeline.data.image_info import ImageRef
from pipeline.data.images import ImageArray
from pipeline.data.input_range import pixel_statistics
from pipeline.data.loading import Batch, Unreadable, network_size
from pipeline.progress import Progress, silent
from pipeline.regions.segments import segments
from pipeline.regions.shapes import CellShares, cell_shares, map_regions
from pipeline.regions.sources import RegionSource
from pipeline.uncertainty.measures import predicted_class
from pipeline.uncertainty.network import resample
from pipeline.uncertainty.predictor import Prediction, Predictor
from pipeline.uncertainty.reduction import (
    Reduction,
    RegionColumns,
    reduce_regions,
    reduce_shapes,
    region_grid,
)
from pipeline.uncertainty.served_model import ServedModel

BATCHES_AHEAD = 4
"""Finished batches that may wait for the sink."""
HEATMAP_SHRINK = 4
"""Image pixels a pixel of a small heat map, along one side."""


@dataclass(frozen=True)
class ScoredImage:
    """The results of an image: a row for each region and one for the image, the statistics [S, K] of the
    network's input pixels, and the configured heat maps."""

    id: int
    regions: RegionColumns
    image: RegionColumns
    pixels: npt.NDArray[np.float32]
    heatmaps: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)


Sink = Callable[[ScoredImage | Unreadable], None]


def score_images(
    images: Iterable[ImageRef],
    *,
    model: ServedModel,
    regions: RegionConfig,
    sink: Sink,
    source: RegionSource | None = None,
    heatmaps: HeatmapConfig | None = None,
    total: int | None = None,
    progress: Progress = silent,
) -> None:
    """Score a stream of images and pass each result to the sink, in no particular order.

    Args:
        images: read lazily, in this thread.
        model: the serving model.
        regions: their kind and size.
        sink: called in one other thread. An error that it raises is raised here.
        source: of the region maps, for kinds that have one (see `region_source`); called in the decoding
            threads.
        heatmaps: the maps to make for every image; None for none.
        total: for the progress, where it is known.
    """
    known = model.card.class_shares
    class_shares = None if known is None else torch.tensor(known, device=model.predictor.device)
    batches = model.batches(
        images,
        derive=None if source is None else partial(_shapes, source, model=model),
    )
    writer = ThreadPoolExecutor(1, thread_name_prefix="write")
    waiting: deque[Future[None]] = deque()
    done = 0
    try:
        for batch in batches:
            if isinstance(batch, Unreadable):
                waiting.append(writer.submit(sink, batch))
                done += 1
            else:
                prediction = model.predictor.predict(batch.images, progress)
                reduce, maps = _score_batch(
                    batch, model.predictor, prediction, regions, heatmaps, class_shares
                )
                waiting.append(writer.submit(_hand_over, sink, batch, reduce, maps))
                done += len(batch.ids)
            while len(waiting) > BATCHES_AHEAD or (waiting and waiting[0].done()):
                waiting.popleft().result()
            progress("score", done, total)
        while waiting:
            waiting.popleft().result()
    finally:
        batches.close()
        writer.shutdown(cancel_futures=True)


def _shapes(regions: RegionSource, image: ImageRef, pixels: ImageArray, *, model: ServedModel) -> CellShares:
    """How the regions of a decoded image meet the cells of its maps."""
    size = network_size(image.height, image.width, model.card.input_scale)
    return cell_shares(regions(image, pixels), model.predictor.bounds(*size))


def _score_batch(
    batch: Batch[CellShares],
    predictor: Predictor,
    prediction: Prediction,
    regions: RegionConfig,
    heatmaps: HeatmapConfig | None,
    class_shares: Tensor | None,
) -> tuple[Callable[[], Reduction], dict[str, Tensor]]:
    """Start all the device's work for a batch, without waiting for it.

    The writer's thread computes segments, on the host, after the device has finished.
    """
    maps: dict[str, Tensor] = {}
    if heatmaps is not None:
        class_map = predictor.calibrators.class_map
        maps = make_heatmaps(prediction, heatmaps, class_map=class_map, image_size=batch.sizes[0])
    if regions.kind == "segment":
        predicted = _predicted_classes(prediction, batch)
        return partial(_reduce_segments, prediction, predicted, batch, regions, class_shares), maps
    if batch.derived:
        reduction = reduce_shapes(prediction, batch.derived, class_shares=class_shares)
    else:
        grid = region_grid(
            regions,
            image_size=batch.sizes[0],
            bounds=prediction.bounds,
            device=predictor.device,
        )
        reduction = reduce_regions(prediction, grid, class_shares=class_shares)
    return lambda: reduction, maps


@torch.inference_mode()
def _predicted_classes(prediction: Prediction, batch: Batch[CellShares]) -> Tensor:
    """The predicted mask of each image at the image's own size: uint8 or int16 [B, H, W] on the device."""
    kind = torch.uint8 if prediction.probability.shape[1] <= 256 else torch.int16
    masks = [
        predicted_class(probability).to(kind)
        for _, probability in prediction.bands(prediction.probability, batch.sizes[0])
    ]
    return torch.cat(masks, dim=-2)


def _reduce_segments(
    prediction: Prediction,
    predicted: Tensor,
    batch: Batch[CellShares],
    config: RegionConfig,
    class_shares: Tensor | None,
) -> Reduction:
    """Wait for the predicted masks, and reduce over their segments."""
    smallest = config.smallest * config.cell**2
    shares = [
        cell_shares(map_regions(segments(mask, smallest=smallest)), prediction.bounds)
        for mask in predicted.cpu().numpy()
    ]
    return reduce_shapes(prediction, shares, class_shares=class_shares)


@torch.inference_mode()
def make_heatmaps(
    prediction: Prediction, heatmaps: HeatmapConfig, *, class_map: str, image_size: tuple[int, int]
) -> dict[str, Tensor]:
    """Maps [B, H/4, W/4] by name, [B, H, W] with `size: full`: the configured measures, then
    `<class_map>_<class>` where configured."""
    maps = prediction.measures()
    needed: dict[str, Tensor] = {name: maps[name] for name in heatmaps.maps if name in maps}
    if heatmaps.per_class:
        for index, plane in enumerate(prediction.probability.unbind(dim=1)):
            needed[f"{class_map}_{index}"] = plane
    size = heatmap_size(image_size, heatmaps)
    if size == image_size:
        return {
            name: torch.cat([part[:, 0] for _, part in prediction.bands(plane[:, None], image_size)], dim=-2)
            for name, plane in needed.items()
        }
    network = prediction.bounds.rows[-1], prediction.bounds.columns[-1]
    if network == maps["entropy"].shape[-2:]:  # a cell a pixel
        return {
            name: functional.interpolate(
                plane[:, None], size=size, mode="area" if network[1] > size[1] else "bilinear"
            )[:, 0]
            for name, plane in needed.items()
        }
    rows, columns = (
        (torch.arange(count, dtype=torch.float64) + 0.5) * (side / count) - 0.5
        for count, side in zip(size, network, strict=True)
    )
    return {name: resample(plane, prediction.places, (rows, columns)) for name, plane in needed.items()}


def heatmap_size(image_size: tuple[int, int], heatmaps: HeatmapConfig) -> tuple[int, int]:
    """Height and width of the heat maps of an image of this height and width."""
    height, width = image_size
    if heatmaps.size == "full":
        return height, width
    return ceil(height / HEATMAP_SHRINK), ceil(width / HEATMAP_SHRINK)


def _hand_over(
    sink: Sink, batch: Batch[CellShares], reduce: Callable[[], Reduction], maps: dict[str, Tensor]
) -> None:
    """Wait for the device, in the writer's thread, and give the sink one image after another."""
    planes = {name: plane.cpu().numpy() for name, plane in maps.items()}
    pixels = pixel_statistics(batch.images)
    for index, (image_id, (regions, image)) in enumerate(zip(batch.ids, reduce().columns(), strict=True)):
        heatmaps = {name: plane[index] for name, plane in planes.items()}
        sink(ScoredImage(id=image_id, regions=regions, image=image, pixels=pixels[index], heatmaps=heatmaps))
