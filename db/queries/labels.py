"""Labels that came back: one version after another of each image of each queue."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import PurePosixPath
from typing import NamedTuple

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from db.queries.in_force import is_version, newest_versions
from db.tables import Image, ImageScore, Label, LabelRegion, QueueItem


class LabeledRegion(NamedTuple):
    """A region that a label covers: its box in image pixels, and its outline where it does not fill the box.
    `region_index` tells regions of one box apart."""

    x: int
    y: int
    w: int
    h: int
    region_index: int = 0
    outline: str | None = None


BATCH = 500
"""Values in one `IN (…)`; SQLite's oldest limit is 999."""


class QueuedImage(NamedTuple):
    """An image of a queue, as far as its labels are concerned."""

    id: int
    uri: str
    sha256: str
    width: int
    height: int


class QueuedBox(NamedTuple):
    """A queue item, as far as its label is concerned."""

    item_id: int
    rank: int
    x: int
    y: int
    w: int
    h: int
    region_index: int
    outline: str | None


class NamedImage(NamedTuple):
    """What a name may mean; a duplicate means its original."""

    id: int
    uri: str
    duplicate_of: int | None


class QueuedRegion(NamedTuple):
    """An item of a queue and the image that it lies in."""

    item: QueueItem
    image: Image


def record_label(
    session: Session,
    *,
    image_id: int,
    queue_id: int,
    mask_uri: str,
    mask_sha256: str,
    labeled_pixels: int,
    source: str,
    annotator: str | None,
    labeled_at: datetime,
    regions: Iterable[LabeledRegion],
    seconds: float | None = None,
    origin: str | None = None,
) -> Label | None:
    """A new version of the label of one image of one queue, and the regions that it covers.

    Args:
        seconds: that the annotator took.
        origin: what the labeling tool calls this annotation.

    Returns:
        The new row, or None when this mask is known and nothing is written: the newest version of this
        annotation, or of this annotator, has it; or, of an annotator without a name, the newest of all. The
        same mask by another annotator is another vote.
    """
    latest = latest_label(session, image_id=image_id, queue_id=queue_id)
    if latest is not None:
        before = [latest] if annotator is None else []
        before += _earlier(session, latest, annotator=annotator, origin=origin)
        if any(label.mask_sha256 == mask_sha256 for label in before):
            return None
    row = Label(
        image_id=image_id,
        queue_id=queue_id,
        version=1 if latest is None else latest.version + 1,
        mask_uri=mask_uri,
        mask_sha256=mask_sha256,
        labeled_pixels=labeled_pixels,
        source=source,
        annotator=annotator,
        labeled_at=labeled_at,
        seconds=seconds,
        origin=origin,
    )
    session.add(row)
    session.flush()
    unique = {region[:5]: region for region in regions}
    session.add_all(LabelRegion(label_id=row.id, **region._asdict()) for _, region in sorted(unique.items()))
    session.flush()
    return row


def _earlier(session: Session, latest: Label, *, annotator: str | None, origin: str | None) -> list[Label]:
    """The newest version of one annotation where there is one, else of one annotator."""
    of_image = (
        select(Label)
        .where(Label.image_id == latest.image_id, Label.queue_id == latest.queue_id)
        .order_by(Label.version.desc())
        .limit(1)
    )
    if origin is not None:
        known = session.scalars(of_image.where(Label.origin == origin)).all()
        if known:
            return list(known)
    return list(session.scalars(of_image.where(Label.annotator.is_not_distinct_from(annotator))))


def latest_label(session: Session, *, image_id: int, queue_id: int) -> Label | None:
    """The newest version of one image's label in one queue."""
    statement = (
        select(Label)
        .where(Label.image_id == image_id, Label.queue_id == queue_id)
        .order_by(Label.version.desc())
        .limit(1)
    )
    return session.scalars(statement).first()


def labels_in_force(
    session: Session, *, queue_id: int | None = None, image_id: int | None = None
) -> Sequence[Label]:
    """The labels in force, by image, queue and version: in the order in which they are painted. Of one queue
    or image only where it is given."""
    newest = newest_versions()
    statement = select(Label).join(newest, is_version(newest))
    if queue_id is not None:
        statement = statement.where(Label.queue_id == queue_id)
    if image_id is not None:
        statement = statement.where(Label.image_id == image_id)
    return session.scalars(statement.order_by(Label.image_id, Label.queue_id, Label.version)).all()


def regions_in_force(session: Session, *, queue_id: int, image_id: int) -> set[LabeledRegion]:
    """What the labels in force of one image of one queue cover."""
    newest = newest_versions()
    columns = (LabelRegion.x, LabelRegion.y, LabelRegion.w, LabelRegion.h, LabelRegion.region_index)
    statement = (
        select(*columns, LabelRegion.outline)
        .join(Label, Label.id == LabelRegion.label_id)
        .join(newest, is_version(newest))
        .where(Label.queue_id == queue_id, Label.image_id == image_id)
    )
    return {LabeledRegion(*row) for row in session.execute(statement)}


def labeled_images(session: Session, *, queue_id: int) -> set[int]:
    """The ids of the images of a queue that have a label."""
    return set(session.scalars(select(Label.image_id).where(Label.queue_id == queue_id).distinct()))


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


def queued_regions(session: Session, *, queue_id: int) -> list[QueuedRegion]:
    """Every item of a queue with its image, best rank first."""
    statement = (
        select(QueueItem, Image)
        .join(Image, Image.id == QueueItem.image_id)
        .where(QueueItem.queue_id == queue_id)
        .order_by(QueueItem.rank)
    )
    return [QueuedRegion(item, image) for item, image in session.execute(statement)]


def set_status(session: Session, *, item_ids: Sequence[int], status: str) -> None:
    """Move queue items to `labeled`, `released` or back to `queued`."""
    for start in range(0, len(item_ids), BATCH):
        statement = update(QueueItem).where(QueueItem.id.in_(item_ids[start : start + BATCH]))
        session.execute(statement.values(status=status))


def images_named(session: Session, *, stems: Collection[str]) -> list[NamedImage]:
    """The images of the project whose name without its ending is one of these. Reads every URI once."""
    wanted = {unicodedata.normalize("NFC", stem) for stem in stems}
    statement = select(Image.id, Image.uri, Image.duplicate_of).execution_options(yield_per=10_000)
    rows = (NamedImage(*row) for row in session.execute(statement))
    return [row for row in rows if unicodedata.normalize("NFC", PurePosixPath(row.uri).stem) in wanted]


def scores_of_images(session: Session, *, run_id: int, image_ids: Sequence[int]) -> dict[int, ImageScore]:
    """The image scores of one run, by image id."""
    found: dict[int, ImageScore] = {}
    for start in range(0, len(image_ids), BATCH):
        statement = select(ImageScore).where(
            ImageScore.run_id == run_id, ImageScore.image_id.in_(image_ids[start : start + BATCH])
        )
        found.update((row.image_id, row) for row in session.scalars(statement))
    return found
