"""Queues, their items, and the regions that are queued or labeled already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from sqlalchemy import ColumnElement, delete, insert, select, union, update
from sqlalchemy.orm import Session

from db.queries.in_force import is_version, newest_versions
from db.tables import Image, Label, LabelRegion, Queue, QueueItem


def list_queues(session: Session) -> Sequence[Queue]:
    """All queues, oldest first."""
    return session.scalars(select(Queue).order_by(Queue.id)).all()


def queue_by_name(session: Session, name: str) -> Queue | None:
    """The queue of that name, such as `round-01`."""
    return session.scalars(select(Queue).where(Queue.name == name)).first()


def queue_items(session: Session, queue_id: int, *, status: str | None = None) -> Sequence[QueueItem]:
    """The items of a queue by rank; with `status`, only those."""
    statement = select(QueueItem).where(QueueItem.queue_id == queue_id).order_by(QueueItem.rank)
    if status is not None:
        statement = statement.where(QueueItem.status == status)
    return session.scalars(statement).all()


def item_statuses(session: Session, queue_id: int) -> dict[int, str]:
    """The status of each item of a queue, by its id."""
    statement = select(QueueItem.id, QueueItem.status).where(QueueItem.queue_id == queue_id)
    return dict(session.execute(statement).tuples().all())


def skipped_images(session: Session, queue_id: int) -> set[int]:
    """The ids of the images of a queue that hold a skipped item."""
    statement = select(QueueItem.image_id).where(
        QueueItem.queue_id == queue_id, QueueItem.status == "skipped"
    )
    return set(session.scalars(statement.distinct()))


def image_uris(session: Session, image_ids: Sequence[int]) -> dict[int, str]:
    """The URI of each image."""
    found: dict[int, str] = {}
    for start in range(0, len(image_ids), 500):
        part = image_ids[start : start + 500]
        rows = session.execute(select(Image.id, Image.uri).where(Image.id.in_(part)))
        found.update((row[0], row[1]) for row in rows)
    return found


def set_clicks(session: Session, clicks: Mapping[int, float]) -> None:
    """Write down the estimated effort of queue items, by their ids."""
    if clicks:
        session.execute(update(QueueItem), [{"id": id_, "clicks": count} for id_, count in clicks.items()])


class AgreementOfItem(Protocol):
    """How annotators agree on a region, as `QueueItem` says."""

    @property
    def annotators(self) -> int: ...
    @property
    def disagreement(self) -> float: ...
    @property
    def vote_entropy(self) -> float: ...


def set_agreement(session: Session, agreement: Mapping[int, AgreementOfItem | None]) -> None:
    """Write down how annotators agree on queue items, by the items' ids; None where that is not known."""
    rows = [
        {
            "id": item_id,
            "annotators": None if found is None else found.annotators,
            "disagreement": None if found is None else found.disagreement,
            "vote_entropy": None if found is None else found.vote_entropy,
        }
        for item_id, found in agreement.items()
    ]
    if rows:
        session.execute(update(QueueItem), rows)


class TakenRegions(NamedTuple):
    """K regions: `image_id` [K], `box` [K, 4] as x, y, w, h, and `outline` [K], a text each, or None where
    the region fills its box."""

    image_id: npt.NDArray[np.int64]
    box: npt.NDArray[np.int64]
    outline: npt.NDArray[np.object_]


def taken_regions(session: Session, *, except_queue_id: int | None = None) -> TakenRegions:
    """The regions that must not be queued again, each once.

    These are the items that wait for their label, have it, or were skipped by their annotator, and the
    regions of the labels in force; released items do not count.

    Args:
        except_queue_id: a draft that is about to be replaced.
    """
    waiting: list[ColumnElement[bool]] = [QueueItem.status.in_(("queued", "labeled", "skipped"))]
    if except_queue_id is not None:
        waiting.append(QueueItem.queue_id != except_queue_id)
    items = select(
        QueueItem.image_id, QueueItem.x, QueueItem.y, QueueItem.w, QueueItem.h, QueueItem.outline
    ).where(*waiting)
    newest = newest_versions()
    labels = (
        select(
            Label.image_id,
            LabelRegion.x,
            LabelRegion.y,
            LabelRegion.w,
            LabelRegion.h,
            LabelRegion.outline,
        )
        .join(LabelRegion, LabelRegion.label_id == Label.id)
        .join(newest, is_version(newest))
    )
    both = union(items, labels).subquery()
    rows = session.execute(select(both).order_by(*both.c)).all()
    places = np.array([tuple(row[:5]) for row in rows], dtype=np.int64).reshape(-1, 5)
    outline = np.array([row[5] for row in rows], dtype=np.object_)
    return TakenRegions(image_id=places[:, 0], box=places[:, 1:], outline=outline)


def replace_draft(session: Session, queue: Queue, items: Sequence[dict[str, Any]]) -> Queue:
    """Store a round's queue and its items in place of the draft that the round may have.

    Args:
        queue: a new row with its `round_id`.
        items: the columns of each `queue_item`, without `queue_id`.
    """
    draft = select(Queue.id).where(Queue.round_id == queue.round_id, Queue.exported_at.is_(None))
    session.execute(delete(QueueItem).where(QueueItem.queue_id.in_(draft)))
    session.execute(delete(Queue).where(Queue.id.in_(draft)))
    session.add(queue)
    session.flush()
    if items:
        session.execute(insert(QueueItem), [{**item, "queue_id": queue.id} for item in items])
    return queue
