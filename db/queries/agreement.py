"""Regions that several annotators have labeled, and what the model had said of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Select, and_, case, distinct, func, or_, select
from sqlalchemy.orm import Session

from db.queries.in_force import is_version, newest_versions
from db.tables import Image, Label, LabelRegion, Queue, QueueItem, RegionScore

BATCH = 500
"""Values in one `IN (…)`; SQLite's oldest limit is 999."""


class SharedRegion(NamedTuple):
    """A queue item with two or more annotators.

    `expected_entropy`, `entropy` and `mutual_information` are those of the run that the queue was selected
    from; None where that run is pruned, has no samples, or scored other regions.
    """

    queue: str
    rank: int
    image_id: int
    uri: str
    group: str
    position: int
    x: int
    y: int
    w: int
    h: int
    annotators: int
    disagreement: float
    vote_entropy: float
    expected_entropy: float | None
    entropy: float | None
    mutual_information: float | None


class CoveredRegion(NamedTuple):
    """A region that a label covers; `fills_box` says that it holds every pixel of its box."""

    x: int
    y: int
    w: int
    h: int
    region_index: int
    fills_box: bool


class Covered(NamedTuple):
    """Labeled queue items, and the estimated clicks of those that were exported; None where none was."""

    items: int
    clicks: float | None


class SharedImage(NamedTuple):
    """An image of a queue with labels in force of two or more annotators."""

    queue_id: int
    image_id: int
    width: int
    height: int


def shared_regions(session: Session, *, queue_id: int | None = None) -> list[SharedRegion]:
    """The regions that two or more annotators have labeled, most disputed first; of one queue where it is
    given."""
    scored = and_(
        RegionScore.run_id == Queue.run_id,
        RegionScore.image_id == QueueItem.image_id,
        RegionScore.region_index == QueueItem.region_index,
        # A queue of images, or a review, counts its regions otherwise than the run did
        RegionScore.x == QueueItem.x,
        RegionScore.y == QueueItem.y,
        RegionScore.w == QueueItem.w,
        RegionScore.h == QueueItem.h,
    )
    statement = (
        select(
            *(Queue.name, QueueItem.rank, Image.id, Image.uri, Image.group_name, Image.position),
            *(QueueItem.x, QueueItem.y, QueueItem.w, QueueItem.h),
            *(QueueItem.annotators, QueueItem.disagreement, QueueItem.vote_entropy),
            *(RegionScore.expected_entropy, RegionScore.entropy, RegionScore.mutual_information),
        )
        .join(Queue, Queue.id == QueueItem.queue_id)
        .join(Image, Image.id == QueueItem.image_id)
        .join(RegionScore, scored, isouter=True)
        .where(
            QueueItem.annotators >= 2,
            QueueItem.disagreement.is_not(None),
            QueueItem.vote_entropy.is_not(None),
        )
        .order_by(QueueItem.vote_entropy.desc(), QueueItem.disagreement.desc(), Queue.id, QueueItem.rank)
    )
    if queue_id is not None:
        statement = statement.where(Queue.id == queue_id)
    return [SharedRegion(*row) for row in session.execute(statement)]


def shared_images(session: Session, *, queue_id: int | None = None) -> list[SharedImage]:
    """The images that two or more annotators have labeled within one queue, newest queue first."""
    newest = newest_versions()
    statement = (
        select(Label.queue_id, Image.id, Image.width, Image.height)
        .join(newest, is_version(newest))
        .join(Image, Image.id == Label.image_id)
        .group_by(Label.queue_id, Image.id, Image.width, Image.height)
        .having(func.count(distinct(func.coalesce(Label.annotator, ""))) >= 2)
        .order_by(Label.queue_id.desc(), Image.id)
    )
    if queue_id is not None:
        statement = statement.where(Label.queue_id == queue_id)
    return [SharedImage(*row) for row in session.execute(statement)]


def covered_regions(session: Session, label_ids: Sequence[int]) -> dict[int, set[CoveredRegion]]:
    """The regions that each label covers."""
    table = LabelRegion
    found: dict[int, set[CoveredRegion]] = {label_id: set() for label_id in label_ids}
    for start in range(0, len(label_ids), BATCH):
        part = label_ids[start : start + BATCH]
        statement = select(
            *(table.label_id, table.x, table.y, table.w, table.h, table.region_index),
            table.outline.is_(None),
        ).where(table.label_id.in_(part))
        for label_id, *region in session.execute(statement):
            found[label_id].add(CoveredRegion(*region))
    return found


def count_covered(session: Session, label_ids: Select[tuple[int]]) -> Covered:
    """What these labels cover: each labeled item once, however many of them do.

    Args:
        label_ids: a query for them.
    """
    item, region = QueueItem, LabelRegion
    whole_image = and_(
        region.x == 0,
        region.y == 0,
        region.w == Image.width,
        region.h == Image.height,
        region.outline.is_(None),
    )
    same = and_(
        region.x == item.x,
        region.y == item.y,
        region.w == item.w,
        region.h == item.h,
        # A label counts a region that fills its box as 0
        region.region_index == case((item.outline.is_(None), 0), else_=item.region_index),
    )
    statement = (
        select(item.id, item.clicks)
        .join(Label, and_(Label.queue_id == item.queue_id, Label.image_id == item.image_id))
        .join(Image, Image.id == item.image_id)
        .join(region, and_(region.label_id == Label.id, or_(whole_image, same)))
        .where(item.status == "labeled", Label.id.in_(label_ids))
        .distinct()
        .subquery()
    )
    row = session.execute(select(func.count(), func.sum(statement.c.clicks)).select_from(statement)).one()
    return Covered(*row)
