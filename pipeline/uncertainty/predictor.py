"""Predictions of images: one trunk, samples, calibrators, tiles, and smaller batches where memory runs out.

Legend: B batch, K image channels, H W image size, C classes, T samples, h w size of the maps (see
`scoring.resolution`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from pipeline.calibration.calibrators import Calibrators
from pipeline.config import Measure, ScoringConfig
from pipeline.data.bands import bands
from pipeline.data.large_images import Images, window
from pipeline.errors import UserError
from pipeline.model.encoder_cache import CachedEncoder
from pipeline.model.segmenter import Segmenter
from pipeline.progress import TILES, Progress, silent
from pipeline.regions.shapes import CellBounds
from pipeline.uncertainty.measures import measure_maps
from pipeline.uncertainty.network import Pass, Places, ScoringNetwork, cell_bounds, cells_within
from pipeline.uncertainty.samplers import Member, Normalisation, SampledPrediction, make_sampler
from pipeline.uncertainty.samplers.sums import sum_bands
from pipeline.uncertainty.tiling import TiledSide, tiled_side

CPU_BATCH = 2
"""Images in a batch on the CPU. Larger batches exceed its caches: 8 images at once take 50 % longer."""
MANY_TILES = 16
"""An image of fewer is counted as a whole in the progress."""
CPU_PIXELS = 1_500_000
"""Pixels in a batch on the CPU: the activations of two tiles of 1024² take a gigabyte."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prediction:
    """The prediction of each cell of B images of one size.

    Attributes:
        logits: deterministic and uncalibrated [B, C, h, w].
        probability: calibrated [B, C, h, w]: the mean over samples, or `deterministic_probability` with
            sampler `none`.
        expected_entropy: mean over samples of H / ln C [B, h, w]; None with sampler `none`.
        votes: share of the samples whose argmax is the class [B, C, h, w]; None with sampler `none`.
        places: of the cells, in the network's image.
        bounds: the pixels of the network's image that are nearest to each cell.
        enlarge: maps [B, C, h, w] as [B, C, *size], by the network's own upsampling.
        enlarged_bands: the same in bands of rows.
        calibrate: the deterministic calibrator, of logits.
    """

    logits: Tensor
    probability: Tensor
    expected_entropy: Tensor | None
    votes: Tensor | None
    places: Places
    bounds: CellBounds
    enlarge: Callable[..., Tensor] = field(repr=False)
    enlarged_bands: Callable[..., Iterator[tuple[slice, Tensor]]] = field(repr=False)
    calibrate: Callable[[Tensor], Tensor] = field(repr=False)

    @property
    def deterministic_probability(self) -> Tensor:
        """Calibrated softmax of `logits` [B, C, h, w]."""
        if self.expected_entropy is None:
            return self.probability
        return self.calibrate(self.logits).softmax(dim=-3)

    @torch.inference_mode()
    def at(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """Maps [B, C, h, w] of this prediction as [B, C, H, W] at `size` = (H, W) of the images; B may be a
        part of the batch."""
        return self.enlarge(maps, size=size)

    @torch.inference_mode()
    def bands(self, maps: Tensor, size: tuple[int, int]) -> Iterator[tuple[slice, Tensor]]:
        """As `at`, but in bands of rows [B, C, rows, W], each with its place: a large image takes little
        memory."""
        yield from self.enlarged_bands(maps, size=size)

    @torch.inference_mode()
    def bands_of(
        self,
        maps: Sequence[Tensor],
        size: tuple[int, int],
        *,
        row: int,
        among: Sequence[slice] | None = None,
    ) -> Iterator[tuple[slice, list[Tensor]]]:
        """Several maps [B, C, h, w], whose C may differ, of image `row` of the batch: in the same bands of
        rows, [C, rows, W] each; those of `among`, or as high as `bands` makes them."""
        places = among or list(bands(size[0], size[1] * sum(map.shape[1] for map in maps)))
        each = [self.enlarged_bands(map[row : row + 1], size=size, among=places) for map in maps]
        for parts in zip(*each, strict=True):
            yield parts[0][0], [part[0] for _, part in parts]

    def measures(self) -> dict[Measure, Tensor]:
        """Every measure that the sampler allows, [B, h, w] each, in the order of `MEASURES`."""
        batch, classes, height, width = self.logits.shape
        parts = [self.measures_of(rows) for rows in bands(height, batch * classes * width)]
        if len(parts) == 1:
            return parts[0]
        return {name: torch.cat([part[name] for part in parts], dim=-2) for name in parts[0]}

    def measures_of(self, rows: slice) -> dict[Measure, Tensor]:
        """The same of some rows of cells."""
        return measure_maps(
            logits=self.logits[..., rows, :],
            probability=self.probability[..., rows, :],
            expected_entropy=None if self.expected_entropy is None else self.expected_entropy[..., rows, :],
            votes=None if self.votes is None else self.votes[..., rows, :],
        )

    def without_samples(self) -> Prediction:
        """The prediction that sampler `none` would give."""
        return replace(self, probability=self.deterministic_probability, expected_entropy=None, votes=None)


@dataclass(frozen=True)
class _Sums:
    """Logits, and a mean over samples for each calibrator: both linear, so tiles of them can be blended."""

    logits: Tensor
    sampled: list[SampledPrediction]


class Predictor:
    """A segmenter, ready to predict in eval mode on a device. No buffer or weight of it ever changes.

    Attributes:
        sampler: where its samples come from; None with sampler `none`.
        members: the other networks of an ensemble.
        batch_size: images that the device takes at once; less than `scoring.batch_size` on the CPU, and after
            its memory has run out.
        cache: of the segmenter's encoder.

    Args:
        segmenter: moved to `device`, channels last.
        scoring: sampler and what it needs, resolution, tile and overlap.
        calibrators: of this segmenter; identity before the fit.
        normalisation, input_scale: of the images; `tta` and `ensemble` need them.
        members: the other networks, with the sampler `ensemble`.
        cache: of the segmenter's encoder; None to run it for each image.

    Raises:
        ConfigError: the segmenter does not offer the sampler.
        ValueError: the sampler is `mc_dropout` and the segmenter has no active dropout; or the sampler needs
            `normalisation`.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        *,
        scoring: ScoringConfig,
        calibrators: Calibrators,
        device: torch.device,
        normalisation: Normalisation | None = None,
        input_scale: float = 1.0,
        members: Sequence[Member] = (),
        cache: CachedEncoder | None = None,
    ) -> None:
        self.network = ScoringNetwork(segmenter, resolution=scoring.resolution, device=device)
        self.scoring = scoring
        self.calibrators = calibrators
        self.device = device
        self.members = members
        self.cache = cache
        self.sampler = make_sampler(
            scoring,
            segmenter,
            device=device,
            normalisation=normalisation,
            input_scale=input_scale,
            members=members,
        )
        self.batch_size = scoring.batch_size if device.type != "cpu" else min(scoring.batch_size, CPU_BATCH)

    def run(self, image: Tensor) -> Pass:
        """One deterministic pass over images [B, K, H, W] on any device, no larger than a tile."""
        return self.network.run(image, cache=self.cache)

    def predict(self, image: Images, progress: Progress = silent) -> Prediction:
        """Predict normalised images, float32 [B, K, H, W] on any device, or large ones; the maps lie on the
        predictor's device.

        Args:
            progress: counts the tiles of each image that has many.

        Raises:
            UserError: a single image, or tile, does not fit into the device's memory.
        """
        return self.predict_each(image, [self.calibrators], progress)[0]

    @torch.inference_mode()
    def image_features(self, images: Images) -> Tensor:
        """Mean over all places of the encoder's deepest map [B, F]; of images larger than a tile, the mean
        over the tiles beside each other that they are cut into, by their pixels."""
        height, width = images.shape[-2:]
        side = self.scoring.tile
        total = torch.zeros((), device=self.device)
        for top in range(0, height, side):
            for left in range(0, width, side):
                part = window(images, slice(top, top + side), slice(left, left + side))
                features = self.segmenter.image_features(self.segmenter.pad(part.to(self.device)))
                total = total + features * (part.shape[-2] * part.shape[-1] / (height * width))
        return total

    @torch.inference_mode()
    def predict_each(
        self, image: Images, calibrators: Sequence[Calibrators], progress: Progress = silent
    ) -> list[Prediction]:
        """As `predict`, for each pair of calibrators, with one trunk and one set of samples for all."""
        tiled = max(image.shape[-2:]) > self.scoring.tile
        if tiled:
            singles = image.split(1) if isinstance(image, Tensor) else image.split()
            sums = _concatenate([self._tiled(single, calibrators, progress) for single in singles])
        else:
            sums = self._whole(window(image), calibrators)
        size = image.shape[-2], image.shape[-1]
        places = self.places(*size)
        bounds = cell_bounds(places, size)
        height, width = (len(side) for side in places)
        logits = sums.logits[..., :height, :width]
        drawn = {"network_size": size, "places": places if tiled else None}
        predictions: list[Prediction] = []
        for index, pair in enumerate(calibrators):
            if sums.sampled:
                probability, expected_entropy, votes = (
                    maps[..., :height, :width] for maps in sums.sampled[index]
                )
            else:
                probability = pair.deterministic(logits).softmax(dim=-3)
                expected_entropy, votes = None, None
            predictions.append(
                Prediction(
                    logits=logits,
                    probability=probability,
                    expected_entropy=expected_entropy,
                    votes=votes,
                    places=places,
                    bounds=bounds,
                    enlarge=partial(self.network.enlarge, **drawn),
                    enlarged_bands=partial(self.network.enlarged_bands, **drawn),
                    calibrate=pair.deterministic,
                )
            )
        return predictions

    def tiles(self, height: int, width: int) -> tuple[TiledSide, TiledSide]:
        """The tiles along the rows and the columns of an image, once it is padded: a single one where it is
        no larger than `scoring.tile`. Tiles begin at multiples of the network's stride."""
        stride, cell = self.segmenter.stride, self.cell
        padded = self.segmenter.padded_size(height, width)
        tile = max(self.scoring.tile // stride * stride, self.segmenter.minimum)
        if max(height, width) <= self.scoring.tile:
            tile = max(padded)
        overlap = min(-(-self.scoring.overlap // stride) * stride, tile // 2 // stride * stride)
        rows, columns = (
            tiled_side(length, tile=tile, overlap=overlap, stride=stride, cell=cell) for length in padded
        )
        return rows, columns

    def places(self, height: int, width: int) -> Places:
        """Where the cells of a prediction lie, in an image of this size as the network sees it."""
        sides = self.tiles(height, width)
        in_tile = self.network.places(sides[0].size, sides[1].size)
        rows, columns = (
            cells_within(side.blended_places(places), length)
            for side, places, length in zip(sides, in_tile, (height, width), strict=True)
        )
        return rows, columns

    def bounds(self, height: int, width: int) -> CellBounds:
        """The pixels of an image of this size that are nearest to each cell of its prediction."""
        return cell_bounds(self.places(height, width), (height, width))

    @property
    def segmenter(self) -> Segmenter:
        """The network itself."""
        return self.network.segmenter

    @property
    def cell(self) -> int:
        """Pixels of the network's image a cell of the maps, along one side."""
        return self.network.cell

    def _whole(self, image: Tensor, calibrators: Sequence[Calibrators]) -> _Sums:
        """Predict in parts that fit into the device's memory."""
        size = min(image.shape[0], self.batch_size)
        if self.device.type == "cpu":
            size = max(1, min(size, CPU_PIXELS // (image.shape[-2] * image.shape[-1])))
        while True:
            try:
                return _concatenate([self._forward(part, calibrators) for part in image.split(size)])
            except torch.OutOfMemoryError as error:
                if size == 1:
                    raise UserError(
                        f"One image of {image.shape[-1]}×{image.shape[-2]} pixels does not fit into the "
                        f"memory of {self.device}.",
                        "Lower `scoring.tile`, or `model.input_scale`.",
                    ) from error
            size //= 2
            self.batch_size = size
            torch.cuda.empty_cache()
            log.warning("The memory of %s ran out: continuing with batches of %d.", self.device, size)

    def _forward(self, image: Tensor, calibrators: Sequence[Calibrators]) -> _Sums:
        forward = self.run(image)
        sampled: list[SampledPrediction] = []
        if self.sampler is not None:
            sampled = sum_bands(
                self.sampler.bands(self.network, forward),
                [pair.sampled for pair in calibrators],
                samples=self.sampler.samples,
                like=forward.logits,
            )
        return _Sums(logits=forward.logits, sampled=sampled)

    def _tiled(self, image: Images, calibrators: Sequence[Calibrators], progress: Progress) -> _Sums:
        """One image [1, K, H, W], tile by tile."""
        cell = self.cell
        rows, columns = self.tiles(image.shape[-2], image.shape[-1])
        height, width = self.segmenter.padded_size(image.shape[-2], image.shape[-1])
        places = [
            (y, x, row[:, None] * column)
            for y, row in zip(rows.origins, rows.weights.to(self.device), strict=True)
            for x, column in zip(columns.origins, columns.weights.to(self.device), strict=True)
        ]
        total: _Sums | None = None
        start = 0
        while start < len(places):
            some = places[start : start + self.batch_size]
            start += len(some)
            tiles = [
                self.segmenter.pad_to(
                    window(image, slice(y, y + rows.size), slice(x, x + columns.size)),
                    (rows.size, columns.size),
                )
                for y, x, _ in some
            ]
            sums = self._whole(torch.cat(tiles), calibrators)
            if total is None:
                total = _blank(sums, height=height // cell, width=width // cell)
            for index, (y, x, weight) in enumerate(some):
                _paint(total, sums, index, y=y // cell, x=x // cell, weight=weight)
            if len(places) >= MANY_TILES:
                progress(TILES, start, len(places))
        if total is None:
            raise ValueError(f"Expected an image with pixels, but got {tuple(image.shape)}.")
        return total


def _concatenate(parts: list[_Sums]) -> _Sums:
    if len(parts) == 1:
        return parts[0]
    return _Sums(
        logits=torch.cat([part.logits for part in parts]),
        sampled=[
            SampledPrediction(*map(torch.cat, zip(*of_calibrator, strict=True)))
            for of_calibrator in zip(*(part.sampled for part in parts), strict=True)
        ],
    )


def _blank(like: _Sums, *, height: int, width: int) -> _Sums:
    """Zeros for one image [1, …, height, width]."""

    def zeros(maps: Tensor) -> Tensor:
        return maps.new_zeros(1, *maps.shape[1:-2], height, width)

    sampled = [SampledPrediction(*map(zeros, maps)) for maps in like.sampled]
    return _Sums(logits=zeros(like.logits), sampled=sampled)


def _paint(total: _Sums, tiles: _Sums, index: int, *, y: int, x: int, weight: Tensor) -> None:
    """Add one tile of a batch to the sums of the whole image."""
    window = (slice(y, y + weight.shape[0]), slice(x, x + weight.shape[1]))
    total.logits[0, :, *window] += tiles.logits[index] * weight
    for whole, part in zip(total.sampled, tiles.sampled, strict=True):
        for maps, of_tile in zip(whole, part, strict=True):
            maps[0, ..., *window] += of_tile[index] * weight
