"""Runs of scorers over the pool, and the scores of its regions and images."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    REAL,
    BigInteger,
    ForeignKey,
    Index,
    Integer,
    SmallInteger,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from db.base import BY_RUN, Base, BigId, one_of, utc_now


class ScoringRun(Base):
    """Everything that one scorer has scored. `scorer_hash` is the provenance of each of its rows; `summary`
    has the effect of calibration on their order, and the drift of the pool.

    Of a pruned run only this row is left, for the queues that were selected from it; it counts as
    unfinished, and its scorer scores into another run from then on.
    """

    __tablename__ = "scoring_run"
    __table_args__ = (
        Index(
            "uq_scoring_run_scorer_hash",
            "scorer_hash",
            unique=True,
            sqlite_where=text("pruned_at IS NULL"),
            postgresql_where=text("pruned_at IS NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("model.id"))
    scorer_hash: Mapped[str] = mapped_column(String(64))
    scorer: Mapped[dict[str, Any]]
    summary: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    finished_at: Mapped[datetime | None]
    pruned_at: Mapped[datetime | None]


class Shard(Base):
    """A contiguous range of image ids of one run: the unit of work, of commit and of repeat.

    `owner` is the worker that scores it or has scored it; the worker loses it when `lease_until` passes
    without a renewal. `attempts` counts how often it was claimed and not released; `regions` counts its rows.
    """

    __tablename__ = "shard"
    __table_args__ = (
        UniqueConstraint("run_id", "first_image_id"),
        one_of("status", "pending", "running", "done"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[int] = mapped_column(ForeignKey("scoring_run.id", ondelete="CASCADE"))
    first_image_id: Mapped[int] = mapped_column(BigInteger)
    last_image_id: Mapped[int] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(String(16), default="pending")
    owner: Mapped[str | None] = mapped_column(Text)
    lease_until: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(default=0, server_default="0")
    scored: Mapped[int] = mapped_column(default=0)
    regions: Mapped[int] = mapped_column(default=0, server_default="0")
    failed: Mapped[int] = mapped_column(default=0)
    finished_at: Mapped[datetime | None]


class Scores:
    """The common columns of regions and images; `sort_order` keeps the order of the key.

    `stratum` is the class that stratified strategies count a row for, with its share; NULL, which means the
    predicted class, for a model that does not know how frequent its classes are. `border` is the length of
    the borders between predicted classes, in image pixels; NULL where a former version scored.
    """

    run_id: Mapped[int] = mapped_column(primary_key=True, sort_order=-2)
    image_id: Mapped[int] = mapped_column(BigId, primary_key=True, sort_order=-1)
    pixels: Mapped[int]
    predicted_class: Mapped[int] = mapped_column(SmallInteger)
    class_share: Mapped[float] = mapped_column(REAL)
    stratum: Mapped[int | None] = mapped_column(SmallInteger, sort_order=1)
    stratum_share: Mapped[float | None] = mapped_column(REAL, sort_order=1)
    border: Mapped[float | None] = mapped_column(REAL, sort_order=1)
    impurity: Mapped[float] = mapped_column(REAL)
    least_confidence: Mapped[float] = mapped_column(REAL)
    margin: Mapped[float] = mapped_column(REAL)
    entropy: Mapped[float] = mapped_column(REAL)
    expected_entropy: Mapped[float | None] = mapped_column(REAL)
    mutual_information: Mapped[float | None] = mapped_column(REAL)
    variation_ratio: Mapped[float | None] = mapped_column(REAL)
    energy: Mapped[float] = mapped_column(REAL)
    max_logit: Mapped[float] = mapped_column(REAL)
    max_logit_norm: Mapped[float | None] = mapped_column(REAL)
    entropy_top10: Mapped[float] = mapped_column(REAL)


class RegionScore(Scores, Base):
    """A row a region: its box in image pixels, its predicted class, and the mean of each measure.

    No foreign key: checking one costs more than writing the row, and neither images nor runs are deleted.
    On SQLite the rows lie in the order of their key; on PostgreSQL each run is a partition.

    `outline` is the region's mask of the box's size in COCO's compressed run-length encoding; NULL where the
    region fills its box.
    """

    __tablename__ = "region_score"
    __table_args__ = (BY_RUN,)

    region_index: Mapped[int] = mapped_column(Integer, primary_key=True)
    x: Mapped[int]
    y: Mapped[int]
    w: Mapped[int]
    h: Mapped[int]
    outline: Mapped[str | None] = mapped_column(Text, sort_order=1)


class ImageScore(Scores, Base):
    """A row an image: each measure is the mean over the image's top quarter of regions by that measure.

    `entropy_max` is the highest entropy of its rows in `region_score`: the regions at the top of a run are
    found through it, without an index of all regions, which would halve the rate of writing. `brightness` and
    `contrast` are of the pixels that the network saw; NULL where a former version scored the image.
    """

    __tablename__ = "image_score"
    __table_args__ = (
        Index("ix_image_score_top", "run_id", "entropy"),
        Index("ix_image_score_peak", "run_id", "entropy_max"),
        BY_RUN,
    )

    regions: Mapped[int]
    entropy_max: Mapped[float | None] = mapped_column(REAL, sort_order=1)
    heatmaps: Mapped[dict[str, Any] | None] = mapped_column(sort_order=1)
    brightness: Mapped[float | None] = mapped_column(REAL, sort_order=1)
    contrast: Mapped[float | None] = mapped_column(REAL, sort_order=1)
