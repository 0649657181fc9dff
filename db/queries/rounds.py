"""Reading and moving rounds."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.tables import Model, Queue, QueueItem, Round


def current_round(session: Session) -> Round | None:
    """The round with the highest number, or None before the first."""
    return session.scalars(select(Round).order_by(Round.number.desc()).limit(1)).first()


def list_rounds(session: Session) -> Sequence[Round]:
    """All rounds, oldest first."""
    return session.scalars(select(Round).order_by(Round.number)).all()


def open_round(session: Session, *, number: int, state: str) -> Round:
    """A new round."""
    row = Round(number=number, state=state)
    session.add(row)
    session.flush()
    return row


def round_model(session: Session, round_id: int) -> Model | None:
    """The model that was trained in a round."""
    return session.scalars(select(Model).where(Model.round_id == round_id)).first()


def promoted_model(session: Session) -> Model | None:
    """The model that scores: the newest promoted one."""
    statement = select(Model).where(Model.status == "promoted").order_by(Model.id.desc()).limit(1)
    return session.scalars(statement).first()


def round_queue(session: Session, round_id: int) -> Queue | None:
    """The queue that was selected in a round."""
    return session.scalars(select(Queue).where(Queue.round_id == round_id)).first()


def count_items(session: Session, queue_id: int) -> dict[str, int]:
    """Queue items by status."""
    statement = (
        select(QueueItem.status, func.count())
        .where(QueueItem.queue_id == queue_id)
        .group_by(QueueItem.status)
    )
    return dict(session.execute(statement).tuples().all())
