"""What queues hold, counted by the store."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.queries.labels import QueuedRegion
from db.tables import Image, Queue, QueueItem


def newest_queue(session: Session) -> Queue | None:
    """The queue that was made last; what the project started with is none."""
    statement = select(Queue).where(Queue.kind != "initial").order_by(Queue.id.desc()).limit(1)
    return session.scalars(statement).one_or_none()


def queue_head(session: Session, queue_id: int, *, limit: int) -> list[QueuedRegion]:
    """The first items of a queue with their images, by rank."""
    statement = (
        select(QueueItem, Image)
        .join(Image, Image.id == QueueItem.image_id)
        .where(QueueItem.queue_id == queue_id)
        .order_by(QueueItem.rank)
        .limit(limit)
    )
    return [QueuedRegion(item, image) for item, image in session.execute(statement)]


def count_by_slice(session: Session, queue_id: int) -> dict[str, int]:
    """Items of a queue by slice, most first."""
    statement = (
        select(QueueItem.slice, func.count())
        .where(QueueItem.queue_id == queue_id)
        .group_by(QueueItem.slice)
        .order_by(func.count().desc(), QueueItem.slice)
    )
    return dict(session.execute(statement).tuples().all())


def count_by_class(session: Session, queue_id: int) -> dict[int | None, int]:
    """Items of a queue by predicted class, most first; None where nothing was predicted."""
    statement = (
        select(QueueItem.predicted_class, func.count())
        .where(QueueItem.queue_id == queue_id)
        .group_by(QueueItem.predicted_class)
        .order_by(func.count().desc(), QueueItem.predicted_class)
    )
    return dict(session.execute(statement).tuples().all())


def count_clicks(session: Session, queue_id: int) -> float | None:
    """Estimated clicks of a queue's items together; None where none is known."""
    return session.scalar(select(func.sum(QueueItem.clicks)).where(QueueItem.queue_id == queue_id))
