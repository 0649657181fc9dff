"""Labeling lists: their regions, where they are labeled, and what their audits say of the pool."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, SmallInteger, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from db.base import Base, BigId, one_of, utc_now


class Queue(Base):
    """An ordered labeling list. `kind` is `initial` for the first labels of a project, `review` for labels
    that the model contradicts, and `held_out` for whole images of the split that `spec` names."""

    __tablename__ = "queue"
    __table_args__ = (
        UniqueConstraint("round_id"),
        UniqueConstraint("name"),
        one_of("kind", "initial", "selected", "review", "held_out"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    round_id: Mapped[int | None] = mapped_column(ForeignKey("round.id"))
    name: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(16))
    run_id: Mapped[int | None] = mapped_column(ForeignKey("scoring_run.id", ondelete="SET NULL"))
    strategy: Mapped[str] = mapped_column(String(48))
    unit: Mapped[str] = mapped_column(String(16))
    seed: Mapped[int]
    spec: Mapped[dict[str, Any]]
    export_uri: Mapped[str | None] = mapped_column(Text)
    exported_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class QueueItem(Base):
    """A region to label. `inclusion_probability` is known only for the audit slice, NULL elsewhere; `outline`
    is that of the region's score.

    `clicks` is the estimated effort, known from the export on. `annotators` counts those whose labels are in
    force, once there are two: `disagreement` is then the share of pixels on which two of them, drawn at
    random, differ, and `vote_entropy` the mean entropy of their votes over ln C. A `skipped` region
    was skipped by its annotator.
    """

    __tablename__ = "queue_item"
    __table_args__ = (
        UniqueConstraint("queue_id", "rank"),
        UniqueConstraint("queue_id", "image_id", "x", "y", "w", "h", "region_index"),
        Index(None, "image_id"),
        one_of("slice", "initial", "selected", "audit", "review", "held_out"),
        one_of("status", "queued", "labeled", "released", "skipped"),
    )

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    queue_id: Mapped[int] = mapped_column(ForeignKey("queue.id", ondelete="CASCADE"))
    rank: Mapped[int]
    image_id: Mapped[int] = mapped_column(BigId, ForeignKey("image.id"))
    region_index: Mapped[int]
    x: Mapped[int]
    y: Mapped[int]
    w: Mapped[int]
    h: Mapped[int]
    outline: Mapped[str | None] = mapped_column(Text)
    measure: Mapped[str | None] = mapped_column(String(48))
    score: Mapped[float | None]
    predicted_class: Mapped[int | None] = mapped_column(SmallInteger)
    slice: Mapped[str] = mapped_column(String(16))
    inclusion_probability: Mapped[float | None]
    reason: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(String(16), default="queued")
    clicks: Mapped[float | None]
    annotators: Mapped[int | None]
    disagreement: Mapped[float | None]
    vote_entropy: Mapped[float | None]


class QueuePlace(Base):
    """A queue's project or task on a labeling server: `place` is its id, and `pulled_until` the server's
    time up to which its labels have been imported. With an empty `url`, an exported folder."""

    __tablename__ = "queue_place"
    __table_args__ = (UniqueConstraint("queue_id", "tool", "url", "place"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    queue_id: Mapped[int] = mapped_column(ForeignKey("queue.id", ondelete="CASCADE"))
    tool: Mapped[str] = mapped_column(String(32))
    url: Mapped[str] = mapped_column(Text)
    place: Mapped[str] = mapped_column(Text)
    pushed_at: Mapped[datetime] = mapped_column(default=utc_now)
    pulled_until: Mapped[datetime | None]


class PoolEstimate(Base):
    """What the audit of a queue says about the pool: one document a queue, replaced when its labels change.
    `model_id` is the model whose scores made the queue, and `labels_hash` of the labels, the model and the
    settings that it rests on; empty where a file could not be read."""

    __tablename__ = "pool_estimate"

    queue_id: Mapped[int] = mapped_column(
        ForeignKey("queue.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    model_id: Mapped[int] = mapped_column(ForeignKey("model.id"))
    labels_hash: Mapped[str] = mapped_column(String(64))
    document: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
