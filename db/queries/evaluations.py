"""The results on a model: calibrations, evaluations with their metrics, and assessments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from sqlalchemy import Select, delete, func, select
from sqlalchemy.orm import Session, aliased

from db.tables import Assessment, Calibration, Evaluation, Metric, utc_now

MetricKey = tuple[str, int]
"""Name and class index; −1 for a number over all classes."""

Kind = Literal["quality", "stress", "novelty"]


class Interval(NamedTuple):
    """A value and its interval; None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None


def put_calibration(session: Session, *, model_id: int, sampler: str, **columns: Any) -> Calibration:
    """Store the calibration of a model and a sampler, in place of an earlier one.

    Args:
        columns: the other columns of `calibration`; no report and not passed by default.
    """
    row = session.scalars(select(Calibration).filter_by(model_id=model_id, sampler=sampler)).one_or_none()
    if row is None:
        row = Calibration(model_id=model_id, sampler=sampler)
        session.add(row)
    for name, value in {"report": None, "passed": False, **columns, "created_at": utc_now()}.items():
        setattr(row, name, value)
    session.flush()
    return row


def model_calibrations(session: Session, model_id: int) -> dict[str, Calibration]:
    """A model's calibrations by sampler."""
    rows = session.scalars(select(Calibration).where(Calibration.model_id == model_id))
    return {row.sampler: row for row in rows}


def contradict_calibration(calibration: Calibration, reason: str | None) -> None:
    """Store why the test split contradicts a calibration, so that it has not passed; None where it does not,
    so that the calibration's own report decides again. One that has nothing fitted stays as it is."""
    report = calibration.report
    if report is None:
        return
    earlier = report.get("contradiction") is not None
    passed = report["reason"] is None if "reason" in report else calibration.passed or earlier
    calibration.passed = passed and reason is None
    calibration.report = {**report, "contradiction": reason}


def clear_evaluations(session: Session, model_id: int, *, versions: Mapping[str, int]) -> None:
    """Delete a model's evaluations on these versions of the splits, and their metrics."""
    for split, version in versions.items():
        session.execute(
            delete(Evaluation).where(
                Evaluation.model_id == model_id,
                Evaluation.split == split,
                Evaluation.split_version == version,
            )
        )


def add_evaluation(
    session: Session,
    *,
    model_id: int,
    split: str,
    sampler: str,
    calibrated: bool,
    images: int,
    blocks: int,
    curves: dict[str, Any],
    metrics: Mapping[MetricKey, Interval],
    split_version: int = 1,
) -> Evaluation:
    """A new evaluation with its metrics."""
    row = Evaluation(
        model_id=model_id,
        split=split,
        split_version=split_version,
        sampler=sampler,
        calibrated=calibrated,
        images=images,
        blocks=blocks,
        curves=curves,
    )
    session.add(row)
    session.flush()
    session.add_all(
        Metric(evaluation_id=row.id, name=name, class_index=class_index, **interval._asdict())
        for (name, class_index), interval in metrics.items()
    )
    session.flush()
    return row


def evaluation_of(
    session: Session, *, model_id: int, split: str, sampler: str, calibrated: bool, version: int | None = None
) -> Evaluation | None:
    """One evaluation, with its curves; by default that on the newest version of the split on which the model
    was measured."""
    statement = _newest(version).filter_by(
        model_id=model_id, split=split, sampler=sampler, calibrated=calibrated
    )
    return session.scalars(statement).one_or_none()


def model_evaluations(session: Session, model_id: int) -> Sequence[Evaluation]:
    """The evaluations of a model on the newest version of each split on which it was measured: test before
    calibration split, uncalibrated before calibrated."""
    statement = (
        _newest(None)
        .where(Evaluation.model_id == model_id)
        .order_by(Evaluation.split.desc(), Evaluation.sampler.desc(), Evaluation.calibrated)
    )
    return session.scalars(statement).all()


def metrics_of(
    session: Session, *, model_id: int, split: str, sampler: str, calibrated: bool
) -> dict[MetricKey, Metric]:
    """The metrics of `evaluation_of`; empty where there is none."""
    found = evaluation_of(session, model_id=model_id, split=split, sampler=sampler, calibrated=calibrated)
    if found is None:
        return {}
    rows = session.scalars(select(Metric).where(Metric.evaluation_id == found.id))
    return {(row.name, row.class_index): row for row in rows}


def _newest(version: int | None) -> Select[tuple[Evaluation]]:
    """The evaluations on one version of their split; by default the newest that each model has."""
    other = aliased(Evaluation)
    newest = (
        select(func.max(other.split_version))
        .where(other.model_id == Evaluation.model_id, other.split == Evaluation.split)
        .scalar_subquery()
    )
    return select(Evaluation).where(Evaluation.split_version == (newest if version is None else version))


def put_assessment(session: Session, *, model_id: int, kind: Kind, document: dict[str, Any]) -> Assessment:
    """Store a document in place of an earlier one."""
    row = assessment_of(session, model_id=model_id, kind=kind)
    if row is None:
        row = Assessment(model_id=model_id, kind=kind, document=document)
        session.add(row)
    row.document = document
    row.created_at = utc_now()
    session.flush()
    return row


def assessment_of(session: Session, *, model_id: int, kind: Kind) -> Assessment | None:
    """The assessment of one kind; None before it was computed."""
    return session.scalars(
        select(Assessment).where(Assessment.model_id == model_id, Assessment.kind == kind)
    ).one_or_none()
