"""The shards of a scoring run: planned, claimed by a worker, and written as a whole.

A shard is a range of image ids that is scored and committed together. The image scores alone show what a run
has scored, so an unfinished shard can be deleted and planned again.
Any number of workers score a run: each claims a shard, renews its lease while it scores, and writes it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, and_, case, delete, func, insert, or_, select, update
from sqlalchemy.orm import Session

from db.bulk import Columns
from db.queries.images import ImageRow
from db.queries.leases import store_time
from db.queries.paging import PAGE
from db.queries.scores import forget_scores, insert_scores
from db.tables import Image, ImageScore, Label, LabelRegion, ScoringRun, Shard

MOST_ATTEMPTS = 3
"""No worker claims a shard after so many workers died while they scored it."""


class PlannedShard(NamedTuple):
    """Image ids from `first` to `last`, both inclusive."""

    first: int
    last: int


class OpenShards(NamedTuple):
    """The numbers of shards that are not done: not claimed, and claimed by a worker."""

    pending: int
    running: int


class Worker(NamedTuple):
    """A worker's share of a run; `failed` images could not be read."""

    owner: str
    shards: int
    images: int
    regions: int
    failed: int


class ShardTime(NamedTuple):
    """When a shard was finished, and its number of images, including unreadable ones."""

    finished_at: datetime
    images: int


def plan_shards(
    session: Session, *, run_id: int, shard_images: int, dead: Collection[str] = ()
) -> OpenShards:
    """Cut the images that the run has not scored into shards of ascending ids.

    Pending shards and those of a dead or silent owner are deleted; the running shards of a living owner stay,
    and one that is being written at this moment.

    Returns:
        The shards that are open now.
    """
    session.execute(select(ScoringRun.id).where(ScoringRun.id == run_id).with_for_update())  # one planner
    free = _is_free(store_time(session), dead)
    # a locked shard is being written, and its writer may need the run: to wait could be a deadlock
    deletable = select(Shard.id).where(Shard.run_id == run_id, free).with_for_update(skip_locked=True)
    session.execute(delete(Shard).where(Shard.id.in_(deletable)))
    running = _ranges(session, run_id, Shard.status == "running")
    members: list[int] = []
    for image_id in _ids_to_score(session, run_id):
        passed = [shard for shard in running if shard.last < image_id]
        del running[: len(passed)]
        taken = bool(running) and running[0].first <= image_id
        if members and (passed or taken or len(members) == shard_images):  # no shard encloses a running one
            _put_shard(session, run_id=run_id, shard=PlannedShard(members[0], members[-1]))
            members = []
        if not taken:
            members.append(image_id)
    if members:
        _put_shard(session, run_id=run_id, shard=PlannedShard(members[0], members[-1]))
    opened = open_shards(session, run_id=run_id)
    if opened.pending or opened.running:
        session.execute(update(ScoringRun).where(ScoringRun.id == run_id).values(finished_at=None))
    return opened


def claim_shard(
    session: Session,
    *,
    run_id: int,
    owner: str,
    seconds: float,
    dead: Collection[str] = (),
    unbegun: bool = False,
) -> PlannedShard | None:
    """Claim the next shard that is pending, or whose owner is dead or silent, for `seconds`.

    Shards whose earlier workers died come last, and are not claimed after `MOST_ATTEMPTS`.

    Args:
        unbegun: claim only shards that no worker has begun.

    Returns:
        None when every shard is done, running, or has had `MOST_ATTEMPTS`.
    """
    now = store_time(session)
    statement = (
        select(Shard)
        .where(Shard.run_id == run_id, _is_free(now, dead))
        .where(Shard.attempts < (1 if unbegun else MOST_ATTEMPTS))
        .order_by(Shard.attempts, Shard.first_image_id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    shard = session.scalars(statement).one_or_none()
    if shard is None:
        return None
    shard.status, shard.owner = "running", owner
    shard.lease_until = now + timedelta(seconds=seconds)
    shard.attempts += 1
    session.flush()
    return PlannedShard(shard.first_image_id, shard.last_image_id)


def release_shards(session: Session, *, run_id: int, owner: str) -> None:
    """Release the owner's running shards; this attempt does not count."""
    of_owner = (Shard.run_id == run_id, Shard.owner == owner, Shard.status == "running")
    values = {"status": "pending", "owner": None, "lease_until": None, "attempts": Shard.attempts - 1}
    session.execute(update(Shard).where(*of_owner).values(values))


def fatal_shards(session: Session, *, run_id: int, dead: Collection[str] = ()) -> list[PlannedShard]:
    """The shards that are not claimed again because each of their workers died; by id."""
    fatal = (_is_free(store_time(session), dead), Shard.attempts >= MOST_ATTEMPTS)
    return _ranges(session, run_id, *fatal)


def replace_shard(
    session: Session,
    *,
    run_id: int,
    shard: PlannedShard,
    owner: str,
    image_ids: Sequence[int],
    images: Columns,
    regions: Columns,
) -> bool:
    """Replace the rows of a claimed shard's images, and mark the shard done.

    Args:
        image_ids: all images of the shard; those without a row in `images` count as failed.
        images: columns of `image_score`.
        regions: columns of `region_score`.

    Returns:
        False, with nothing written, if another worker has taken over the shard.
    """
    found = session.scalars(
        select(Shard)
        .where(
            Shard.run_id == run_id,
            Shard.first_image_id == shard.first,
            Shard.owner == owner,
            Shard.status == "running",
        )
        .with_for_update()
    ).one_or_none()
    if found is None:
        return False
    forget_scores(session, run_id=run_id, image_ids=image_ids)
    insert_scores(session, run_id=run_id, images=images, regions=regions)
    found.status = "done"
    found.lease_until = None
    found.scored = len(images.get("image_id", ()))
    found.regions = len(regions.get("image_id", ()))
    found.failed = len(image_ids) - found.scored
    found.finished_at = store_time(session)
    session.flush()
    return True


def open_shards(session: Session, *, run_id: int) -> OpenShards:
    """The numbers of pending and running shards."""
    statement = select(
        func.coalesce(func.sum(case((Shard.status == "pending", 1), else_=0)), 0),
        func.coalesce(func.sum(case((Shard.status == "running", 1), else_=0)), 0),
    ).where(Shard.run_id == run_id)
    return OpenShards(*map(int, session.execute(statement).one()))


def workers(session: Session, *, run_id: int, since: datetime | None = None) -> list[Worker]:
    """The workers of a run with the shards and images that each finished, most images first."""
    done = [Shard.run_id == run_id, Shard.status == "done", Shard.owner.is_not(None)]
    if since is not None:
        done.append(Shard.finished_at >= since)
    sums = (func.count(), func.sum(Shard.scored), func.sum(Shard.regions), func.sum(Shard.failed))
    rows = session.execute(select(Shard.owner, *sums).where(*done).group_by(Shard.owner))
    found = [Worker(str(owner), *map(int, counts)) for owner, *counts in rows]
    return sorted(found, key=lambda worker: (-worker.images, worker.owner))


def shards_by_status(session: Session) -> dict[int, dict[str, int]]:
    """How many shards of each run are pending, running and done, by run."""
    statement = select(Shard.run_id, Shard.status, func.count()).group_by(Shard.run_id, Shard.status)
    found: dict[int, dict[str, int]] = {}
    for run_id, status, count in session.execute(statement):
        found.setdefault(run_id, {})[status] = count
    return found


def shard_times(session: Session, *, run_id: int) -> list[ShardTime]:
    """The finished shards of a run, in the order of their end."""
    statement = (
        select(Shard.finished_at, Shard.scored + Shard.failed)
        .where(Shard.run_id == run_id, Shard.status == "done", Shard.finished_at.is_not(None))
        .order_by(Shard.finished_at)
    )
    return [ShardTime(at, images) for at, images in session.execute(statement) if at is not None]


def images_done(session: Session, *, run_id: int, since: datetime) -> int:
    """Images of the shards that any worker has finished since then, including unreadable ones."""
    statement = select(func.coalesce(func.sum(Shard.scored + Shard.failed), 0)).where(
        Shard.run_id == run_id, Shard.status == "done", Shard.finished_at >= since
    )
    return int(session.execute(statement).scalar_one())


def running_shards(session: Session) -> list[tuple[int, str, datetime]]:
    """Run, owner and latest lease end of the running shards, one entry for each run and owner."""
    statement = (
        select(Shard.run_id, Shard.owner, func.max(Shard.lease_until))
        .where(Shard.status == "running", Shard.owner.is_not(None), Shard.lease_until.is_not(None))
        .group_by(Shard.run_id, Shard.owner)
        .order_by(Shard.run_id, Shard.owner)
    )
    rows = session.execute(statement)
    return [(run_id, str(owner), until) for run_id, owner, until in rows if until is not None]


def count_to_score(session: Session, *, run_id: int) -> int:
    """The number of images that the run has not scored yet."""
    return session.scalar(select(func.count()).select_from(Image).where(_to_score(run_id))) or 0


def unscored_images(session: Session, *, run_id: int, shard: PlannedShard) -> list[ImageRow]:
    """All images of a shard that the run has not scored, by id.

    They are in the pool, are no duplicates, and have no label of the whole image.
    """
    statement = (
        select(Image.id, Image.uri, Image.width, Image.height)
        .where(_to_score(run_id), Image.id.between(shard.first, shard.last))
        .order_by(Image.id)
    )
    return [ImageRow(*row) for row in session.execute(statement)]


def is_pool_labeled(session: Session) -> bool:
    """Whether a label covers the whole of every image of the pool, so that nothing is left to score or to
    choose. False where there is no image."""
    pool = select(Image.id).where(Image.split == "pool", Image.duplicate_of.is_(None)).limit(1)
    left = select(Image.id).where(_to_score(run_id=0)).limit(1)
    return session.scalar(pool) is not None and session.scalar(left) is None


def _is_free(now: datetime, dead: Collection[str]) -> ColumnElement[bool]:
    """Whether a shard is pending, or its owner is dead or silent."""
    silent = and_(Shard.status == "running", or_(Shard.lease_until < now, Shard.owner.in_(list(dead))))
    return or_(Shard.status == "pending", silent)


def _ranges(session: Session, run_id: int, *conditions: ColumnElement[bool]) -> list[PlannedShard]:
    statement = (
        select(Shard.first_image_id, Shard.last_image_id)
        .where(Shard.run_id == run_id, *conditions)
        .order_by(Shard.first_image_id)
    )
    return [PlannedShard(*row) for row in session.execute(statement)]


def _to_score(run_id: int) -> ColumnElement[bool]:
    scored = select(ImageScore.image_id).where(ImageScore.run_id == run_id, ImageScore.image_id == Image.id)
    labeled_whole = (
        select(Label.id)
        .join(LabelRegion, LabelRegion.label_id == Label.id)
        .where(
            Label.image_id == Image.id,
            LabelRegion.x == 0,
            LabelRegion.y == 0,
            LabelRegion.w == Image.width,
            LabelRegion.h == Image.height,
            LabelRegion.outline.is_(None),
        )
    )
    return and_(
        Image.split == "pool", Image.duplicate_of.is_(None), ~scored.exists(), ~labeled_whole.exists()
    )


def _ids_to_score(session: Session, run_id: int) -> Iterator[int]:
    """The ids page by page, as no cursor may be open while shards are written through the session."""
    after = 0
    while True:
        statement = select(Image.id).where(_to_score(run_id), Image.id > after).order_by(Image.id).limit(PAGE)
        page = session.scalars(statement).all()
        yield from page
        if len(page) < PAGE:
            return
        after = page[-1]


def _put_shard(session: Session, *, run_id: int, shard: PlannedShard) -> None:
    """Store a planned shard. It replaces a finished one with the same first image, which has failed."""
    same_start = (Shard.run_id == run_id, Shard.first_image_id == shard.first)
    found = session.scalars(select(Shard.id).where(*same_start)).one_or_none()
    values: dict[str, Any] = {"last_image_id": shard.last, "status": "pending", "owner": None}
    values |= {"lease_until": None, "attempts": 0, "finished_at": None}
    if found is None:
        session.execute(insert(Shard).values(run_id=run_id, first_image_id=shard.first, **values))
    else:
        session.execute(update(Shard).where(Shard.id == found).values(**values))
