"""Novelty: the pool compared with held-out images, and the detection of classes that a model was trained
without.

Legend: n images, F encoder features, H W image size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config import IGNORE, Sampler
from pipeline.data.loading import Batch, Unreadable
from pipeline.data.project import Project
from pipeline.errors import UserError
from pipeline.evaluation.bootstrap import BlockBootstrap
from pipeline.evaluation.estimate import Estimate
from pipeline.evaluation.held_out_classes import HeldOutClasses, NoveltyMetric, novel_pixels
from pipeline.evaluation.populations import mean_difference, nearest_distances, shares
from pipeline.evaluation.units import join
from pipeline.format import evidence
from pipeline.progress import Progress
from pipeline.studies.held_out import (
    HeldOutImages,
    LabeledBatch,
    PlacedImage,
    choose_bins,
    concatenated,
    runs_of,
    thinned,
)
from pipeline.uncertainty.predictor import Predictor
from pipeline.uncertainty.served_model import SampledModel, ServedModel

SEED = 0
CONFIDENCE_BINS = 150
SHOWN_BINS = 30
FARTHEST = 10

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Compared:
    """One quantity of the held-out images and of the pool: shares of each in common bins, and the pool's mean
    less that of the held-out images. `images` and `units`: of the held-out images and of the pool, how many,
    and how many independent units they make."""

    edges: list[float]
    held_out: list[float]
    pool: list[float]
    difference: Estimate
    means: tuple[float, float]
    images: tuple[int, int]
    units: tuple[int, int]

    @property
    def evidence(self) -> str:
        """What stands behind the difference."""
        held_out, pool = (evidence(*both) for both in zip(self.images, self.units, strict=True))
        return f"held-out {held_out}, pool {pool}"

    def document(self) -> dict[str, Any]:
        """As it is stored."""
        return {
            "edges": self.edges,
            "held_out": self.held_out,
            "pool": self.pool,
            "difference": self.difference.document(),
            "evidence": self.evidence,
            "images": list(self.images),
            "blocks": list(self.units),
        }


@dataclass(frozen=True)
class FarImage:
    """A pool image far from all labeled images: its distance to the nearest of them, and the share of
    held-out images with a smaller distance, in per cent."""

    image_id: int
    uri: str
    distance: float
    percentile: float

    def document(self) -> dict[str, Any]:
        """As it is stored."""
        return asdict(self) | {
            "distance": round(self.distance, 6),
            "percentile": round(self.percentile, 1),
        }


@dataclass(frozen=True)
class PoolComparison:
    """The pool compared with the held-out images: confidence, distance to the nearest labeled image, and the
    pool images of the largest distance."""

    confidence: Compared
    neighbours: Compared
    farthest: list[FarImage]


@dataclass(frozen=True)
class ClassDetection:
    """How well a model that was trained without some classes detects their pixels."""

    classes: list[str]
    model: str
    images: int
    blocks: int
    rows: list[NoveltyMetric]

    def document(self) -> dict[str, Any]:
        """As it is stored."""
        return {
            "classes": self.classes,
            "model": self.model,
            "images": self.images,
            "blocks": self.blocks,
            "rows": [
                {
                    "sampler": row.sampler,
                    "measure": row.measure,
                    "metric": row.metric,
                    **row.estimate.document(),
                }
                for row in self.rows
            ],
        }


@dataclass(frozen=True)
class _Predicted:
    """The images that could be read: confidence histograms [n, 150], mean confidence [n] and features
    [n, F]."""

    images: list[PlacedImage]
    histograms: Array
    confidence: Array
    features: Array


def compare_pool(
    project: Project,
    model: ServedModel,
    *,
    held_out: Sequence[PlacedImage],
    pool: Sequence[PlacedImage],
    labeled: Sequence[PlacedImage],
    failed: list[tuple[str, str]],
    progress: Progress,
) -> PoolComparison | None:
    """Compare unlabeled pool images with held-out images; None where one of the three sets has no image.

    Args:
        labeled: images that the model has learned from.
        failed: gets URI and reason of each file that could not be used.
    """
    if not (held_out and pool and labeled):
        return None
    known, new, references = (
        _predict(project, model, images, failed, progress, with_confidence=images is not labeled)
        for images in (held_out, pool, labeled)
    )
    if not (known.images and new.images and references.images):
        return None
    near, far = (nearest_distances(side.features, references.features) for side in (known, new))
    confidence_level = project.config.evaluation.confidence
    units = [
        _units(project, side.images, np.stack([side.confidence, distance], axis=1))
        for side, distance in ((known, near), (new, far))
    ]
    images = (len(known.images), len(new.images))
    counted = (int(units[0].max()) + 1, int(units[1].max()) + 1)
    per_bin = CONFIDENCE_BINS // SHOWN_BINS
    histograms = [
        side.histograms.mean(axis=0).reshape(SHOWN_BINS, per_bin).sum(axis=1).round(6).tolist()
        for side in (known, new)
    ]
    confidence = Compared(
        edges=np.linspace(0, 1, SHOWN_BINS + 1).round(6).tolist(),
        held_out=histograms[0],
        pool=histograms[1],
        difference=mean_difference(known.confidence, new.confidence, *units, confidence=confidence_level),
        means=(float(known.confidence.mean()), float(new.confidence.mean())),
        images=images,
        units=counted,
    )
    edges = np.linspace(0, max(near.max(), far.max(), 1e-6), SHOWN_BINS + 1)
    neighbours = Compared(
        edges=edges.round(6).tolist(),
        held_out=shares(near, edges),
        pool=shares(far, edges),
        difference=mean_difference(near, far, *units, confidence=confidence_level),
        means=(float(near.mean()), float(far.mean())),
        images=images,
        units=counted,
    )
    farthest = [
        FarImage(
            image_id=new.images[row].ref.id,
            uri=project.uri(new.images[row].ref.path),
            distance=float(far[row]),
            percentile=float(100 * (near <= far[row]).mean()),
        )
        for row in np.argsort(-far, kind="stable")[:FARTHEST]
    ]
    return PoolComparison(confidence, neighbours, farthest)


def _units(project: Project, images: Sequence[PlacedImage], values: Array) -> npt.NDArray[np.int64]:
    """The independent unit [n] of images with values [n, S]."""
    runs = runs_of(project, images)
    of_runs = join(values - values.mean(axis=0), runs.of_image)
    return runs.units(of_runs)[runs.of_image]


@torch.inference_mode()
def detect_classes(
    model: SampledModel,
    images: HeldOutImages,
    *,
    name: str,
    classes: Sequence[str],
    class_names: Sequence[str],
    progress: Progress,
) -> ClassDetection:
    """How well a model that was trained without `classes` detects their pixels, with every sampler and
    measure; uncalibrated, because the model has no fitted calibrator.

    Raises:
        UserError: no held-out image has a pixel of the classes.
    """
    indices = torch.tensor([class_names.index(item) for item in classes])

    def measured(batch: LabeledBatch) -> Iterator[tuple[Sampler, dict[str, Tensor], Tensor]]:
        every = thinned(batch.size)

        def of_band(band: _Band) -> tuple[dict[str, Tensor], Tensor]:
            index = (band.label != IGNORE).flatten().nonzero()[::every, 0]
            measures = {name: values_hW.flatten()[index] for name, values_hW in band.measures.items()}
            return measures, novel_pixels(band.label.flatten()[index], indices)

        for (sampler, _), found in groupby(_measured(model, batch), key=lambda band: (band.sampler, band.id)):
            yield sampler, *concatenated(map(of_band, found))

    bins = choose_bins(images, model.first, measured, progress)
    histograms = HeldOutClasses(indices, runs=len(images.runs), bins=bins)
    count = 0
    for batch in images.read(model.first, title="detect the classes", progress=progress):
        count += len(batch.ids)
        for band in _measured(model, batch):
            histograms.add(band.sampler, band.measures, band.label, run=images.run_of[band.id])
    if not histograms.pixels:
        raise UserError(
            f"No held-out image has a pixel of {', '.join(classes)}.", "Name classes that occur in them."
        )
    unit = images.runs.units(histograms.residuals())
    units = int(unit.max()) + 1
    bootstrap = BlockBootstrap.draw(units, images.project.config.evaluation, seed=SEED)
    return ClassDetection(
        classes=list(classes),
        model=name,
        images=count,
        blocks=units,
        rows=list(histograms.rows(unit, bootstrap)),
    )


@dataclass(frozen=True)
class _Band:
    """A band of rows [h, W] of an image: its uncalibrated measures with a sampler, and its label."""

    sampler: Sampler
    id: int
    measures: dict[str, Tensor]
    label: Tensor


def _measured(model: SampledModel, batch: LabeledBatch) -> Iterator[_Band]:
    """Each image with each sampler, band by band."""
    label = batch.label.to(model.device)
    for sampler, prediction, _ in model.predict(batch.images, batch.progress):
        maps = prediction.measures()
        stacked = torch.stack(list(maps.values()), dim=1)
        for row, image_id in enumerate(batch.ids):
            for rows, (values_MhW,) in prediction.bands_of([stacked], batch.size, row=row):
                yield _Band(sampler, image_id, dict(zip(maps, values_MhW, strict=True)), label[row, rows])


def _predict(
    project: Project,
    model: ServedModel,
    images: Sequence[PlacedImage],
    failed: list[tuple[str, str]],
    progress: Progress,
    *,
    with_confidence: bool,
) -> _Predicted:
    """Predict all images that can be read, in one pass."""
    by_id = {image.ref.id: image for image in images}
    found: dict[int, tuple[Array, float, Array]] = {}
    for batch in model.batches([image.ref for image in images]):
        if isinstance(batch, Unreadable):
            failed.append((project.uri(batch.path), batch.reason))
            continue
        rows = _rows(model.predictor, batch, progress, with_confidence=with_confidence)
        found.update(zip(batch.ids, rows, strict=True))
        progress("compare images", len(found), len(images))
    kept = [by_id[image_id] for image_id in sorted(found)]
    histograms, confidence, features = (
        np.array([found[image.ref.id][column] for image in kept]) for column in range(3)
    )
    return _Predicted(kept, histograms, confidence, features)


@torch.inference_mode()
def _rows(
    predictor: Predictor, batch: Batch[Any], progress: Progress, *, with_confidence: bool
) -> Iterator[tuple[Array, float, Array]]:
    """For each image: shares of its pixels by confidence [150], mean confidence, features [F]."""
    features = predictor.image_features(batch.images).double().cpu().numpy()
    if not with_confidence:
        yield from ((np.zeros(CONFIDENCE_BINS), float("nan"), row) for row in features)
        return
    confidence = predictor.predict(batch.images, progress).probability.amax(dim=1).flatten(1).clamp(0, 1)
    for values, row in zip(confidence, features, strict=True):
        bins = (values * CONFIDENCE_BINS).long().clamp_(max=CONFIDENCE_BINS - 1)
        histogram = torch.bincount(bins, minlength=CONFIDENCE_BINS).double().cpu().numpy()
        yield histogram / histogram.sum(), float(values.double().mean()), row
