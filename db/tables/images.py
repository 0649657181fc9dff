"""Images, and the files that a step could not use."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from db.base import Base, BigId, one_of, utc_now


class Image(Base):
    """A readable image; `width`, `height` are those after EXIF orientation.

    A held-out image is measured on from a version of its split on, `split_version`; before that, and after
    its mask was corrected, it waits. `mask_classes` are the indices of the classes in its mask, and
    `mask_sha256` is of the mask's size and pixels; NULL where they are not known.
    """

    __tablename__ = "image"
    __table_args__ = (
        UniqueConstraint("uri"),
        Index(None, "sha256"),
        Index(None, "split", "id"),
        one_of("split", "pool", "calibration", "test", "guard"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    uri: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str] = mapped_column(String(64))
    width: Mapped[int]
    height: Mapped[int]
    channels: Mapped[int]
    group_name: Mapped[str] = mapped_column(Text)
    position: Mapped[int] = mapped_column(BigInteger)
    split: Mapped[str] = mapped_column(String(16), default="pool")
    split_version: Mapped[int | None]
    mask_uri: Mapped[str | None] = mapped_column(Text)
    mask_classes: Mapped[list[Any] | None]
    mask_sha256: Mapped[str | None] = mapped_column(String(64))
    duplicate_of: Mapped[int | None] = mapped_column(ForeignKey("image.id"))
    ingested_at: Mapped[datetime] = mapped_column(default=utc_now)


class Failure(Base):
    """A file that a step could not use, with its reason; replaced by the step's next run on it."""

    __tablename__ = "failure"
    __table_args__ = (UniqueConstraint("step", "subject"),)

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    step: Mapped[str] = mapped_column(String(32))
    subject: Mapped[str] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)
    at: Mapped[datetime] = mapped_column(default=utc_now)
