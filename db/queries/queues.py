"""Queues and their places: exported folders (their `url` is empty), and jobs on labeling servers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from string import ascii_lowercase
from typing import Any

from sqlalchemy import delete, func, insert, select
from sqlalchemy.orm import Session

from db.tables import Queue, QueueItem, QueuePlace, Round, utc_now


def list_queues(session: Session) -> Sequence[Queue]:
    """All queues, oldest first."""
    return session.scalars(select(Queue).order_by(Queue.id)).all()


def queue_by_name(session: Session, name: str) -> Queue | None:
    """The queue of that name, such as `round-01`."""
    return session.scalars(select(Queue).where(Queue.name == name)).first()


def newest_queue(session: Session) -> Queue | None:
    """The newest queue; the queue of the first labels is left out."""
    statement = select(Queue).where(Queue.kind != "initial").order_by(Queue.id.desc()).limit(1)
    return session.scalars(statement).one_or_none()


def initial_queue(session: Session) -> Queue | None:
    """The queue of the first labels of the project."""
    return session.scalars(select(Queue).where(Queue.kind == "initial")).first()


def round_queue(session: Session, round_id: int) -> Queue | None:
    """The queue that was selected in a round. A withdrawn queue or a review has no round."""
    return session.scalars(select(Queue).where(Queue.round_id == round_id)).first()


def current_queue(session: Session) -> Queue | None:
    """The queue of the current round, which has one once its regions are selected."""
    current = select(Round.id).order_by(Round.number.desc()).limit(1).scalar_subquery()
    return session.scalars(select(Queue).where(Queue.round_id == current)).first()


def newest_round_queue(session: Session) -> Queue | None:
    """The queue of the current round, or of the newest round before it that has one."""
    of_rounds = select(Queue).join(Round, Round.id == Queue.round_id)
    return session.scalars(of_rounds.order_by(Round.number.desc()).limit(1)).first()


def withdrawn_queues(session: Session, *, number: int) -> Sequence[Queue]:
    """The queues of a round that were withdrawn, oldest first; they keep only its number, in their names."""
    first = f"round-{number:02d}"
    withdrawn = (Queue.kind == "selected", Queue.round_id.is_(None))
    named = (Queue.name == first) | Queue.name.startswith(f"{first}-", autoescape=True)
    return session.scalars(select(Queue).where(*withdrawn, named).order_by(Queue.id)).all()


def free_queue_name(session: Session, *, number: int, round_id: int) -> str:
    """The name of a round's next queue: `round-03`, or `round-03-b` after one that was withdrawn.

    The round's draft keeps its name.
    """
    first = f"round-{number:02d}"
    taken = set(
        session.scalars(
            select(Queue.name).where(
                Queue.name.startswith(first, autoescape=True),
                Queue.round_id.is_distinct_from(round_id) | Queue.exported_at.is_not(None),
            )
        )
    )
    names = [first, *(f"{first}-{letter}" for letter in ascii_lowercase[1:])]
    names += [f"{first}-{index}" for index in range(len(names) + 1, len(taken) + len(names) + 2)]
    return next(name for name in names if name not in taken)


def drop_draft(session: Session, round_id: int) -> None:
    """Delete a round's queue that was not exported, if it has one."""
    draft = select(Queue.id).where(Queue.round_id == round_id, Queue.exported_at.is_(None))
    session.execute(delete(QueueItem).where(QueueItem.queue_id.in_(draft)))
    session.execute(delete(Queue).where(Queue.id.in_(draft)))


def replace_draft(session: Session, queue: Queue, items: Sequence[QueueItem]) -> Queue:
    """Store a round's queue and its items in place of the draft that the round may have.

    Args:
        queue: a new row with its `round_id`.
        items: new rows, without `queue_id`.
    """
    if queue.round_id is not None:
        drop_draft(session, queue.round_id)
    session.add(queue)
    session.flush()
    for item in items:
        item.queue_id = queue.id
    session.add_all(items)
    return queue


def put_review(
    session: Session,
    *,
    run_id: int | None,
    strategy: str,
    unit: str,
    spec: dict[str, Any],
    items: Sequence[dict[str, Any]],
) -> Queue:
    """Store a review, named `review-01` and so on, in place of one that was not exported.

    Args:
        items: the columns of each `queue_item`, without `queue_id`.
    """
    draft = select(Queue.id).where(Queue.kind == "review", Queue.exported_at.is_(None))
    session.execute(delete(QueueItem).where(QueueItem.queue_id.in_(draft)))
    session.execute(delete(Queue).where(Queue.kind == "review", Queue.exported_at.is_(None)))
    number = 1 + (session.scalar(select(func.count()).where(Queue.kind == "review")) or 0)
    queue = Queue(
        name=f"review-{number:02d}",
        kind="review",
        run_id=run_id,
        strategy=strategy,
        unit=unit,
        seed=0,
        spec=spec,
    )
    session.add(queue)
    session.flush()
    session.execute(insert(QueueItem), [{**item, "queue_id": queue.id} for item in items])
    return queue


def held_out_queues(session: Session) -> Sequence[Queue]:
    """The queues of held-out images, oldest first."""
    return session.scalars(select(Queue).where(Queue.kind == "held_out").order_by(Queue.id)).all()


def put_held_out(
    session: Session, *, name: str, seed: int, spec: dict[str, Any], items: Sequence[dict[str, Any]]
) -> Queue:
    """Store a queue of held-out images.

    Args:
        items: the columns of each `queue_item`, without `queue_id`.
    """
    queue = Queue(name=name, kind="held_out", strategy="random", unit="image", seed=seed, spec=spec)
    session.add(queue)
    session.flush()
    session.execute(insert(QueueItem), [{**item, "queue_id": queue.id} for item in items])
    return queue


def delete_queue(session: Session, queue_id: int) -> None:
    """Delete a queue that was not exported, and its items."""
    session.execute(delete(QueueItem).where(QueueItem.queue_id == queue_id))
    session.execute(delete(Queue).where(Queue.id == queue_id))


def record_place(session: Session, *, queue_id: int, tool: str, url: str, place: str) -> None:
    """Record that a queue was exported or pushed to a place, now; a known place gets a new `pushed_at`."""
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


def places_of(
    session: Session, queue_id: int, *, tool: str | None = None, url: str | None = None
) -> Sequence[QueuePlace]:
    """The places of a queue, oldest first: all of them, or those of one tool at one URL."""
    statement = select(QueuePlace).where(QueuePlace.queue_id == queue_id)
    if tool is not None:
        statement = statement.where(QueuePlace.tool == tool, QueuePlace.url == url)
    return session.scalars(statement.order_by(QueuePlace.id)).all()


def places_on(session: Session, *, tool: str, url: str) -> Sequence[QueuePlace]:
    """Every place on one server, newest first."""
    statement = select(QueuePlace).where(QueuePlace.tool == tool, QueuePlace.url == url)
    return session.scalars(statement.order_by(QueuePlace.id.desc())).all()


def forget_places(session: Session, place_ids: Collection[int]) -> None:
    """Delete places that are no longer on the server."""
    session.execute(delete(QueuePlace).where(QueuePlace.id.in_(place_ids)))


def mark_pulled(session: Session, *, queue_id: int, tool: str, url: str, until: datetime) -> None:
    """Record the server's time up to which the labels of a queue are imported."""
    for place in places_of(session, queue_id, tool=tool, url=url):
        place.pulled_until = until
    session.flush()
