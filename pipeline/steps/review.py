"""Review: labels that the serving model confidently contradicts, as a queue for a second look.

Legend: C classes, H W image size, R regions.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from db.engine import Database
from db.queries import failures, models, queue_items, queues
from db.queries.models import TrainingImage
from db.queries.queue_items import ReviewedRegion
from db.queries.runs import newest_run
from pipeline.config import IGNORE, Sampler
from pipeline.data.images import read_image
from pipeline.data.labels import compose_labels
from pipeline.data.loading import Unreadable
from pipeline.data.masks import Mask
from pipeline.data.project import Project
from pipeline.errors import DataError, UserError
from pipeline.evaluation.label_errors import (
    Floats,
    RegionDoubts,
    SelfConfidence,
    merged,
    region_doubts,
    self_confidence,
)
from pipeline.evaluation.parts import boundary_band
from pipeline.format import count, percent
from pipeline.progress import Progress, silent
from pipeline.regions.outlines import paint_regions
from pipeline.regions.segments import segments
from pipeline.regions.shapes import RegionMap, map_regions
from pipeline.regions.sources import RegionSource, region_source
from pipeline.steps.export import export
from pipeline.steps.served_model import stored_calibrators
from pipeline.studies.judged_regions import grid_rows
from pipeline.uncertainty.served_model import ServedModel, open_model

MEASURE = "label_margin"
"""What `score` of a review's items is: see `evaluation.label_errors`."""
LABEL_EDGE = 2
"""Pixels so close to another label do not count: where exactly an edge runs is a matter of taste."""
THRESHOLD_IMAGES = 256
"""Images that the mean self-confidence of each class is taken from, spread over all that are labeled."""
LEAST_SHARE = 0.01
"""A region with fewer doubted pixels, as a share of its area, is not worth a look."""


@dataclass(frozen=True)
class DoubtedRegion:
    """A region whose label the model doubts.

    Attributes:
        score: as `RegionDoubts`; so are `share` and `confidence`.
        label, said: indices of the classes that the label and the model give most of the doubted pixels.
    """

    image_id: int
    uri: str
    region_index: int
    box: tuple[int, int, int, int]
    outline: str | None
    score: float
    label: int
    said: int
    share: float
    confidence: float

    def reason(self, class_names: Sequence[str]) -> str:
        """Why somebody should look at it."""
        return (
            f"labeled {class_names[self.label]}, the model says {class_names[self.said]} with "
            f"{percent(self.confidence)} on {percent(self.share)} of the region"
        )


@dataclass(frozen=True)
class ReviewReport:
    """What a review found. `failed` holds files that could not be used, with the reason."""

    model: str
    sampler: str
    images: int
    """Labeled images that were looked at."""
    seen: int
    """Those whose labels the model was trained on."""
    doubted: int
    """Regions that the model doubts; `items` holds the first of them."""
    queue: str | None
    """None when nothing is doubted."""
    folder: Path | None
    """Where the queue was exported to."""
    items: list[DoubtedRegion]
    class_names: list[str]
    failed: list[tuple[str, str]]

    def lines(self) -> Iterator[str]:
        """The report in words."""
        yield (
            f"{self.model} ({self.sampler}) doubts the labels of {count(self.doubted)} regions in "
            f"{count(self.images)} labeled images."
        )
        if self.queue is not None:
            yield f"{self.queue}: the first {count(len(self.items))} of them, in {self.folder}"
        for rank, item in enumerate(self.items[:10], start=1):
            yield f"  {rank:4d}  {item.uri}  {item.reason(self.class_names)}"
        if len(self.items) > 10:
            yield f"  … and {count(len(self.items) - 10)} more"
        if self.seen:
            yield (
                f"note: {self.model} was trained on the labels of {count(self.seen)} of these images and "
                "has partly learned their errors; a model that had not seen them would find more."
            )
        for subject, reason in self.failed:
            yield f"not used: {subject}: {reason}"


def review(
    project: Project,
    database: Database,
    *,
    budget: int = 50,
    folder: Path | None = None,
    progress: Progress = silent,
) -> ReviewReport:
    """Find the labels that the serving model doubts most, and export them as a queue of their own.

    The labels are those in force, composed as for training. Regions of earlier reviews that wait for their
    answer, or have it, are left out. The round is not touched; corrected masks come back by `import`.

    Args:
        budget: regions of the queue.
        folder: as for `export`.

    Raises:
        ValueError: the budget is not positive.
        UserError: no model serves, nothing is labeled, no labeled image can be read, or the folder cannot be
            written.
    """
    if budget < 1:
        raise ValueError(f"Expected a budget of at least 1, but got {budget}.")
    with database.session(write=False) as session:
        model = models.promoted_model(session)
        if model is None:
            raise UserError("No model has been promoted yet.", "Run `segcurate evaluate`.")
        images = models.training_labels(session)
        if not images:
            raise UserError("No image of the pool has a label.", "Import labels with `segcurate import`.")
        learned = {label.id for label in models.model_labels(session, model.id)}
        run = newest_run(session, model.id, finished=True)
        sampler: Sampler = project.config.scoring.sampler
        sampler = "mc_dropout" if sampler == "none" else sampler
        calibrators = stored_calibrators(session, model.id, sampler=sampler)
        reviewed = queue_items.reviewed_regions(session)
    served = open_model(project, model.checkpoint_uri, calibrators=calibrators, sampler=sampler)
    search = _Search(project, served, reviewed)
    thresholds = search.thresholds(images, progress)
    best, doubted = search.doubts(images, thresholds, budget=budget, progress=progress)
    spec = {"sampler": sampler, "thresholds": thresholds.round(6).tolist(), "doubted": doubted}
    with database.session() as session:
        queue = None
        if best:
            queue = queues.put_review(
                session,
                run_id=run.id if run else None,
                strategy=MEASURE,
                unit="image" if project.config.scoring.regions.kind == "image" else "region",
                spec={"model": model.name, **spec},
                items=[
                    _row(rank, item, project.config.data.class_names) for rank, item in enumerate(best, 1)
                ],
            ).name
        failures.clear_failures(session, "review")
        failures.record_failures(session, "review", search.failed)
    return ReviewReport(
        model=model.name,
        sampler=sampler,
        images=len(images) - len(search.failed),
        seen=sum(any(label.id in learned for label in image.labels) for image in images),
        doubted=doubted,
        queue=queue,
        folder=export(project, database, queue=queue, folder=folder, progress=progress).folder
        if queue
        else None,
        items=best,
        class_names=project.config.data.class_names,
        failed=search.failed,
    )


@dataclass(frozen=True)
class _Seen:
    """A labeled image as the model sees it: probability [C, H, W] and label uint8 [H, W] on its device."""

    image: TrainingImage
    probability: Tensor
    label: Tensor


class _Search:
    """Predicts labeled images, and compares. `failed` collects the files that could not be used."""

    def __init__(
        self,
        project: Project,
        served: ServedModel,
        reviewed: dict[int, list[ReviewedRegion]],
    ) -> None:
        self.project = project
        self.served = served
        self.device = served.predictor.device
        self.reviewed = reviewed
        self.source: RegionSource | None = region_source(project, project.config.scoring.regions)
        self.failed: list[tuple[str, str]] = []

    def thresholds(self, images: Sequence[TrainingImage], progress: Progress) -> Floats:
        """The mean self-confidence of each class [C].

        Raises:
            UserError: none of the images can be used.
        """
        places = np.unique(np.linspace(0, len(images) - 1, min(len(images), THRESHOLD_IMAGES)).round())
        some = [images[place] for place in places.astype(int).tolist()]
        sums: list[SelfConfidence] = []
        for done, seen in enumerate(self._seen(some), start=1):
            sums.append(self_confidence(seen.probability, seen.label))
            progress("self-confidence", done, len(some))
        if not sums or not merged(sums).pixels.any():
            subject, reason = self.failed[0] if self.failed else (some[0].uri, "Nothing in it is labeled.")
            raise UserError(f"No labeled image can be used: {subject}: {reason}", "Import the labels again.")
        self.failed.clear()
        return merged(sums).thresholds()

    def doubts(
        self, images: Sequence[TrainingImage], thresholds: Floats, *, budget: int, progress: Progress
    ) -> tuple[list[DoubtedRegion], int]:
        """The most doubted regions, best first, and how many are doubted at all."""
        best: list[DoubtedRegion] = []
        doubted = 0
        for done, seen in enumerate(self._seen(images), start=1):
            try:
                found = self._of_image(seen, thresholds)
            except DataError as error:
                self.failed.append((seen.image.uri, str(error)))
                continue
            doubted += len(found)
            best = heapq.nsmallest(
                budget, best + found, key=lambda item: (-item.score, item.image_id, item.region_index)
            )
            progress("review", done, len(images))
        return best, doubted

    def _of_image(self, seen: _Seen, thresholds: Floats) -> list[DoubtedRegion]:
        shapes = self._regions(seen)
        label = self._unreviewed(seen)
        found = region_doubts(
            seen.probability, label, thresholds=thresholds, rows=shapes.row, areas=shapes.regions.pixels
        )
        return [
            _described(seen.image, shapes, found, place)
            for place in np.flatnonzero(found.share >= LEAST_SHARE).tolist()
        ]

    def _unreviewed(self, seen: _Seen) -> Tensor:
        """The label without the regions of earlier reviews."""
        regions = self.reviewed.get(seen.image.id)
        if not regions:
            return seen.label
        canvas = np.zeros((seen.image.height, seen.image.width), dtype=np.bool_)
        boxes = np.array([region[:4] for region in regions])
        paint_regions(canvas, boxes, [region.outline for region in regions])
        return seen.label.masked_fill(torch.from_numpy(canvas).to(seen.label.device), IGNORE)

    def _regions(self, seen: _Seen) -> RegionMap:
        config, image = self.project.config, seen.image
        regions = config.scoring.regions
        if self.source is not None:
            data = config.data
            ref = self.project.ref(image)
            pixels = read_image(ref.path, channels=data.channels, max_pixels=data.max_pixels)
            return self.source(ref, pixels)
        if regions.kind == "segment":
            predicted = seen.probability.argmax(dim=0).cpu().numpy()
            return map_regions(segments(predicted, smallest=regions.smallest * regions.cell**2))
        if regions.kind == "image":
            return map_regions(np.zeros((image.height, image.width), dtype=np.int64))
        return map_regions(grid_rows(regions, image.width, image.height))

    def _seen(self, images: Sequence[TrainingImage]) -> Iterator[_Seen]:
        """Each image with its label, one by one at its own size; what cannot be used goes to `failed`."""
        by_id = {image.id: image for image in images}
        for batch in self.served.batches([self.project.ref(image) for image in images], batch_size=1):
            if isinstance(batch, Unreadable):
                self.failed.append((self.project.uri(batch.path), batch.reason))
                continue
            image = by_id[batch.ids[0]]
            try:
                label = torch.from_numpy(self._label(image)).to(self.device)
            except DataError as error:
                self.failed.append((image.uri, str(error)))
                continue
            prediction = self.served.predictor.predict(batch.image_BKHW)
            probability = prediction.at(prediction.probability, batch.sizes[0])[0]
            label = label.masked_fill(boundary_band(label, width=LABEL_EDGE), IGNORE)
            yield _Seen(image=image, probability=probability, label=label)

    def _label(self, image: TrainingImage) -> Mask:
        masks = [self.project.path(label.mask_uri) for label in image.labels]
        return compose_labels(masks, (image.width, image.height))


def _described(image: TrainingImage, shapes: RegionMap, found: RegionDoubts, place: int) -> DoubtedRegion:
    row = int(found.region[place])
    regions = shapes.regions
    x, y, w, h = regions.boxes[row].tolist()
    return DoubtedRegion(
        image_id=image.id,
        uri=image.uri,
        region_index=int(regions.index[row]),
        box=(x, y, w, h),
        outline=None if regions.outlines is None else regions.outlines[row],
        score=float(found.score[place]),
        label=int(found.label[place]),
        said=int(found.said[place]),
        share=float(found.share[place]),
        confidence=float(found.confidence[place]),
    )


def _row(rank: int, item: DoubtedRegion, class_names: Sequence[str]) -> dict[str, Any]:
    """The columns of a queue item."""
    x, y, w, h = item.box
    return {
        "rank": rank,
        "image_id": item.image_id,
        "region_index": item.region_index,
        "x": x,
        "y": y,
        "w": w,
        "h": h,
        "outline": item.outline,
        "measure": MEASURE,
        "score": item.score,
        "predicted_class": item.said,
        "slice": "review",
        "reason": item.reason(class_names),
    }
