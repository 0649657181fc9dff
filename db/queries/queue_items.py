"""Queue items: the regions to label, their status and counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from sqlalchemy import ColumnElement, func, insert, select, union, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from db.later import later
from db.queries.labels import is_version, newest_versions
from db.queries.paging import in_parts
from db.tables import Image, Label, LabelRegion, Queue, QueueItem

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
else:
    np = later("numpy")

Key = TypeVar("Key")


class QueuedImage(NamedTuple):
    """The columns of a queue's image that its labels need."""

    id: int
    uri: str
    sha256: str
    width: int
    height: int


class QueuedBox(NamedTuple):
    """The columns of a queue item that its label needs."""

    item_id: int
    rank: int
    x: int
    y: int
    w: int
    h: int
    region_index: int
    outline: str | None


class QueuedRegion(NamedTuple):
    """An item of a queue and the image that it lies in."""

    item: QueueItem
    image: Image


class TakenRegions(NamedTuple):
    """K regions: `image_id` [K], `box` [K, 4] as x, y, w, h, and `outline` [K], a text each, or None where
    the region fills its box."""

    image_id: npt.NDArray[np.int64]
    box: npt.NDArray[np.int64]
    outline: npt.NDArray[np.object_]


class ReviewedRegion(NamedTuple):
    """A region whose label is in review or was reviewed."""

    x: int
    y: int
    w: int
    h: int
    outline: str | None


def queue_items(session: Session, queue_id: int, *, status: str | None = None) -> Sequence[QueueItem]:
    """The items of a queue by rank; with `status`, only those."""
    statement = select(QueueItem).where(QueueItem.queue_id == queue_id).order_by(QueueItem.rank)
    if status is not None:
        statement = statement.where(QueueItem.status == status)
    return session.scalars(statement).all()


def queued_regions(session: Session, *, queue_id: int, limit: int | None = None) -> list[QueuedRegion]:
    """The items of a queue with their images, best rank first; with `limit`, the first ones."""
    statement = (
        select(QueueItem, Image)
        .join(Image, Image.id == QueueItem.image_id)
        .where(QueueItem.queue_id == queue_id)
        .order_by(QueueItem.rank)
        .limit(limit)
    )
    return [QueuedRegion(item, image) for item, image in session.execute(statement)]


def queued_boxes(session: Session, *, queue_id: int) -> Iterator[tuple[QueuedBox, QueuedImage]]:
    """Every item of a queue with its image, best rank first; one at a time."""
    of_item = (QueueItem.x, QueueItem.y, QueueItem.w, QueueItem.h, QueueItem.region_index, QueueItem.outline)
    statement = (
        select(
            *(QueueItem.id, QueueItem.rank, *of_item),
            *(Image.id, Image.uri, Image.sha256, Image.width, Image.height),
        )
        .join(Image, Image.id == QueueItem.image_id)
        .where(QueueItem.queue_id == queue_id)
        .order_by(QueueItem.rank)
    )
    for row in session.execute(statement.execution_options(yield_per=1000)):
        yield QueuedBox(*row[:8]), QueuedImage(*row[8:])


def queued_images(session: Session, *, except_queue_id: int | None = None) -> set[int]:
    """The ids of the images with a region that waits for a label in any queue, other than the one that is
    given."""
    statement = select(QueueItem.image_id).where(QueueItem.status == "queued").distinct()
    if except_queue_id is not None:
        statement = statement.where(QueueItem.queue_id != except_queue_id)
    return set(session.scalars(statement))


def masked_since(session: Session, at: datetime | None) -> dict[str, int]:
    """How many images that wait for a label have a mask that was read since then, or since their queue was
    drawn, by their queue's name."""
    statement = (
        select(Queue.name, func.count(func.distinct(Image.id)))
        .join(QueueItem, QueueItem.queue_id == Queue.id)
        .join(Image, Image.id == QueueItem.image_id)
        .where(QueueItem.status == "queued", Queue.kind != "initial", Image.mask_uri.is_not(None))
        .where(Image.ingested_at >= (Queue.created_at if at is None else at))
        .group_by(Queue.name)
    )
    return dict(session.execute(statement).tuples().all())


def images_to_label(session: Session, *, queue_id: int, after_id: int, limit: int) -> Sequence[Image]:
    """A page of pool images that have a mask and no item in this queue."""
    statement = (
        select(Image)
        .where(
            Image.split == "pool",
            Image.duplicate_of.is_(None),
            Image.mask_uri.is_not(None),
            Image.id > after_id,
            ~select(QueueItem.id)
            .where(QueueItem.queue_id == queue_id, QueueItem.image_id == Image.id)
            .exists(),
        )
        .order_by(Image.id)
        .limit(limit)
    )
    return session.scalars(statement).all()


def waiting_images(session: Session, queue_id: int, *, after_id: int, limit: int) -> Sequence[Image]:
    """A page of the images with items of this queue that wait for a label, by id."""
    waiting = select(QueueItem.id).where(
        QueueItem.image_id == Image.id, QueueItem.queue_id == queue_id, QueueItem.status == "queued"
    )
    statement = select(Image).where(Image.id > after_id, waiting.exists()).order_by(Image.id).limit(limit)
    return session.scalars(statement).all()


def waiting_items(session: Session, queue_id: int, *, image_ids: Sequence[int]) -> Sequence[QueueItem]:
    """The waiting items of these images, by rank."""
    statement = (
        select(QueueItem)
        .where(
            QueueItem.queue_id == queue_id, QueueItem.status == "queued", QueueItem.image_id.in_(image_ids)
        )
        .order_by(QueueItem.rank)
    )
    return session.scalars(statement).all()


def skipped_images(session: Session, queue_id: int) -> set[int]:
    """The ids of the images of a queue that have a skipped item."""
    skipped = (QueueItem.queue_id == queue_id, QueueItem.status == "skipped")
    return set(session.scalars(select(QueueItem.image_id).where(*skipped).distinct()))


def taken_regions(session: Session, *, except_queue_id: int | None = None) -> TakenRegions:
    """The regions that must not be queued again, each once.

    These are the items that wait for a label, are labeled, or were skipped by their annotator, and the
    regions of the labels in force; released items are left out.

    Args:
        except_queue_id: a draft that will be replaced.
    """
    waiting: list[ColumnElement[bool]] = [QueueItem.status.in_(("queued", "labeled", "skipped"))]
    if except_queue_id is not None:
        waiting.append(QueueItem.queue_id != except_queue_id)
    items = select(QueueItem.image_id, *_shape(QueueItem)).where(*waiting)
    newest = newest_versions()
    labels = (
        select(Label.image_id, *_shape(LabelRegion))
        .join(LabelRegion, LabelRegion.label_id == Label.id)
        .join(newest, is_version(newest))
    )
    both = union(items, labels).subquery()
    rows = session.execute(select(both).order_by(*both.c)).all()
    numbers = np.array([tuple(row[:5]) for row in rows], dtype=np.int64).reshape(-1, 5)
    outline = np.array([row[5] for row in rows], dtype=np.object_)
    return TakenRegions(image_id=numbers[:, 0], box=numbers[:, 1:], outline=outline)


def reviewed_regions(session: Session) -> dict[int, list[ReviewedRegion]]:
    """The regions of exported reviews that wait for a new label or have it, by image id; released regions
    are left out.
    """
    statement = (
        select(QueueItem.image_id, *_shape(QueueItem))
        .join(Queue, Queue.id == QueueItem.queue_id)
        .where(
            Queue.kind == "review",
            Queue.exported_at.is_not(None),
            QueueItem.status.in_(("queued", "labeled")),
        )
        .order_by(QueueItem.id)
    )
    found: dict[int, list[ReviewedRegion]] = {}
    for image_id, *region in session.execute(statement):
        found.setdefault(image_id, []).append(ReviewedRegion(*region))
    return found


def item_statuses(session: Session, queue_id: int) -> dict[int, str]:
    """The status of each item of a queue, by its id."""
    statement = select(QueueItem.id, QueueItem.status).where(QueueItem.queue_id == queue_id)
    return dict(session.execute(statement).tuples().all())


def count_items(session: Session, queue_id: int) -> dict[str, int]:
    """Queue items by status."""
    return count_by(session, queue_id, QueueItem.status)


def count_by(session: Session, queue_id: int, column: InstrumentedAttribute[Key]) -> dict[Key, int]:
    """Items of a queue by slice or another column, most first."""
    statement = (
        select(column, func.count())
        .where(QueueItem.queue_id == queue_id)
        .group_by(column)
        .order_by(func.count().desc(), column)
    )
    return dict(session.execute(statement).tuples().all())


def count_clicks(session: Session, queue_id: int) -> float | None:
    """Estimated clicks of a queue's items together; None where none is known."""
    return session.scalar(select(func.sum(QueueItem.clicks)).where(QueueItem.queue_id == queue_id))


def next_rank(session: Session, queue_id: int) -> int:
    """The first free rank of a queue; ranks start at 1."""
    return (session.scalar(select(func.max(QueueItem.rank)).where(QueueItem.queue_id == queue_id)) or 0) + 1


def insert_items(session: Session, rows: Sequence[dict[str, Any]]) -> None:
    """New queue items, each a dict of the table's columns."""
    if rows:
        session.execute(insert(QueueItem), list(rows))


def set_status(session: Session, *, item_ids: Sequence[int], status: str) -> None:
    """Move queue items to `labeled`, `released` or back to `queued`."""
    for part in in_parts(item_ids):
        session.execute(update(QueueItem).where(QueueItem.id.in_(part)).values(status=status))


def reopen_images(session: Session, *, queue_id: int, image_ids: Sequence[int]) -> None:
    """Move all items of some images of a queue back to `queued`."""
    for part in in_parts(image_ids):
        items = (QueueItem.queue_id == queue_id, QueueItem.image_id.in_(part))
        session.execute(update(QueueItem).where(*items).values(status="queued"))


def set_clicks(session: Session, clicks: Mapping[int, float]) -> None:
    """Store the estimated clicks of queue items, by their ids."""
    if clicks:
        session.execute(update(QueueItem), [{"id": id_, "clicks": count} for id_, count in clicks.items()])


def keep_first(session: Session, *, queue_id: int, items: int) -> None:
    """Delete all but the first items of a queue by rank. The inclusion probability of the audit slice shrinks
    with its number of items."""
    ranked = queue_items(session, queue_id)
    audit = [item for item in ranked if item.inclusion_probability is not None]
    kept = [item for item in ranked[:items] if item.inclusion_probability is not None]
    for item in kept:
        item.inclusion_probability = (item.inclusion_probability or 0.0) * len(kept) / len(audit)
    for item in ranked[items:]:
        session.delete(item)
    session.flush()


def _shape(table: type[QueueItem] | type[LabelRegion]) -> tuple[InstrumentedAttribute[Any], ...]:
    """The columns of a region's box and outline."""
    return table.x, table.y, table.w, table.h, table.outline
