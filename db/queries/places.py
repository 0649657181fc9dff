"""Where queues lie: in exported folders (their `url` is empty), and on labeling servers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from db.tables import QueuePlace, utc_now


def record_place(session: Session, *, queue_id: int, tool: str, url: str, place: str) -> None:
    """Remember that a queue lies somewhere; if it is known, that it was sent there again."""
    statement = select(QueuePlace).where(
        QueuePlace.queue_id == queue_id,
        QueuePlace.tool == tool,
        QueuePlace.url == url,
        QueuePlace.place == place,
    )
    known = session.scalars(statement).first()
    if known is None:
        session.add(QueuePlace(queue_id=queue_id, tool=tool, url=url, place=place))
    else:
        known.pushed_at = utc_now()
    session.flush()


def places_of(session: Session, queue_id: int) -> Sequence[QueuePlace]:
    """Every place of a queue, oldest first."""
    return session.scalars(
        select(QueuePlace).where(QueuePlace.queue_id == queue_id).order_by(QueuePlace.id)
    ).all()


def places_on(session: Session, *, tool: str, url: str) -> Sequence[QueuePlace]:
    """Every place on one server, newest first."""
    statement = select(QueuePlace).where(QueuePlace.tool == tool, QueuePlace.url == url)
    return session.scalars(statement.order_by(QueuePlace.id.desc())).all()


def forget_places(session: Session, place_ids: Collection[int]) -> None:
    """Forget places that the server does not have any more."""
    session.execute(delete(QueuePlace).where(QueuePlace.id.in_(place_ids)))


def mark_pulled(session: Session, *, queue_id: int, tool: str, url: str, until: datetime) -> None:
    """Remember up to which time of the server a queue's work has been imported."""
    for place in places_of(session, queue_id):
        if (place.tool, place.url) == (tool, url):
            place.pulled_until = until
    session.flush()
