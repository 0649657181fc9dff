"""What the rounds and the models have come to: the rows of `segcurate rounds` and `segcurate models`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from db.queries import evaluations, rounds
from db.queries import labels as label_queries
from db.queries import models as model_queries
from db.queries.labels import CoveredRegion, count_covered, covered_regions, is_version, newest_versions
from db.tables import Evaluation, Image, Label, Metric, Model, ModelLabel
from pipeline.format import confidence_name

Interval = tuple[float | None, float | None, float | None]
"""A value, its lower and its upper bound; None where it is not defined."""

UNKNOWN: Interval = (None, None, None)


@dataclass(frozen=True)
class RoundSummary:
    """A round and the model that it trained.

    Attributes:
        labeled_images, labeled_regions, labeled_pixels: what the round's model was trained on; for a round
            without a model yet, what has been labeled so far. What several annotators of a queue have labeled
            counts once.
        labeled_share: labeled pixels as a share of the pool's.
        clicks: estimated for the regions that were exported, and are labeled; None where there is none.
        hours: that all annotators took together, as far as their tools measured it; None where none did.
        split: the held-out split that the figures were measured on.
        mean_iou, ece_before, ece_after, error_auroc: of the configured sampler; `error_auroc` says how well
            entropy finds the wrong pixels, after calibration.
        confidence: what the model's calibrated softmax may be called.
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
    mean_iou: Interval
    ece_before: Interval
    ece_after: Interval
    error_auroc: Interval
    confidence: str


@dataclass(frozen=True)
class ModelSummary:
    """A model and its lineage."""

    name: str
    round_number: int
    status: str
    parent: str | None
    labels: int
    seed: int
    iterations: int
    config_hash: str
    labels_hash: str
    checkpoint: str
    decision: str | None
    mean_iou: Interval
    created_at: datetime


def round_history(session: Session, *, sampler: str) -> list[RoundSummary]:
    """Every round, oldest first. `sampler` names the predictions that are reported."""
    pool_pixels = _pool_pixels(session)
    rows: list[RoundSummary] = []
    for row in rounds.list_rounds(session):
        model = model_queries.round_model(session, row.id)
        labels = _labels_of(session, model.id) if model else label_queries.labels_in_force(session)
        split = _split_of(session, model.id) if model else None
        pixels = _pixels_of(session, labels)
        covered = count_covered(session, _label_ids(model))
        seconds = [label.seconds for label in labels if label.seconds is not None]

        def figure(
            name: str, *, calibrated: bool, model: Model | None = model, split: str | None = split
        ) -> Interval:
            if model is None or split is None:
                return UNKNOWN
            return _metric(
                session, model_id=model.id, split=split, sampler=sampler, calibrated=calibrated, name=name
            )

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
                mean_iou=figure("miou", calibrated=True),
                ece_before=figure("ece", calibrated=False),
                ece_after=figure("ece", calibrated=True),
                error_auroc=figure("auroc_entropy", calibrated=True),
                confidence=confidence_name(model is not None and _passed(session, model.id, sampler)),
            )
        )
    return rows


def model_history(session: Session) -> list[ModelSummary]:
    """Every model, oldest first."""
    models = session.scalars(select(Model).order_by(Model.id)).all()
    names = {model.id: model.name for model in models}
    numbers = {row.id: row.number for row in rounds.list_rounds(session)}
    rows: list[ModelSummary] = []
    for model in models:
        split = _split_of(session, model.id)
        figure = (
            _metric(session, model_id=model.id, split=split, sampler="none", calibrated=True, name="miou")
            if split
            else UNKNOWN
        )
        rows.append(
            ModelSummary(
                name=model.name,
                round_number=numbers[model.round_id],
                status=model.status,
                parent=names.get(model.parent_id) if model.parent_id else None,
                labels=len(_labels_of(session, model.id)),
                seed=model.seed,
                iterations=model.iterations,
                config_hash=model.config_hash,
                labels_hash=model.labels_hash,
                checkpoint=model.checkpoint_uri,
                decision=model.decision,
                mean_iou=figure,
                created_at=model.created_at,
            )
        )
    return rows


def _passed(session: Session, model_id: int, sampler: str) -> bool:
    """Whether the calibrator of this sampler has a passing report."""
    found = evaluations.model_calibrations(session, model_id).get(sampler)
    return found is not None and found.passed


def _pool_pixels(session: Session) -> int:
    statement = select(func.sum(Image.width * Image.height)).where(
        Image.split == "pool", Image.duplicate_of.is_(None)
    )
    return session.scalar(statement) or 0


def _labels_of(session: Session, model_id: int) -> Sequence[Label]:
    statement = select(Label).join(ModelLabel, ModelLabel.label_id == Label.id)
    return session.scalars(statement.where(ModelLabel.model_id == model_id)).all()


def _label_ids(model: Model | None) -> Select[tuple[int]]:
    """A query for the labels that a model was trained on, or, before there is one, for those in force."""
    if model is not None:
        return select(ModelLabel.label_id).where(ModelLabel.model_id == model.id)
    newest = newest_versions()
    return select(Label.id).join(newest, is_version(newest))


def _pixels_of(session: Session, labels: Sequence[Label]) -> int:
    """Labeled pixels. Where labels of one image and queue have a region in common, the largest counts."""
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
            for other in [one for one in apart if _meet(one[0], regions)]:
                apart.remove(other)
                regions, count = regions | other[0], max(count, other[1])
            apart.append((regions, count))
        pixels += sum(count for _, count in apart)
    return pixels


def _meet(these: set[CoveredRegion], those: set[CoveredRegion]) -> bool:
    """Whether a region of one side is also on the other, or lies in one that is, such as a whole image."""
    return bool(these & those) or any(
        _holds(one, other) or _holds(other, one) for one in these for other in those
    )


def _holds(outer: CoveredRegion, inner: CoveredRegion) -> bool:
    """Whether a region that fills its box holds another."""
    return (
        outer.fills_box
        and outer.x <= inner.x
        and outer.y <= inner.y
        and inner.x + inner.w <= outer.x + outer.w
        and inner.y + inner.h <= outer.y + outer.h
    )


def _split_of(session: Session, model_id: int) -> str | None:
    """`test` where the model was evaluated on it, else `calibration`, else None."""
    splits = set(session.scalars(select(Evaluation.split).where(Evaluation.model_id == model_id)))
    return next((split for split in ("test", "calibration") if split in splits), None)


def _metric(
    session: Session, *, model_id: int, split: str, sampler: str, calibrated: bool, name: str
) -> Interval:
    statement = (
        select(Metric.value, Metric.low, Metric.high)
        .join(Evaluation, Evaluation.id == Metric.evaluation_id)
        .where(
            Evaluation.model_id == model_id,
            Evaluation.split == split,
            Evaluation.sampler == sampler,
            Evaluation.calibrated == calibrated,
            Metric.name == name,
            Metric.class_index == -1,
        )
    )
    row = session.execute(statement).first()
    return (row.value, row.low, row.high) if row else UNKNOWN
