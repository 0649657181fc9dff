"""Scoring runs: opened, finished, and found again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from db.partitions import add_partitions, analyze_partitions
from db.tables import Model, ScoringRun, utc_now


class RunRow(NamedTuple):
    """A scoring run and the name of its model."""

    run: ScoringRun
    model: str


def open_run(session: Session, *, model_id: int, scorer_hash: str, scorer: dict[str, Any]) -> ScoringRun:
    """The run of this scorer, made when there is none, or when the one that there was is pruned."""
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
            if row is None:  # nobody else was first
                raise
    add_partitions(session, run_id=row.id)
    return row


def finish_run(session: Session, *, run_id: int) -> None:
    """Say that the run has scored all that it could."""
    session.execute(update(ScoringRun).where(ScoringRun.id == run_id).values(finished_at=utc_now()))
    analyze_partitions(session, run_id=run_id)


def update_summary(session: Session, run_id: int, **parts: Any) -> dict[str, Any]:
    """Put parts of a run's summary in their places, by name; the other parts stay as they are.

    Returns:
        The whole summary.
    """
    statement = select(ScoringRun).where(ScoringRun.id == run_id).with_for_update()
    run = session.scalars(statement).one()
    summary = {**(run.summary or {}), **parts}
    run.summary = summary
    session.flush()
    return summary


def list_runs(session: Session) -> list[RunRow]:
    """Every scoring run, oldest first."""
    statement = select(ScoringRun, Model.name).join(Model, Model.id == ScoringRun.model_id)
    return [RunRow(run, name) for run, name in session.execute(statement.order_by(ScoringRun.id))]


def model_runs(session: Session, *, model_id: int) -> Sequence[ScoringRun]:
    """The scoring runs of a model, newest first."""
    statement = select(ScoringRun).where(ScoringRun.model_id == model_id).order_by(ScoringRun.id.desc())
    return session.scalars(statement).all()


def newest_run(session: Session) -> ScoringRun | None:
    """The run that was worked at last: one that is not finished, or else the one finished last; none that
    was pruned."""
    statement = (
        select(ScoringRun)
        .where(ScoringRun.pruned_at.is_(None))
        .order_by(ScoringRun.finished_at.is_not(None), ScoringRun.finished_at.desc(), ScoringRun.id.desc())
        .limit(1)
    )
    return session.scalars(statement).one_or_none()


def finished_run(session: Session) -> ScoringRun | None:
    """The newest finished scoring run of the newest promoted model."""
    serving = select(Model.id).where(Model.status == "promoted").order_by(Model.id.desc()).limit(1)
    statement = (
        select(ScoringRun)
        .where(ScoringRun.model_id == serving.scalar_subquery(), ScoringRun.finished_at.is_not(None))
        .order_by(ScoringRun.finished_at.desc(), ScoringRun.id.desc())
        .limit(1)
    )
    return session.scalars(statement).first()


def last_other_run(session: Session, run_id: int) -> ScoringRun | None:
    """The run that was finished last, besides this one."""
    statement = (
        select(ScoringRun)
        .where(ScoringRun.id != run_id, ScoringRun.finished_at.is_not(None))
        .order_by(ScoringRun.finished_at.desc(), ScoringRun.id.desc())
        .limit(1)
    )
    return session.scalars(statement).one_or_none()
