"""What the scoring runs have come to, for people who look: nothing here is needed to score."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.tables import ImageScore, Lease, Model, ScoringRun, Shard


class RunRow(NamedTuple):
    """A scoring run and the name of its model."""

    run: ScoringRun
    model: str


class Scored(NamedTuple):
    """Rows that a run has in the score tables."""

    images: int
    regions: int
    heatmaps: int
    """Images that have heat maps."""


class ShardTime(NamedTuple):
    """When a shard was done, and how many images it held; unreadable files count."""

    finished_at: datetime
    images: int


def list_runs(session: Session) -> list[RunRow]:
    """Every scoring run, oldest first."""
    statement = select(ScoringRun, Model.name).join(Model, Model.id == ScoringRun.model_id)
    return [RunRow(run, name) for run, name in session.execute(statement.order_by(ScoringRun.id))]


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


def scored_rows(session: Session) -> dict[int, Scored]:
    """What each run has scored, by run; runs without a row are left out. Reads every image score."""
    statement = select(
        ImageScore.run_id, func.count(), func.sum(ImageScore.regions), func.count(ImageScore.heatmaps)
    ).group_by(ImageScore.run_id)
    return {
        run_id: Scored(images, int(regions), heatmaps)
        for run_id, images, regions, heatmaps in session.execute(statement)
    }


def shards_by_status(session: Session) -> dict[int, dict[str, int]]:
    """How many shards of each run are pending, running and done, by run."""
    statement = select(Shard.run_id, Shard.status, func.count()).group_by(Shard.run_id, Shard.status)
    found: dict[int, dict[str, int]] = {}
    for run_id, status, count in session.execute(statement):
        found.setdefault(run_id, {})[status] = count
    return found


def shard_times(session: Session, *, run_id: int) -> list[ShardTime]:
    """The shards of a run that are done, in the order in which they were."""
    statement = (
        select(Shard.finished_at, Shard.scored + Shard.failed)
        .where(Shard.run_id == run_id, Shard.status == "done", Shard.finished_at.is_not(None))
        .order_by(Shard.finished_at)
    )
    return [ShardTime(at, images) for at, images in session.execute(statement) if at is not None]


def images_done(session: Session, *, run_id: int, since: datetime) -> int:
    """Images of the shards that were finished since then, by whomever; unreadable files count."""
    statement = select(func.coalesce(func.sum(Shard.scored + Shard.failed), 0)).where(
        Shard.run_id == run_id, Shard.status == "done", Shard.finished_at >= since
    )
    return int(session.execute(statement).scalar_one())


def list_leases(session: Session) -> list[Lease]:
    """Who is at which piece of work, or died at it; longest first."""
    return list(session.scalars(select(Lease).order_by(Lease.taken_at, Lease.name)))


def running_shards(session: Session) -> list[tuple[int, str, datetime]]:
    """Who is at shards of which run, and until when the longest of their leases lasts."""
    statement = (
        select(Shard.run_id, Shard.owner, func.max(Shard.lease_until))
        .where(Shard.status == "running", Shard.owner.is_not(None), Shard.lease_until.is_not(None))
        .group_by(Shard.run_id, Shard.owner)
        .order_by(Shard.run_id, Shard.owner)
    )
    rows = session.execute(statement)
    return [(run_id, str(owner), until) for run_id, owner, until in rows if until is not None]
