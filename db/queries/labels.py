"""Imported labels: successive versions for each image of each queue.

The newest version of each annotation and of each annotator is in force, for each image of each queue.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import ColumnElement, Select, Subquery, and_, case, delete, func, or_, select
from sqlalchemy.orm import Session, aliased

from db.queries.paging import in_parts
from db.tables import Image, Label, LabelRegion, Model, Queue, QueueItem


class LabeledRegion(NamedTuple):
    """A region that a label covers: its box in image pixels, and its outline where it does not fill the box.
    `region_index` tells regions of one box apart."""

    x: int
    y: int
    w: int
    h: int
    region_index: int = 0
    outline: str | None = None


class CoveredRegion(NamedTuple):
    """A region that a label covers; with `fills_box` it includes every pixel of its box."""

    x: int
    y: int
    w: int
    h: int
    region_index: int
    fills_box: bool


class Covered(NamedTuple):
    """The number of labeled queue items, and the estimated clicks of the exported ones; None without any."""

    items: int
    clicks: float | None


def newest_versions() -> Subquery:
    """`image_id`, `queue_id`, `version` of the labels in force.

    A label is in force until a later one of its image and queue replaces it: of the same annotation of the
    labeling tool, whoever made it, or by the same annotator. Unnamed labels are one annotator's.
    """
    later = aliased(Label)
    replaced = (
        select(later.id)
        .where(
            later.image_id == Label.image_id,
            later.queue_id == Label.queue_id,
            later.version > Label.version,
            or_(later.annotator.is_not_distinct_from(Label.annotator), later.origin == Label.origin),
        )
        .correlate(Label)
        .exists()
    )
    return select(Label.image_id, Label.queue_id, Label.version).where(~replaced).subquery()


def is_version(newest: Subquery) -> ColumnElement[bool]:
    """The join condition that a `Label` is one of these versions."""
    return and_(
        newest.c.image_id == Label.image_id,
        newest.c.queue_id == Label.queue_id,
        newest.c.version == Label.version,
    )


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
        seconds: the annotator's time.
        origin: the labeling tool's id of this annotation.

    Returns:
        The new row, or None, with nothing written, when the newest version of this annotation or annotator
        has the same mask; without an annotator's name, also when the newest version of all has it. The same
        mask by another annotator is another vote.
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


def all_labeled_images(session: Session, *, except_queue_id: int | None = None) -> set[int]:
    """The ids of the images with a label in any queue, other than the one that is given."""
    statement = select(Label.image_id).distinct()
    if except_queue_id is not None:
        statement = statement.where(Label.queue_id != except_queue_id)
    return set(session.scalars(statement))


def unlearned_initial(session: Session) -> int | None:
    """The id of the queue `initial`, where no training has begun yet and no label of it was imported."""
    learned = select(Model.id).exists()
    imported = select(Label.id).where(Label.queue_id == Queue.id, Label.source != "initial").exists()
    return session.scalar(select(Queue.id).where(Queue.kind == "initial", ~learned, ~imported))


def delete_labels(session: Session, *, queue_id: int) -> None:
    """Delete the labels of a queue that no model was trained on."""
    of_queue = select(Label.id).where(Label.queue_id == queue_id)
    session.execute(delete(LabelRegion).where(LabelRegion.label_id.in_(of_queue)))
    session.execute(delete(Label).where(Label.queue_id == queue_id))


def latest_label(session: Session, *, image_id: int, queue_id: int) -> Label | None:
    """The newest version of one image's label in one queue."""
    return session.scalars(_newest_version(image_id, queue_id)).first()


def labels_in_force(
    session: Session, *, queue_id: int | None = None, image_id: int | None = None
) -> Sequence[Label]:
    """The labels in force, by image, queue and version, the order in which they are composed; of one queue or
    image where it is given."""
    newest = newest_versions()
    statement = select(Label).join(newest, is_version(newest))
    if queue_id is not None:
        statement = statement.where(Label.queue_id == queue_id)
    if image_id is not None:
        statement = statement.where(Label.image_id == image_id)
    return session.scalars(statement.order_by(Label.image_id, Label.queue_id, Label.version)).all()


def labels_of_queue(session: Session, queue_id: int) -> list[tuple[Image, list[Label]]]:
    """The labeled images of a queue, each with its labels in force in the order of composition."""
    found: dict[int, tuple[Image, list[Label]]] = {}
    for label in labels_in_force(session, queue_id=queue_id):
        image = session.get_one(Image, label.image_id)
        found.setdefault(image.id, (image, []))[1].append(label)
    return list(found.values())


def regions_in_force(session: Session, *, queue_id: int, image_id: int) -> set[LabeledRegion]:
    """The regions that the labels in force of one image of one queue cover."""
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


def has_imported_labels(session: Session) -> bool:
    """Whether a label came back from a queue; those of the masks that ingest read do not count."""
    return session.scalar(select(Label.id).where(Label.source != "initial").limit(1)) is not None


def has_labels(session: Session, *, queue_id: int | None = None) -> bool:
    """Whether any image has a label; of one queue where it is given."""
    matching = () if queue_id is None else (Label.queue_id == queue_id,)
    return session.scalar(select(Label.id).where(*matching).limit(1)) is not None


def covered_regions(session: Session, label_ids: Sequence[int]) -> dict[int, set[CoveredRegion]]:
    """The regions that each label covers."""
    table = LabelRegion
    found: dict[int, set[CoveredRegion]] = {label_id: set() for label_id in label_ids}
    for part in in_parts(label_ids):
        statement = select(
            *(table.label_id, table.x, table.y, table.w, table.h, table.region_index),
            table.outline.is_(None),
        ).where(table.label_id.in_(part))
        for label_id, *region in session.execute(statement):
            found[label_id].add(CoveredRegion(*region))
    return found


def count_covered(session: Session, label_ids: Select[tuple[int]]) -> Covered:
    """The labeled items that these labels cover, each counted once.

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
        # A label stores a region that fills its box with index 0
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


def _earlier(session: Session, latest: Label, *, annotator: str | None, origin: str | None) -> list[Label]:
    """The newest version of this annotation if it is known, else of this annotator."""
    of_image = _newest_version(latest.image_id, latest.queue_id)
    if origin is not None:
        known = session.scalars(of_image.where(Label.origin == origin)).all()
        if known:
            return list(known)
    return list(session.scalars(of_image.where(Label.annotator.is_not_distinct_from(annotator))))


def _newest_version(image_id: int, queue_id: int) -> Select[tuple[Label]]:
    """The newest version of one image's label in one queue."""
    matching = (Label.image_id == image_id, Label.queue_id == queue_id)
    return select(Label).where(*matching).order_by(Label.version.desc()).limit(1)
