"""Each round with its labels, its model and the model's metrics: the rows of `segcurate rounds`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from db.queries import evaluations, queues, rounds
from db.queries import models as model_queries
from db.queries.labels import CoveredRegion, count_covered, covered_regions, is_version, newest_versions
from db.tables import Image, Label, Model, ModelLabel, Queue, Round
from pipeline.evaluation.estimate import Estimate
from pipeline.format import split_name
from pipeline.rounds import WITHOUT_MODEL
from pipeline.summaries.classes import UNDEFINED, ClassFigures, class_figures
from pipeline.summaries.models import estimates, evaluated_split, model_confidence
from pipeline.summaries.pool import PoolSummary, pool_of_round


@dataclass(frozen=True)
class RoundSummary:
    """A round and the model that it trained.

    Attributes:
        labeled_images, labeled_regions, labeled_pixels: the training labels of the round's model; for a round
            without a model yet, the labels so far, and for round 0 those of its queue. A region that several
            annotators of a queue have labeled counts once.
        labeled_share: labeled pixels as a share of the pool's.
        clicks: estimated for the exported regions that are labeled; None where there is none.
        hours: of work of all annotators, as far as their tools measured it; None where none did.
        split, split_version: the held-out split that the figures were measured on, and its version. Figures
            on two versions are not comparable.
        images, units: of that split, and how many independent units they make; None without an evaluation.
        sampler: whose predictions the figures are of.
        mean_iou, classes, ece_before, ece_after, error_auroc: `classes` is empty for a model without an
            evaluation; `error_auroc` says how well entropy finds the wrong pixels, after calibration.
        confidence: the name of the model's calibrated softmax: `probability` or `softmax score`.
        confidence_reason: why it is no probability; None for one.
        unlabeled: how good the model that made the round's queue is on what was not labeled then, from the
            audit of that queue; without it `no_estimate` says why, if the round has a queue.
        withdrawn: the names of its queues that were withdrawn: their audits say nothing about the pool.
    """

    number: int
    state: str
    started_at: datetime
    labeled_images: int
    labeled_regions: int
    labeled_pixels: int
    labeled_share: float
    clicks: float | None
    hours: float | None
    model: str | None
    model_status: str | None
    split: str | None
    split_version: int | None
    images: int | None
    units: int | None
    sampler: str
    mean_iou: Estimate
    classes: tuple[ClassFigures, ...]
    ece_before: Estimate
    ece_after: Estimate
    error_auroc: Estimate
    confidence: str
    confidence_reason: str | None
    unlabeled: PoolSummary | None = None
    no_estimate: str | None = None
    withdrawn: tuple[str, ...] = ()

    @property
    def promoted(self) -> bool:
        return self.model_status == "promoted"

    @property
    def measured_on(self) -> str | None:
        """The split with its version; None without an evaluation."""
        return self.split and split_name(self.split, self.split_version or 1)


def round_history(session: Session, *, sampler: str, class_names: Sequence[str]) -> list[RoundSummary]:
    """Every round, oldest first. `sampler` names the predictions that are reported."""
    pool_pixels = _pool_pixels(session)
    rows: list[RoundSummary] = []
    for row in rounds.list_rounds(session):
        model = model_queries.round_model(session, row.id)
        labels = _labels_of(session, row, model)
        split = evaluated_split(session, model.id) if model else None
        pixels = _pixels_of(session, labels)
        covered = count_covered(session, _label_ids(row, model))
        seconds = [label.seconds for label in labels if label.seconds is not None]
        before, after = (
            estimates(session, model.id, split=split, sampler=sampler, calibrated=calibrated)
            if model and split
            else {}
            for calibrated in (False, True)
        )
        confidence = model_confidence(session, model.id if model else None, sampler=sampler)
        measured = (
            evaluations.evaluation_of(
                session, model_id=model.id, split=split, sampler=sampler, calibrated=True
            )
            if model and split
            else None
        )
        unlabeled, no_estimate = pool_of_round(session, row)
        rows.append(
            RoundSummary(
                number=row.number,
                state=row.state,
                started_at=row.started_at,
                labeled_images=len({label.image_id for label in labels}),
                labeled_regions=covered.items,
                labeled_pixels=pixels,
                labeled_share=pixels / pool_pixels if pool_pixels else 0.0,
                clicks=covered.clicks,
                hours=sum(seconds) / 3600 if seconds else None,
                model=model.name if model else None,
                model_status=model.status if model else None,
                split=split,
                split_version=measured.split_version if measured else None,
                images=measured.images if measured else None,
                units=measured.blocks if measured else None,
                sampler=sampler,
                mean_iou=after.get(("miou", -1), UNDEFINED),
                classes=class_figures(after, class_names),
                ece_before=before.get(("ece", -1), UNDEFINED),
                ece_after=after.get(("ece", -1), UNDEFINED),
                error_auroc=after.get(("auroc_entropy", -1), UNDEFINED),
                confidence=confidence.name,
                confidence_reason=confidence.reason,
                unlabeled=unlabeled,
                no_estimate=no_estimate,
                withdrawn=tuple(queue.name for queue in queues.withdrawn_queues(session, number=row.number)),
            )
        )
    return rows


def _pool_pixels(session: Session) -> int:
    statement = select(func.sum(Image.width * Image.height)).where(
        Image.split == "pool", Image.duplicate_of.is_(None)
    )
    return session.scalar(statement) or 0


def _labels_of(session: Session, row: Round, model: Model | None) -> Sequence[Label]:
    """The labels of a round's model; before there is one, those that it may learn from; of round 0, which has
    no model, those of its queue."""
    if model is not None:
        return model_queries.model_labels(session, model.id)
    statement = select(Label).where(Label.id.in_(_label_ids(row, model)))
    return session.scalars(statement.order_by(Label.image_id, Label.queue_id, Label.version)).all()


def _label_ids(row: Round, model: Model | None) -> Select[tuple[int]]:
    """A query for the ids of these labels."""
    if model is not None:
        return select(ModelLabel.label_id).where(ModelLabel.model_id == model.id)
    newest = newest_versions()
    in_force = select(Label.id).join(newest, is_version(newest))
    if row.number == WITHOUT_MODEL:
        return in_force.join(Queue, Queue.id == Label.queue_id).where(Queue.round_id == row.id)
    return in_force.join(Image, Image.id == Label.image_id).where(Image.split == "pool")


def _pixels_of(session: Session, labels: Sequence[Label]) -> int:
    """Labeled pixels. Of labels of one image and queue that share a region, only the largest counts."""
    of_image: dict[tuple[int, int], list[Label]] = {}
    for label in labels:
        of_image.setdefault((label.queue_id, label.image_id), []).append(label)
    several = [label.id for group in of_image.values() if len(group) > 1 for label in group]
    covered = covered_regions(session, several)
    pixels = 0
    for group in of_image.values():
        apart: list[tuple[set[CoveredRegion], int]] = []
        for label in group:
            regions, count = covered.get(label.id, set[CoveredRegion]()), label.labeled_pixels
            for other in [part for part in apart if _overlap(part[0], regions)]:
                apart.remove(other)
                regions, count = regions | other[0], max(count, other[1])
            apart.append((regions, count))
        pixels += sum(count for _, count in apart)
    return pixels


def _overlap(first: set[CoveredRegion], second: set[CoveredRegion]) -> bool:
    """Whether both sets have a region in common, or a region of one lies inside a region of the other."""
    return bool(first & second) or any(_contains(a, b) or _contains(b, a) for a in first for b in second)


def _contains(outer: CoveredRegion, inner: CoveredRegion) -> bool:
    """Whether `outer`, a region that fills its box, contains `inner`."""
    return (
        outer.fills_box
        and outer.x <= inner.x
        and outer.y <= inner.y
        and inner.x + inner.w <= outer.x + outer.w
        and inner.y + inner.h <= outer.y + outer.h
    )
