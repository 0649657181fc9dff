"""Regions that several annotators have labeled, and the scores that the model gave them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from sqlalchemy import and_, distinct, func, select, update
from sqlalchemy.orm import Session

from db.queries.labels import is_version, newest_versions
from db.tables import Image, Label, Queue, QueueItem, RegionScore


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


class SharedImage(NamedTuple):
    """An image of a queue with labels in force of two or more annotators."""

    queue_id: int
    image_id: int
    width: int
    height: int


class AgreementOfItem(Protocol):
    """The annotators' agreement on a region, with the columns of `QueueItem`."""

    @property
    def annotators(self) -> int: ...
    @property
    def disagreement(self) -> float: ...
    @property
    def vote_entropy(self) -> float: ...


def shared_regions(session: Session, *, queue_id: int | None = None) -> list[SharedRegion]:
    """The regions that two or more annotators have labeled, most disputed first; with `queue_id`, of one
    queue."""
    scored = and_(
        RegionScore.run_id == Queue.run_id,
        RegionScore.image_id == QueueItem.image_id,
        RegionScore.region_index == QueueItem.region_index,
        # A queue of images, or a review, numbers its regions differently from the run
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


def set_agreement(session: Session, agreement: Mapping[int, AgreementOfItem | None]) -> None:
    """Store the annotators' agreement on queue items, by the items' ids; None where it is unknown."""
    names = ("annotators", "disagreement", "vote_entropy")
    rows = [
        {"id": item_id, **{name: getattr(values, name, None) for name in names}}
        for item_id, values in agreement.items()
    ]
    if rows:
        session.execute(update(QueueItem), rows)
