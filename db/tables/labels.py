"""Imported labels, and the regions that they cover."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from db.base import Base, BigId, one_of, utc_now


class Label(Base):
    """An imported mask for one image of one queue: index PNG, 255 for unlabeled pixels.

    A correction is the next version. The newest version of each annotation and of each annotator is in force;
    the training mask of an image is made of its labels in force, in the order of queue id and version.
    `seconds` is the annotator's time, and `origin` the labeling tool's id of the annotation; NULL where
    unknown.
    """

    __tablename__ = "label"
    __table_args__ = (
        UniqueConstraint("image_id", "queue_id", "version"),
        one_of("source", "initial", "import", "simulation"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    image_id: Mapped[int] = mapped_column(BigId, ForeignKey("image.id"))
    queue_id: Mapped[int] = mapped_column(ForeignKey("queue.id"))
    version: Mapped[int]
    mask_uri: Mapped[str] = mapped_column(Text)
    mask_sha256: Mapped[str] = mapped_column(String(64))
    labeled_pixels: Mapped[int]
    source: Mapped[str] = mapped_column(String(16))
    annotator: Mapped[str | None] = mapped_column(Text)
    labeled_at: Mapped[datetime]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    seconds: Mapped[float | None]
    origin: Mapped[str | None] = mapped_column(Text)


class LabelRegion(Base):
    """The regions that a label covers, each a box and, where it does not fill it, an outline; the whole image
    is one box."""

    __tablename__ = "label_region"

    label_id: Mapped[int] = mapped_column(BigId, ForeignKey("label.id", ondelete="CASCADE"), primary_key=True)
    x: Mapped[int] = mapped_column(primary_key=True)
    y: Mapped[int] = mapped_column(primary_key=True)
    w: Mapped[int] = mapped_column(primary_key=True)
    h: Mapped[int] = mapped_column(primary_key=True)
    region_index: Mapped[int] = mapped_column(primary_key=True, default=0, server_default="0")
    """Tells regions of the same box apart."""
    outline: Mapped[str | None] = mapped_column(Text)
