"""Label review: regions of labeled images whose label a model doubts.

Legend: C classes, H W image size, R regions.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.config import IGNORE
from pipeline.data.image_info import ImageRef
from pipeline.data.images import read_image
from pipeline.data.labels import compose_labels
from pipeline.data.loading import Unreadable
from pipeline.data.project import Project
from pipeline.data.remote import ImageFile
from pipeline.errors import DataError, UserError
from pipeline.evaluation.label_errors import (
    Floats,
    RegionDoubts,
    class_thresholds,
    doubted_pixels,
    region_doubts,
    self_confidence,
)
from pipeline.evaluation.parts import boundary_band
from pipeline.format import percent
from pipeline.progress import Progress
from pipeline.regions.outlines import paint_regions
from pipeline.regions.segments import segments
from pipeline.regions.shapes import RegionMap, map_regions
from pipeline.regions.sources import RegionSource, region_source
from pipeline.studies.held_out import spread
from pipeline.studies.image_regions import grid_rows
from pipeline.uncertainty.measures import predicted_class
from pipeline.uncertainty.predictor import Prediction
from pipeline.uncertainty.served_model import ServedModel

LABEL_EDGE = 2
"""Pixels this close to another label do not count, because annotators place edges differently."""
THRESHOLD_IMAGES = 256
"""Images for the mean self-confidence of each class, spread over all labeled images."""
LEAST_SHARE = 0.01
"""A region with fewer doubted pixels, as a share of its area, is not reviewed."""

Box = tuple[int, int, int, int]
"""x, y, w, h in image pixels."""


@dataclass(frozen=True)
class LabeledImage:
    """An image with its masks in the order in which they are painted, and the regions, by box and outline,
    that were reviewed before."""

    ref: ImageRef
    masks: tuple[Path, ...]
    reviewed: tuple[tuple[Box, str | None], ...]


@dataclass(frozen=True)
class DoubtedRegion:
    """A region whose label the model doubts.

    Attributes:
        score, share, confidence: as in `RegionDoubts`.
        label, predicted: class indices of the label and of the prediction on most doubted pixels.
    """

    image_id: int
    uri: str
    region_index: int
    box: Box
    outline: str | None
    score: float
    label: int
    predicted: int
    share: float
    confidence: float

    def reason(self, class_names: Sequence[str]) -> str:
        """Why the region should be reviewed."""
        return (
            f"labeled {class_names[self.label]}, predicted {class_names[self.predicted]} with "
            f"{percent(self.confidence)} on {percent(self.share)} of the region"
        )


@dataclass(frozen=True)
class _Predicted:
    """A labeled image with its prediction, and its label uint8 [H, W] on the model's device."""

    image: LabeledImage
    prediction: Prediction
    label: Tensor

    def bands(self) -> Iterator[tuple[slice, Tensor]]:
        """The probability of the classes [C, rows, W], band by band, each with its place."""
        height, width = self.label.shape
        for rows, (probability,) in self.prediction.bands_of(
            [self.prediction.probability], (height, width), row=0
        ):
            yield rows, probability


class LabelReview:
    """Labeled images whose predictions are compared with their labels.

    Attributes:
        failed: URI and reason of each file that could not be used.
    """

    def __init__(self, project: Project, model: ServedModel) -> None:
        self.project = project
        self.model = model
        self.device = model.predictor.device
        self.source: RegionSource | None = region_source(project, project.config.scoring.regions)
        self.failed: list[tuple[str, str]] = []

    def thresholds(self, images: Sequence[LabeledImage], progress: Progress) -> Floats:
        """The mean self-confidence of each class [C].

        Raises:
            UserError: none of the images can be used.
        """
        sample = [images[index] for index in spread(len(images), THRESHOLD_IMAGES)]
        sums = np.zeros((2, self.project.config.data.num_classes))
        for done, item in enumerate(self._predict(sample, progress), start=1):
            for rows, probability in item.bands():
                sums += self_confidence(probability, item.label[rows])
            progress("self-confidence", done, len(sample))
        if not sums[1].any():
            first = (self.project.uri(sample[0].ref.path), "It has no labeled pixel.")
            file, reason = self.failed[0] if self.failed else first
            raise UserError(f"No labeled image can be used: {file}: {reason}", "Import the labels again.")
        self.failed.clear()
        return class_thresholds(sums)

    def doubts(
        self, images: Sequence[LabeledImage], thresholds: Floats, *, most: int, progress: Progress
    ) -> tuple[list[DoubtedRegion], int]:
        """The `most` doubted regions, highest score first, and the number of all doubted regions."""
        best: list[DoubtedRegion] = []
        doubted = 0
        for done, item in enumerate(self._predict(images, progress), start=1):
            try:
                found = self._of_image(item, thresholds)
            except DataError as error:
                self._fail(item.image.ref.path, error)
                continue
            doubted += len(found)
            best = heapq.nsmallest(
                most, best + found, key=lambda region: (-region.score, region.image_id, region.region_index)
            )
            progress("review", done, len(images))
        return best, doubted

    def _of_image(self, item: _Predicted, thresholds: Floats) -> list[DoubtedRegion]:
        regions = self._regions(item)
        label = self._unreviewed(item)
        found = region_doubts(
            (
                doubted_pixels(probability, label[rows], thresholds=thresholds, rows=regions.row[rows])
                for rows, probability in item.bands()
            ),
            classes=len(thresholds),
            areas=regions.regions.pixels,
        )
        return [
            self._doubted(item.image.ref, regions, found, index)
            for index in np.flatnonzero(found.share >= LEAST_SHARE).tolist()
        ]

    def _unreviewed(self, item: _Predicted) -> Tensor:
        """The label without the regions of earlier reviews."""
        regions = item.image.reviewed
        if not regions:
            return item.label
        canvas = np.zeros(tuple(item.label.shape), dtype=np.bool_)
        paint_regions(canvas, np.array([box for box, _ in regions]), [outline for _, outline in regions])
        return item.label.masked_fill(torch.from_numpy(canvas).to(self.device), IGNORE)

    def _regions(self, item: _Predicted) -> RegionMap:
        data, regions, ref = self.project.config.data, self.project.config.scoring.regions, item.image.ref
        if self.source is not None:
            return self.source(ref, read_image(ref.path, channels=data.channels, max_pixels=data.max_pixels))
        if regions.kind == "segment":
            parts = [predicted_class(probability).short().cpu().numpy() for _, probability in item.bands()]
            predicted = np.concatenate(parts)
            return map_regions(segments(predicted, smallest=regions.smallest * regions.cell**2))
        if regions.kind == "image":
            return map_regions(np.zeros((ref.height, ref.width), dtype=np.int64))
        return map_regions(grid_rows(regions, ref.width, ref.height))

    def _predict(self, images: Sequence[LabeledImage], progress: Progress) -> Iterator[_Predicted]:
        """Each image with its label, one after the other, at its own size; a file that cannot be used is
        listed in `failed`."""
        by_id = {image.ref.id: image for image in images}
        for batch in self.model.batches([image.ref for image in images], batch_size=1):
            if isinstance(batch, Unreadable):
                self.failed.append((self.project.uri(batch.path), batch.reason))
                continue
            image = by_id[batch.ids[0]]
            try:
                mask = compose_labels(image.masks, (image.ref.width, image.ref.height))
            except DataError as error:
                self._fail(image.ref.path, error)
                continue
            prediction = self.model.predictor.predict(batch.images, progress)
            label = torch.from_numpy(mask).to(self.device)
            yield _Predicted(
                image=image,
                prediction=prediction,
                label=label.masked_fill(boundary_band(label, width=LABEL_EDGE), IGNORE),
            )

    def _fail(self, path: ImageFile, error: DataError) -> None:
        self.failed.append((self.project.uri(path), str(error)))

    def _doubted(self, ref: ImageRef, shapes: RegionMap, found: RegionDoubts, index: int) -> DoubtedRegion:
        row = int(found.region[index])
        regions = shapes.regions
        x, y, w, h = regions.boxes[row].tolist()
        return DoubtedRegion(
            image_id=ref.id,
            uri=self.project.uri(ref.path),
            region_index=int(regions.index[row]),
            box=(x, y, w, h),
            outline=None if regions.outlines is None else regions.outlines[row],
            score=float(found.score[index]),
            label=int(found.label[index]),
            predicted=int(found.predicted[index]),
            share=float(found.share[index]),
            confidence=float(found.confidence[index]),
        )
