"""Scoring runs: created, finished and read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from db.partitions import add_partitions, analyze_partitions
from db.tables import Model, ScoringRun, utc_now


class RunRow(NamedTuple):
    """A scoring run and the name of its model."""

    run: ScoringRun
    model: str


def open_run(session: Session, *, model_id: int, scorer_hash: str, scorer: dict[str, Any]) -> ScoringRun:
    """The run of this scorer that is not pruned; a new one if there is none."""
    alive = (ScoringRun.scorer_hash == scorer_hash, ScoringRun.pruned_at.is_(None))
    statement = select(ScoringRun).where(*alive).with_for_update()
    row = session.scalars(statement).one_or_none()
    if row is None:
        try:
            with session.begin_nested():
                row = ScoringRun(model_id=model_id, scorer_hash=scorer_hash, scorer=scorer)
                session.add(row)
        except IntegrityError:
            row = session.scalars(statement).one_or_none()
            if row is None:  # no other process has created the run
                raise
    add_partitions(session, run_id=row.id)
    return row


def finish_run(session: Session, *, run_id: int) -> None:
    """Mark a run as finished: it has scored every readable image."""
    session.execute(update(ScoringRun).where(ScoringRun.id == run_id).values(finished_at=utc_now()))
    analyze_partitions(session, run_id=run_id)


def lock_summary(session: Session, run_id: int) -> dict[str, Any]:
    """A run's summary, which no other transaction can change before this one ends."""
    statement = select(ScoringRun).where(ScoringRun.id == run_id).with_for_update()
    # populate_existing: the session may have the row as it was before the lock
    run = session.scalars(statement, execution_options={"populate_existing": True}).one()
    return run.summary or {}


def update_summary(session: Session, run_id: int, **parts: Any) -> None:
    """Replace parts of a run's summary, by name; the other parts stay as they are.

    To change a part that depends on its former value, read it with `lock_summary` in the same transaction.
    """
    summary = {**lock_summary(session, run_id), **parts}
    session.execute(update(ScoringRun).where(ScoringRun.id == run_id).values(summary=summary))


def list_runs(session: Session) -> list[RunRow]:
    """Every scoring run, oldest first."""
    statement = select(ScoringRun, Model.name).join(Model, Model.id == ScoringRun.model_id)
    return [RunRow(run, name) for run, name in session.execute(statement.order_by(ScoringRun.id))]


def newest_run(
    session: Session,
    model_id: int | None,
    *,
    finished: bool,
    settings: Mapping[str, Any] | None = None,
    other_than: int | None = None,
) -> ScoringRun | None:
    """The newest run of a model, by its end, or by its beginning while it is not finished.

    Pruned runs are left out.

    Args:
        model_id: None for the runs of every model.
        finished: only finished runs; a run that continues for new images is not finished.
        settings: None is returned if the scorer of the newest run has other values than these.
        other_than: a run that is left out.
    """
    at = func.coalesce(ScoringRun.finished_at, ScoringRun.created_at)
    statement = select(ScoringRun).where(ScoringRun.pruned_at.is_(None))
    if model_id is not None:
        statement = statement.where(ScoringRun.model_id == model_id)
    if finished:
        statement = statement.where(ScoringRun.finished_at.is_not(None))
    if other_than is not None:
        statement = statement.where(ScoringRun.id != other_than)
    run = session.scalars(statement.order_by(at.desc(), ScoringRun.id.desc()).limit(1)).first()
    if run is None or not (settings or {}).items() <= run.scorer.items():
        return None
    return run
