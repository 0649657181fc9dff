"""The audit slices: labeled regions that were drawn at random from the pool, with a known probability."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import and_, select
from sqlalchemy.orm import Session

from db.queries.labels import is_version, newest_versions
from db.tables import Image, Label, Model, ModelLabel, QueueItem

HELD_OUT = "held_out"
"""The key of a model's config that is `audit` where the audit regions were left out of its training."""


class AuditRegion(NamedTuple):
    """A labeled region of an audit slice, and the labels in force of its image in its queue, in the order in
    which they are composed; a later one, of another annotator, may not cover the region."""

    image_id: int
    x: int
    y: int
    w: int
    h: int
    outline: str | None
    inclusion_probability: float
    mask_uris: tuple[str, ...]


def audit_regions(session: Session) -> list[AuditRegion]:
    """Every labeled audit region of a pool image, of all rounds, by image and queue."""
    newest = newest_versions()
    item = QueueItem
    statement = (
        select(
            *(item.id, item.image_id, item.x, item.y, item.w, item.h),
            *(item.outline, item.inclusion_probability, Label.mask_uri),
        )
        .join(Image, Image.id == item.image_id)
        .join(Label, and_(Label.image_id == item.image_id, Label.queue_id == item.queue_id))
        .join(newest, is_version(newest))
        .where(
            item.slice == "audit",
            item.status == "labeled",
            item.inclusion_probability.is_not(None),
            Image.split == "pool",
            Image.duplicate_of.is_(None),
        )
        .order_by(item.image_id, item.queue_id, item.rank, Label.version)
    )
    found: dict[int, AuditRegion] = {}
    for item_id, *region, mask_uri in session.execute(statement):
        before = found[item_id].mask_uris if item_id in found else ()
        found[item_id] = AuditRegion(*region, mask_uris=(*before, mask_uri))
    return list(found.values())


def unseen_audit_regions(session: Session, model_id: int) -> list[AuditRegion]:
    """The audit regions that a model has not learned from: neither it nor a model that it started from was
    trained on a label of their image, unless the audit regions were left out of that training."""
    seen: set[int] = set()
    model = session.get(Model, model_id)
    while model is not None:
        if model.config.get(HELD_OUT) != "audit":
            trained = select(Label.image_id).join(ModelLabel, ModelLabel.label_id == Label.id)
            seen.update(session.scalars(trained.where(ModelLabel.model_id == model.id)))
        model = session.get(Model, model.parent_id) if model.parent_id is not None else None
    return [region for region in audit_regions(session) if region.image_id not in seen]
