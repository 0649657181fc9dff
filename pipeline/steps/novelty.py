"""Novelty: is the pool like the held-out images, and would the model notice what it has never been shown?

Legend: B batch, F encoder features, C classes, H W image size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import evaluations, models
from db.queries import images as image_queries
from db.tables import Image, Model
from pipeline.calibration.calibrators import Calibrators
from pipeline.config import EvaluationConfig, Sampler
from pipeline.data.loading import Batch, Unreadable
from pipeline.data.project import Project
from pipeline.errors import UserError
from pipeline.evaluation.bootstrap import BlockBootstrap, blocks, bootstrap_weights
from pipeline.evaluation.estimate import Estimate
from pipeline.evaluation.held_out_classes import HeldOutClasses, NoveltyMetric
from pipeline.evaluation.populations import mean_difference, nearest_distances, shares
from pipeline.model.checkpoints import read_card
from pipeline.progress import Progress, silent
from pipeline.steps.assess import spread
from pipeline.steps.held_out import judging_images
from pipeline.steps.served_model import chosen_model, offered_samplers, stored_calibrators
from pipeline.steps.train_without import train_without
from pipeline.studies.constructed import answers
from pipeline.studies.held_out import LabeledBatch, read_held_out
from pipeline.uncertainty.predictor import Predictor
from pipeline.uncertainty.served_model import ServedModel, open_model

SEED = 0
MOST_IMAGES = 200
"""Held-out images that the pool is compared with."""
MOST_REFERENCES = 2000
"""Labeled images that neighbours are looked for in."""
CONFIDENCE_BINS = 150
SHOWN_BINS = 30
FARTHEST = 10

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Compared:
    """One number of the held-out images and of the pool: shares of each in common bins, and the pool's mean
    less that of the held-out images."""

    edges: list[float]
    held_out: list[float]
    pool: list[float]
    difference: Estimate
    means: tuple[float, float]


@dataclass(frozen=True)
class Unseen:
    """How a model that was trained without some classes answers to their pixels."""

    classes: list[str]
    model: str
    images: int
    blocks: int
    rows: list[NoveltyMetric]


@dataclass(frozen=True)
class NoveltyReport:
    """What a look for novelty found. `confidence` and `neighbours` are None where the pool has no unlabeled
    image, or nothing is held out; `farthest` are pool images that lie far from everything labeled."""

    model: str
    confidence: Compared | None
    neighbours: Compared | None
    farthest: list[tuple[int, str, float, float]]
    unseen: Unseen | None
    failed: list[tuple[str, str]]

    def lines(self) -> Iterator[str]:
        """The report in words."""
        if self.confidence is None or self.neighbours is None:
            yield "The pool is compared with nothing: it has no unlabeled image, or nothing is held out."
        else:
            for name, found in (
                ("confidence", self.confidence),
                ("distance to the nearest labeled image", self.neighbours),
            ):
                yield (
                    f"{name}: held-out {found.means[0]:.3f}, pool {found.means[1]:.3f}, "
                    f"difference {found.difference.text()}"
                )
            for _, uri, distance, percentile in self.farthest[:3]:
                yield f"far from everything labeled: {uri} ({distance:.3f}, {percentile:.0f}th percentile)"
        if self.unseen is not None:
            yield (
                f"held-out classes {', '.join(self.unseen.classes)} ({self.unseen.model}; "
                f"{self.unseen.images} images in {self.unseen.blocks} blocks):"
            )
            for row in self.unseen.rows:
                if row.metric == "auroc":
                    yield f"  {row.sampler:<14}{row.measure:<20}AUROC {row.estimate.text()}"
        for subject, reason in self.failed:
            yield f"not used: {subject}: {reason}"


def novelty(
    project: Project,
    database: Database,
    *,
    classes: Sequence[str] = (),
    checkpoint: Path | None = None,
    model: str | None = None,
    pool_images: int = 200,
    progress: Progress = silent,
) -> NoveltyReport:
    """Compare the pool with the held-out images, and look for classes that a model was not shown.

    Three diagnostics: confidence on held-out and on unlabeled pool images; the distance of both, in the
    encoder's features, to the labeled images; and, with `classes`, the out-of-distribution detection of a
    second model that is trained with these classes as void. Run again, it replaces what it wrote, except
    that the held-out classes stay where none are named.

    Args:
        classes: names of the classes to hold out.
        checkpoint: the folder of a model that was trained with these classes as void; else one is trained.
        model: its name; else the promoted one, or the newest where none is.
        pool_images: how many unlabeled pool images, drawn at random with a fixed seed.

    Raises:
        UserError: there is no such model or class, or a model cannot be trained or used.
    """
    names = project.config.data.class_names
    unknown = [name for name in classes if name not in names]
    if unknown:
        raise UserError(f"There is no class `{unknown[0]}`.", f"The classes are {', '.join(names)}.")
    if checkpoint is not None and not classes:
        raise UserError(
            "A checkpoint was named, but no class.", "Name the classes that it was trained without."
        )
    with database.session(write=False) as session:
        row = chosen_model(session, model)
        before = evaluations.assessment_of(session, model_id=row.id, kind="novelty")
        former = (before.document if before else {}).get("held_out_classes")
        images = _images(session, row, pool_images)
        calibrators = stored_calibrators(session, row.id, sampler=project.config.scoring.sampler)
    failed: list[tuple[str, str]] = []
    served = open_model(project, row.checkpoint_uri, calibrators=calibrators)
    compared = _compare(project, served, images, failed, progress)
    unseen = None
    if classes:
        indices = [names.index(name) for name in classes]
        folder = checkpoint or train_without(project, database, indices, progress=progress).folder
        unseen = _detect(project, database, folder, list(classes), failed, progress)
    report = NoveltyReport(
        model=row.name,
        confidence=compared[0] if compared else None,
        neighbours=compared[1] if compared else None,
        farthest=compared[2] if compared else [],
        unseen=unseen,
        failed=list(dict(failed).items()),
    )
    with database.session() as session:
        evaluations.put_assessment(
            session, model_id=row.id, kind="novelty", document=_document(report, former)
        )
    return report


@dataclass(frozen=True)
class _Images:
    """Held-out images, unlabeled pool images, and those that the model has learned from."""

    held_out: list[Image]
    pool: list[Image]
    labeled: list[Image]


def _images(session: Session, model: Model, pool_images: int) -> _Images:
    held_out = image_queries.split_images(session, "test") or image_queries.split_images(
        session, "calibration"
    )
    generator = np.random.default_rng(SEED)

    def drawn(ids: Sequence[int], most: int) -> list[Image]:
        chosen = generator.permutation(np.array(ids, dtype=np.int64))[:most]
        return image_queries.images_by_id(session, sorted(chosen.tolist()))

    return _Images(
        held_out=[held_out[place] for place in spread(len(held_out), MOST_IMAGES)],
        pool=drawn(image_queries.unlabeled_ids(session), pool_images),
        labeled=drawn(models.labeled_ids(session, model.id), MOST_REFERENCES),
    )


@dataclass(frozen=True)
class _Seen:
    """What one look at some images gives: a row each of confidence histograms [n, 150], mean confidence [n]
    and features [n, F], and the block of each."""

    images: list[Image]
    histograms: Array
    confidence: Array
    features: Array
    block: npt.NDArray[np.int64]


def _compare(
    project: Project,
    served: ServedModel,
    images: _Images,
    failed: list[tuple[str, str]],
    progress: Progress,
) -> tuple[Compared, Compared, list[tuple[int, str, float, float]]] | None:
    """Confidence, distances, and the farthest pool images with their distance and percentile."""
    if not (images.held_out and images.pool and images.labeled):
        return None
    held_out, pool, labeled = (
        _look(project, served, some, failed, progress, predict=predict)
        for some, predict in ((images.held_out, True), (images.pool, True), (images.labeled, False))
    )
    if not (held_out.images and pool.images and labeled.images):
        return None
    near, far = (nearest_distances(side.features, labeled.features) for side in (held_out, pool))
    config = project.config.evaluation
    per_bin = CONFIDENCE_BINS // SHOWN_BINS
    histograms = [
        side.histograms.mean(axis=0).reshape(SHOWN_BINS, per_bin).sum(axis=1).round(6).tolist()
        for side in (held_out, pool)
    ]
    confidence = Compared(
        edges=np.linspace(0, 1, SHOWN_BINS + 1).round(6).tolist(),
        held_out=histograms[0],
        pool=histograms[1],
        difference=_difference(held_out.confidence, pool.confidence, held_out, pool, config),
        means=(float(held_out.confidence.mean()), float(pool.confidence.mean())),
    )
    edges = np.linspace(0, max(near.max(), far.max(), 1e-6), SHOWN_BINS + 1)
    neighbours = Compared(
        edges=edges.round(6).tolist(),
        held_out=shares(near, edges),
        pool=shares(far, edges),
        difference=_difference(near, far, held_out, pool, config),
        means=(float(near.mean()), float(far.mean())),
    )
    order = np.argsort(-far, kind="stable")[:FARTHEST]
    farthest = [
        (
            pool.images[place].id,
            pool.images[place].uri,
            float(far[place]),
            float(100 * (near <= far[place]).mean()),
        )
        for place in order
    ]
    return confidence, neighbours, farthest


def _difference(
    first: Array, second: Array, held_out: _Seen, pool: _Seen, config: EvaluationConfig
) -> Estimate:
    return mean_difference(
        first,
        second,
        held_out.block,
        pool.block,
        resamples=config.resamples,
        confidence=config.confidence,
        seed=SEED,
    )


def _look(
    project: Project,
    served: ServedModel,
    images: Sequence[Image],
    failed: list[tuple[str, str]],
    progress: Progress,
    *,
    predict: bool,
) -> _Seen:
    """Read images once; those that cannot be read are left out."""
    by_id = {image.id: image for image in images}
    seen: dict[int, tuple[Array, float, Array]] = {}
    for batch in served.batches([project.ref(image) for image in images]):
        if isinstance(batch, Unreadable):
            failed.append((project.uri(batch.path), batch.reason))
            continue
        seen.update(zip(batch.ids, _answers(served.predictor, batch, predict=predict), strict=True))
        progress("look at images", len(seen), len(images))
    kept = [by_id[image_id] for image_id in sorted(seen)]
    rows = [seen[image.id] for image in kept]
    return _Seen(
        images=kept,
        histograms=np.array([row[0] for row in rows]),
        confidence=np.array([row[1] for row in rows]),
        features=np.array([row[2] for row in rows]),
        block=blocks(
            [one.group_name for one in kept],
            [one.position for one in kept],
            project.config.evaluation.block,
        ),
    )


@torch.inference_mode()
def _answers(predictor: Predictor, batch: Batch, *, predict: bool) -> Iterator[tuple[Array, float, Array]]:
    """Of each image: shares of its pixels by confidence [150], mean confidence, features [F]."""
    padded = predictor.segmenter.pad(batch.image_BKHW.to(predictor.device))
    features = predictor.segmenter.image_features(padded).double().cpu().numpy()
    if not predict:
        yield from ((np.zeros(CONFIDENCE_BINS), float("nan"), row) for row in features)
        return
    confidence = predictor.predict(batch.image_BKHW).probability.amax(dim=1).flatten(1).clamp(0, 1)
    for values, row in zip(confidence, features, strict=True):
        bins = (values * CONFIDENCE_BINS).long().clamp_(max=CONFIDENCE_BINS - 1)
        histogram = torch.bincount(bins, minlength=CONFIDENCE_BINS).double().cpu().numpy()
        yield histogram / histogram.sum(), float(values.double().mean()), row


def _detect(
    project: Project,
    database: Database,
    folder: Path,
    classes: list[str],
    failed: list[tuple[str, str]],
    progress: Progress,
) -> Unseen:
    """Every sampler and measure of the model in `folder`, on the held-out images; uncalibrated, because
    nobody has fitted a calibrator to it."""
    config = project.config
    with database.session(write=False) as session:
        _, images = judging_images(session, project)
    card = read_card(folder)
    # The other members of an ensemble have seen the classes
    samplers: list[Sampler] = [name for name in offered_samplers(config, card) if name != "ensemble"]
    models: dict[Sampler, ServedModel] = {
        sampler: open_model(project, folder, calibrators=Calibrators(), sampler=sampler)
        for sampler in samplers
        if sampler != "none"
    }
    predictors: dict[Sampler, Predictor] = {sampler: served.predictor for sampler, served in models.items()}
    index = blocks(
        [item.group for item in images], [item.position for item in images], config.evaluation.block
    )
    block_of = {item.ref.id: int(place) for item, place in zip(images, index, strict=True)}
    found = HeldOutClasses(
        [config.data.class_names.index(name) for name in classes], blocks=int(index.max()) + 1
    )
    done = 0
    for batch in read_held_out(images, model=next(iter(models.values())), data=config.data):
        if isinstance(batch, Unreadable):
            failed.append((project.uri(batch.path), batch.reason))
            continue
        _count(predictors, samplers, batch, found, block_of)
        done += len(batch.ids)
        progress("look for the classes", done, len(images))
    if not found.pixels:
        raise UserError(
            f"No held-out image has a pixel of {', '.join(classes)}.", "Hold out classes that they hold."
        )
    evaluation = config.evaluation
    weights = bootstrap_weights(found.blocks, resamples=evaluation.resamples, seed=SEED)
    return Unseen(
        classes=classes,
        model=folder.name,
        images=done,
        blocks=found.blocks,
        rows=list(found.rows(BlockBootstrap(weights=weights, confidence=evaluation.confidence))),
    )


@torch.inference_mode()
def _count(
    predictors: dict[Sampler, Predictor],
    samplers: Sequence[Sampler],
    batch: LabeledBatch,
    found: HeldOutClasses,
    block_of: dict[int, int],
) -> None:
    size = (batch.label.shape[-2], batch.label.shape[-1])
    for sampler, predictor, prediction, _ in answers(predictors, samplers, batch.image):
        maps = prediction.measures()
        label = batch.label.to(predictor.device)
        for row, image_id in enumerate(batch.ids):
            stacked = torch.stack([plane[row] for plane in maps.values()])[None]
            large = prediction.at(stacked, size)[0]
            found.add(sampler, dict(zip(maps, large, strict=True)), label[row], block=block_of[image_id])


def _document(report: NoveltyReport, former: dict[str, Any] | None) -> dict[str, Any]:
    unseen = report.unseen
    return {
        "confidence": _compared(report.confidence),
        "neighbours": _compared(report.neighbours),
        "farthest": [
            {"image_id": image_id, "uri": uri, "distance": round(distance, 6), "percentile": round(place, 1)}
            for image_id, uri, distance, place in report.farthest
        ],
        "held_out_classes": former
        if unseen is None
        else {
            "classes": unseen.classes,
            "model": unseen.model,
            "images": unseen.images,
            "blocks": unseen.blocks,
            "rows": [
                {
                    "sampler": row.sampler,
                    "measure": row.measure,
                    "metric": row.metric,
                    **row.estimate.document(),
                }
                for row in unseen.rows
            ],
        },
    }


def _compared(found: Compared | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "edges": found.edges,
        "held_out": found.held_out,
        "pool": found.pool,
        "difference": found.difference.document(),
    }
