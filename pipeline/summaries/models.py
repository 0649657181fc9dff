"""Each model with its provenance and its quality: the rows of `segcurate models`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.queries import evaluations, models, rounds
from db.queries.evaluations import MetricKey
from db.tables import Evaluation
from pipeline.evaluation.confidence import Confidence, confidence_of
from pipeline.evaluation.estimate import Estimate, from_json
from pipeline.format import split_name
from pipeline.summaries.classes import UNDEFINED, ClassFigures, class_figures


@dataclass(frozen=True)
class ModelSummary:
    """A model and its provenance; hashes in full.

    Attributes:
        promotion: the comparison behind the decision, see `pipeline.steps.promotion.Decision`; None where
            there was none.
        split_version: of the split: the newest that the model was measured on. Figures on two versions are
            not comparable.
        mean_iou, classes: of the calibrated single pass on `split`, over so many `images` in `units`
            independent units.
        sampler: whose softmax `confidence` names.
        confidence: the name of its calibrated softmax.
        confidence_reason: why it is no probability; None for one.
    """

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
    checkpoint_sha256: str | None
    decision: str | None
    promotion: dict[str, Any] | None
    split: str | None
    split_version: int | None
    images: int | None
    units: int | None
    mean_iou: Estimate
    classes: tuple[ClassFigures, ...]
    sampler: str
    confidence: str
    confidence_reason: str | None
    created_at: datetime

    @property
    def measured_on(self) -> str | None:
        """The split with its version; None without an evaluation."""
        return self.split and split_name(self.split, self.split_version or 1)


def model_confidence(session: Session, model_id: int | None, *, sampler: str) -> Confidence:
    """What the calibrated softmax of a model and a sampler is called."""
    stored = {} if model_id is None else evaluations.model_calibrations(session, model_id)
    found = stored.get(sampler)
    return confidence_of(False, None) if found is None else confidence_of(found.passed, found.report)


def model_history(session: Session, *, class_names: Sequence[str], sampler: str) -> list[ModelSummary]:
    """Every model, oldest first; `confidence` is that of the sampler."""
    stored = models.list_models(session)
    names = {model.id: model.name for model in stored}
    numbers = {row.id: row.number for row in rounds.list_rounds(session)}
    rows: list[ModelSummary] = []
    for model in stored:
        split = evaluated_split(session, model.id)
        key = {"split": split or "", "sampler": "none", "calibrated": True}
        measured = evaluations.evaluation_of(session, model_id=model.id, **key)
        known = estimates(session, model.id, **key)
        confidence = model_confidence(session, model.id, sampler=sampler)
        rows.append(
            ModelSummary(
                name=model.name,
                round_number=numbers[model.round_id],
                status=model.status,
                parent=names.get(model.parent_id) if model.parent_id else None,
                labels=len(models.model_labels(session, model.id)),
                seed=model.seed,
                iterations=model.iterations,
                config_hash=model.config_hash,
                labels_hash=model.labels_hash,
                checkpoint=model.checkpoint_uri,
                checkpoint_sha256=model.checkpoint_sha256,
                decision=model.decision,
                promotion=measured.curves.get("promotion") if measured else None,
                split=split,
                split_version=measured.split_version if measured else None,
                images=measured.images if measured else None,
                units=measured.blocks if measured else None,
                sampler=sampler,
                confidence=confidence.name,
                confidence_reason=confidence.reason,
                mean_iou=known.get(("miou", -1), UNDEFINED),
                classes=class_figures(known, class_names),
                created_at=model.created_at,
            )
        )
    return rows


def evaluated_split(session: Session, model_id: int) -> str | None:
    """`test` where the model was evaluated on it, else `calibration`, else None."""
    splits = set(session.scalars(select(Evaluation.split).where(Evaluation.model_id == model_id)))
    return next((split for split in ("test", "calibration") if split in splits), None)


def estimates(
    session: Session, model_id: int, *, split: str, sampler: str, calibrated: bool
) -> dict[MetricKey, Estimate]:
    """Every stored metric of one evaluation by name and class, with its interval; empty without one."""
    rows = evaluations.metrics_of(
        session, model_id=model_id, split=split, sampler=sampler, calibrated=calibrated
    )
    return {key: Estimate(*map(from_json, (row.value, row.low, row.high))) for key, row in rows.items()}
