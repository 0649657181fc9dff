"""The project that a database belongs to, and who works in it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, SmallInteger, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from db.base import Base, utc_now


class Identity(Base):
    """One row: which project the database belongs to. `id` never changes; `name` is the configuration's."""

    __tablename__ = "identity"
    __table_args__ = (CheckConstraint("key = 1", name="single_row"),)

    key: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    id: Mapped[str] = mapped_column(String(32))
    name: Mapped[str] = mapped_column(Text)


class Project(Base):
    """One row: the settings that must not change after the first ingest. `open_splits` says of each held-out
    split without a version what it still needs. `mask_values` says what the values and colours of masks meant
    when they were read; NULL where that is not known."""

    __tablename__ = "project"

    id: Mapped[int] = mapped_column(primary_key=True)
    class_names: Mapped[list[Any]]
    channels: Mapped[int]
    splits_config: Mapped[dict[str, Any] | None]
    splits_locked_at: Mapped[datetime | None]
    open_splits: Mapped[dict[str, Any] | None]
    mask_values: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Lease(Base):
    """Work that one process at a time may do. The owner renews `until`; after that time any process may take
    the lease."""

    __tablename__ = "lease"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(Text)
    taken_at: Mapped[datetime]
    until: Mapped[datetime]
