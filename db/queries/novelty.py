"""Which images a model has learned from, and which nobody has labeled yet."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.tables import Image, Label, ModelLabel

BATCH = 500
"""Values in one `IN (…)`; SQLite's oldest limit is 999."""


def labeled_ids(session: Session, model_id: int) -> Sequence[int]:
    """The images that a model was trained on, by id."""
    statement = (
        select(Label.image_id)
        .join(ModelLabel, ModelLabel.label_id == Label.id)
        .where(ModelLabel.model_id == model_id)
        .distinct()
        .order_by(Label.image_id)
    )
    return session.scalars(statement).all()


def unlabeled_ids(session: Session) -> Sequence[int]:
    """The images of the pool without any label, by id; no duplicates."""
    statement = (
        select(Image.id)
        .where(
            Image.split == "pool",
            Image.duplicate_of.is_(None),
            ~select(Label.id).where(Label.image_id == Image.id).exists(),
        )
        .order_by(Image.id)
    )
    return session.scalars(statement).all()


def images_by_id(session: Session, image_ids: Sequence[int]) -> list[Image]:
    """Images, by id."""
    found: list[Image] = []
    for start in range(0, len(image_ids), BATCH):
        part = image_ids[start : start + BATCH]
        found.extend(session.scalars(select(Image).where(Image.id.in_(part)).order_by(Image.id)))
    return found
