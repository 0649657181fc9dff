"""Pruning of scoring runs, and the runs that are still needed.

A run is pruned in one transaction, which marks its row and deletes its shards; no query finds it afterwards.
Its scores are deleted later: on PostgreSQL with its partitions, on SQLite in parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.orm import Session

from db.partitions import detach_partitions, drop_detached
from db.queries.leases import store_time
from db.queries.models import promoted_model
from db.queries.rounds import current_round
from db.queries.runs import newest_run
from db.tables import ImageScore, Model, Queue, QueueItem, RegionScore, ScoringRun, Shard, utc_now


class RunSize(NamedTuple):
    """A run and its numbers of scored images and regions."""

    run_id: int
    model: str
    images: int
    regions: int


def runs_by_age(session: Session) -> list[int]:
    """The runs that have scores, newest first, by their end, or by their beginning while not finished."""
    at = func.coalesce(ScoringRun.finished_at, ScoringRun.created_at)
    statement = select(ScoringRun.id).where(ScoringRun.pruned_at.is_(None))
    return list(session.scalars(statement.order_by(at.desc(), ScoringRun.id.desc())))


def needed_runs(session: Session) -> dict[int, str]:
    """The runs that will still be read or written, and why."""
    needed: dict[int, str] = {}
    model = promoted_model(session)
    if model is not None:
        unfinished = (
            ScoringRun.model_id == model.id,
            ScoringRun.finished_at.is_(None),
            ScoringRun.pruned_at.is_(None),
        )
        for run_id in session.scalars(select(ScoringRun.id).where(*unfinished)):
            needed[run_id] = f"{model.name}, which serves, is still scoring it"
        finished = newest_run(session, model.id, finished=True)
        if finished is not None:
            needed[finished.id] = f"the scores of {model.name}, which serves"
    current = current_round(session)
    open_items = select(QueueItem.id).where(QueueItem.queue_id == Queue.id, QueueItem.status == "queued")
    is_current = Queue.round_id == (None if current is None else current.id)
    of_queue = select(Queue.run_id, Queue.name).where(
        Queue.run_id.is_not(None), or_(is_current, Queue.round_id.is_(None) & open_items.exists())
    )
    for run_id, name in session.execute(of_queue):
        if run_id is not None:
            needed.setdefault(run_id, f"queue {name} was selected from it")
    leased = (Shard.status == "running", Shard.lease_until > store_time(session))
    for run_id in session.scalars(select(Shard.run_id).where(*leased).distinct()):
        needed.setdefault(run_id, "a worker is scoring it")
    return needed


def run_size(session: Session, *, run_id: int) -> RunSize:
    """The size of a run; reads each of its image scores."""
    model = session.scalars(
        select(Model.name).join(ScoringRun, ScoringRun.model_id == Model.id).where(ScoringRun.id == run_id)
    ).one()
    counted = select(func.count(), func.coalesce(func.sum(ImageScore.regions), 0))
    images, regions = session.execute(counted.where(ImageScore.run_id == run_id)).one()
    return RunSize(run_id, model, images, int(regions))


def prune_run(session: Session, *, run_id: int, patience: float) -> bool:
    """Prune a run.

    Args:
        patience: seconds to wait on PostgreSQL for transactions that read or write scores.

    Returns:
        False, with nothing done, if the run is needed again, or already pruned.

    Raises:
        OperationalError: the wait was longer than `patience`.
    """
    alive = (ScoringRun.id == run_id, ScoringRun.pruned_at.is_(None))
    if session.scalars(select(ScoringRun.id).where(*alive).with_for_update()).one_or_none() is None:
        return False
    if run_id in needed_runs(session):
        return False
    session.execute(delete(Shard).where(Shard.run_id == run_id))
    session.execute(
        update(ScoringRun).where(ScoringRun.id == run_id).values(pruned_at=utc_now(), finished_at=None)
    )
    detach_partitions(session, run_id=run_id, patience=patience)
    return True


def pruned_runs(session: Session) -> Sequence[int]:
    """The runs that are pruned, by id."""
    return session.scalars(
        select(ScoringRun.id).where(ScoringRun.pruned_at.is_not(None)).order_by(ScoringRun.id)
    ).all()


def delete_pruned_rows(session: Session, *, run_id: int, rows: int) -> bool:
    """Delete about `rows` remaining rows of a pruned run, by image; on PostgreSQL, all of them.

    Returns:
        Whether there were any.
    """
    if session.get_bind().dialect.name == "postgresql":
        return drop_detached(session, run_id=run_id)
    for table in (RegionScore, ImageScore):
        first = select(table.image_id).where(table.run_id == run_id).order_by(table.image_id).limit(rows)
        last = session.scalar(select(func.max(first.subquery().c.image_id)))
        if last is not None:
            session.execute(delete(table).where(table.run_id == run_id, table.image_id <= last))
            return True
    return False
