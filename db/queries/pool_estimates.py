"""What the audits say about the pool, and the labels that this rests on."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.queries.labels import LabeledRegion
from db.tables import Image, Label, LabelRegion, PoolEstimate, QueueItem, utc_now


def put_estimate(
    session: Session, *, queue_id: int, model_id: int, labels_hash: str, document: dict[str, Any]
) -> PoolEstimate:
    """Store the estimate of a queue in place of an earlier one."""
    row = session.get(PoolEstimate, queue_id)
    if row is None:
        row = PoolEstimate(queue_id=queue_id)
        session.add(row)
    row.model_id, row.labels_hash, row.document = model_id, labels_hash, document
    row.created_at = utc_now()
    session.flush()
    return row


def estimate_of(session: Session, queue_id: int) -> PoolEstimate | None:
    """The estimate of a queue, where there is one."""
    return session.get(PoolEstimate, queue_id)


def labeled_before(session: Session, moment: datetime) -> dict[int, set[LabeledRegion]]:
    """The regions of the pool's images that had a label at a time, by image."""
    columns = (LabelRegion.x, LabelRegion.y, LabelRegion.w, LabelRegion.h, LabelRegion.region_index)
    statement = (
        select(Label.image_id, *columns, LabelRegion.outline)
        .join(Label, Label.id == LabelRegion.label_id)
        .join(Image, Image.id == Label.image_id)
        .where(Label.created_at <= moment, Image.split == "pool", Image.duplicate_of.is_(None))
    )
    found: dict[int, set[LabeledRegion]] = {}
    for image_id, *region in session.execute(statement):
        found.setdefault(image_id, set()).add(LabeledRegion(*region))
    return found


def count_skipped_before(session: Session, queue_id: int) -> int:
    """The regions of earlier queues that their annotators skipped: no later queue draws them."""
    skipped = (QueueItem.status == "skipped", QueueItem.queue_id < queue_id)
    return session.scalar(select(func.count()).select_from(QueueItem).where(*skipped)) or 0
