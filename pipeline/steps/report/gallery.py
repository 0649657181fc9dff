"""Regions for the report's galleries: the prediction and uncertainty of the model that chose them, and
the imported label.

Legend: H W image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import torch
from sqlalchemy.orm import Session
from torch import Tensor

from db.queries import failures as failure_queries
from db.queries import labels, queue_items, queues, rounds
from db.tables import Image, Model, Queue, ScoringRun
from pipeline.calibration.calibrators import Calibrators
from pipeline.config import IGNORE, Measure
from pipeline.data.bands import bands
from pipeline.data.images import as_rgb, read_image
from pipeline.data.labels import compose_labels
from pipeline.data.loading import Unreadable
from pipeline.data.masks import Mask
from pipeline.data.project import Project
from pipeline.errors import DataError
from pipeline.regions.outlines import decode_outline
from pipeline.report.gallery import GalleryRow, crop_around
from pipeline.steps.disagreements import DisagreementReport
from pipeline.steps.served_model import stored_calibrators
from pipeline.uncertainty.measures import predicted_class
from pipeline.uncertainty.predictor import Prediction
from pipeline.uncertainty.served_model import open_model

SHOWN_SIDE = 2048
"""Pixels, at most about twice as many, along the longer side of what is shown of an image."""
MEASURES: tuple[Measure, ...] = ("entropy", "mutual_information")

AnyType = TypeVar("AnyType", bound=np.generic)
Failures = list[tuple[str, str]]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class ShownRegion:
    """A region of a gallery. `rank` is its place in the queue or the list, from 1; `mask_uri` is the file of
    its imported label; `tags` are short labels."""

    image: Image
    rank: int
    box: Box
    outline: str | None
    heading: str
    reason: str
    tags: tuple[str, ...]
    mask_uri: str | None


@dataclass(frozen=True)
class QueueRegions:
    """The selected regions of a round's queue, one an image, and the model that ranked them."""

    queue: Queue
    model: Model
    calibrators: Calibrators
    regions: list[ShownRegion]
    labeled: bool
    """Whether any of them has a label."""


@dataclass(frozen=True)
class _Part:
    """The part of an image that is shown around a region, x, y, w, h: of a large one each `step`-th
    pixel."""

    box: Box
    step: int

    @classmethod
    def of(cls, region: ShownRegion) -> _Part:
        box = crop_around(region.box, width=region.image.width, height=region.image.height)
        return cls(box, max(1, max(box[2:]) // SHOWN_SIDE))

    def cut(self, pixels: npt.NDArray[AnyType]) -> npt.NDArray[AnyType]:
        """The shown pixels of an array [H, W, …] of the whole image, as a copy."""
        x, y, w, h = self.box
        return pixels[y : y + h : self.step, x : x + w : self.step].copy()


@dataclass(frozen=True)
class _Maps:
    """Predicted classes, and float32 [h, w] for each measure, of the shown part of an image."""

    prediction: Mask
    measures: dict[str, npt.NDArray[np.float32]]


def queue_regions(session: Session, project: Project, number: int) -> QueueRegions | None:
    """The best ranked region of each image of a round's queue; None for a round without a scored queue."""
    current = next(row for row in rounds.list_rounds(session) if row.number == number)
    queue = queues.round_queue(session, current.id)
    run = session.get(ScoringRun, queue.run_id) if queue is not None and queue.run_id is not None else None
    if queue is None or run is None:
        return None
    masks = {label.image_id: label.mask_uri for label in labels.labels_in_force(session, queue_id=queue.id)}
    names = project.config.data.class_names
    best: dict[int, ShownRegion] = {}
    for item, image in queue_items.queued_regions(session, queue_id=queue.id):
        if item.slice != "selected" or image.id in best:
            continue
        class_name = () if item.predicted_class is None else (f"mostly {names[item.predicted_class]}",)
        best[image.id] = ShownRegion(
            image=image,
            rank=item.rank,
            box=(item.x, item.y, item.w, item.h),
            outline=item.outline,
            heading=f"{item.rank}. {Path(image.uri).name}",
            reason=item.reason,
            tags=(*class_name, item.status),
            mask_uri=masks.get(image.id) if item.status == "labeled" else None,
        )
    return QueueRegions(
        queue=queue,
        model=session.get_one(Model, run.model_id),
        calibrators=stored_calibrators(session, run.model_id, sampler=project.config.scoring.sampler),
        regions=list(best.values()),
        labeled=any(region.mask_uri is not None for region in best.values()),
    )


def disagreeing_regions(session: Session, report: DisagreementReport) -> list[ShownRegion]:
    """The regions of high confidence whose samples disagree, one an image."""
    best: dict[int, ShownRegion] = {}
    for rank, row in enumerate(report.rows, start=1):
        image = session.get(Image, row.image_id)
        if image is None or image.id in best:
            continue
        best[image.id] = ShownRegion(
            image=image,
            rank=rank,
            box=(row.x, row.y, row.w, row.h),
            outline=row.outline,
            heading=f"{rank}. {Path(row.uri).name}",
            reason=report.described(row),
            tags=(f"mostly {report.class_names[row.predicted_class]}",),
            mask_uri=None,
        )
    return list(best.values())


def gallery_rows(
    project: Project, model: Model, calibrators: Calibrators, regions: Sequence[ShownRegion]
) -> tuple[list[tuple[ShownRegion, GalleryRow]], Failures]:
    """Each region with the model's prediction and measures, and the unreadable images with the reason.

    Raises:
        CheckpointError: the model cannot be loaded.
    """
    failures: Failures = []
    maps = _predict(project, model, calibrators, regions, failures)
    rows: list[tuple[ShownRegion, GalleryRow]] = []
    for region in regions:
        if region.image.id in maps:
            try:
                rows.append((region, _row(project, region, maps[region.image.id])))
            except DataError as error:
                failures.append((region.image.uri, str(error)))
    return rows, failures


def record_failures(session: Session, failures: Failures) -> None:
    """Store the images that could not be read, in place of those of the last report."""
    failure_queries.clear_failures(session, "report")
    failure_queries.record_failures(session, "report", failures)


def _predict(
    project: Project,
    model: Model,
    calibrators: Calibrators,
    regions: Sequence[ShownRegion],
    failures: Failures,
) -> dict[int, _Maps]:
    """Prediction and measures around each region, by its image, enlarged to the size of the image there."""
    if not regions:
        return {}
    parts = {region.image.id: _Part.of(region) for region in regions}
    served = open_model(project, model.checkpoint_uri, calibrators=calibrators)
    of_image: dict[int, _Maps] = {}
    for batch in served.batches([project.ref(region.image) for region in regions], batch_size=1):
        if isinstance(batch, Unreadable):
            failures.append((project.uri(batch.path), batch.reason))
            continue
        prediction = served.predictor.predict(batch.images)
        part = parts[batch.ids[0]]
        of_image[batch.ids[0]] = _maps(prediction, part, batch.sizes[0])
    return of_image


def _maps(prediction: Prediction, part: _Part, size: tuple[int, int]) -> _Maps:
    """The maps of one image in its shown part, enlarged band by band."""
    x, y, w, h = part.box
    known = prediction.measures()
    names: list[Measure] = [name for name in MEASURES if name in known]
    wanted = [prediction.probability, *(known[name][:, None] for name in names)]
    values = size[1] * sum(maps.shape[1] for maps in wanted)
    among = [slice(y + rows.start, y + rows.stop) for rows in bands(h, values, multiple=part.step)]
    classes: list[Tensor] = []
    measures: dict[Measure, list[Tensor]] = {name: [] for name in names}
    for _, (probability, *others) in prediction.bands_of(wanted, size, row=0, among=among):
        shown = (slice(None, None, part.step), slice(x, x + w, part.step))
        classes.append(predicted_class(probability)[shown].cpu())
        for name, values_1HW in zip(names, others, strict=True):
            measures[name].append(values_1HW[0][shown].float().cpu())
    return _Maps(
        prediction=torch.cat(classes).numpy().astype(np.uint8),
        measures={name: torch.cat(of_bands).numpy() for name, of_bands in measures.items()},
    )


def _row(project: Project, region: ShownRegion, maps: _Maps) -> GalleryRow:
    data, image, part = project.config.data, region.image, _Part.of(region)
    rgb = as_rgb(read_image(project.image(image.uri), channels=data.channels, max_pixels=data.max_pixels))
    label = None
    if region.mask_uri is not None:
        known = compose_labels([project.path(region.mask_uri)], (image.width, image.height))
        x, y, w, h = region.box
        inside = (slice(y, y + h), slice(x, x + w))
        label = np.full_like(known, IGNORE)
        label[inside] = np.where(decode_outline(region.outline, width=w, height=h), known[inside], IGNORE)
        label = part.cut(label)
    return GalleryRow(
        size=(image.width, image.height),
        box=region.box,
        overview=_overview(rgb),
        image=part.cut(rgb),
        prediction=maps.prediction,
        entropy=maps.measures["entropy"],
        mutual_information=maps.measures.get("mutual_information"),
        label=label,
        heading=region.heading,
        reason=region.reason,
        outline=region.outline,
    )


def _overview(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """An image [H, W, 3], a large one smaller."""
    step = max(1, max(rgb.shape[:2]) // SHOWN_SIDE)
    if step == 1:
        return rgb
    size = (rgb.shape[1] // step, rgb.shape[0] // step)
    return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
