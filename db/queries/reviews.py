"""Queues of labels that the model doubts: which regions they hold, and how one is stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import delete, func, insert, select
from sqlalchemy.orm import Session

from db.tables import Queue, QueueItem


class ReviewedRegion(NamedTuple):
    """A region whose label somebody looks at, or has looked at."""

    x: int
    y: int
    w: int
    h: int
    outline: str | None


def reviewed_regions(session: Session) -> dict[int, list[ReviewedRegion]]:
    """The regions of exported reviews that wait for their answer or have it, by image id.

    Released ones do not count, nor do those of a review that was never exported.
    """
    statement = (
        select(QueueItem.image_id, QueueItem.x, QueueItem.y, QueueItem.w, QueueItem.h, QueueItem.outline)
        .join(Queue, Queue.id == QueueItem.queue_id)
        .where(
            Queue.kind == "review",
            Queue.exported_at.is_not(None),
            QueueItem.status.in_(("queued", "labeled")),
        )
        .order_by(QueueItem.id)
    )
    found: dict[int, list[ReviewedRegion]] = {}
    for image_id, x, y, w, h, outline in session.execute(statement):
        found.setdefault(image_id, []).append(ReviewedRegion(x, y, w, h, outline))
    return found


def put_review(
    session: Session,
    *,
    run_id: int | None,
    strategy: str,
    unit: str,
    spec: dict[str, Any],
    items: Sequence[dict[str, Any]],
) -> Queue:
    """Store a review, `review-01` for the first, in place of one that was never exported.

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
