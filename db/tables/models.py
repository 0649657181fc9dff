"""Rounds, the models that they train, and what is measured on these."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, String, Text, UniqueConstraint, false
from sqlalchemy.orm import Mapped, mapped_column

from db.base import Base, BigId, one_of, utc_now


class Round(Base):
    """One round. `state` is the step that comes next, or `closed`."""

    __tablename__ = "round"
    __table_args__ = (
        UniqueConstraint("number"),
        one_of(
            "state",
            "train",
            "calibrate",
            "evaluate",
            "score",
            "select",
            "export",
            "import",
            "closed",
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))
    started_at: Mapped[datetime] = mapped_column(default=utc_now)
    closed_at: Mapped[datetime | None]


class Model(Base):
    """A trained network and its lineage. One a round."""

    __tablename__ = "model"
    __table_args__ = (
        UniqueConstraint("round_id"),
        UniqueConstraint("name"),
        one_of("status", "training", "trained", "promoted", "refused"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    round_id: Mapped[int] = mapped_column(ForeignKey("round.id"))
    name: Mapped[str] = mapped_column(String(64))
    status: Mapped[str] = mapped_column(String(16))
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("model.id"))
    checkpoint_uri: Mapped[str] = mapped_column(Text)
    checkpoint_sha256: Mapped[str | None] = mapped_column(String(64))
    config: Mapped[dict[str, Any]]
    config_hash: Mapped[str] = mapped_column(String(64))
    labels_hash: Mapped[str] = mapped_column(String(64))
    seed: Mapped[int]
    iterations: Mapped[int]
    decision: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    finished_at: Mapped[datetime | None]


class ModelLabel(Base):
    """The labels that a model was trained on."""

    __tablename__ = "model_label"

    model_id: Mapped[int] = mapped_column(ForeignKey("model.id"), primary_key=True)
    label_id: Mapped[int] = mapped_column(BigId, ForeignKey("label.id"), primary_key=True)


class Calibration(Base):
    """A fitted calibrator of one model and one sampler. `parameters` are the calibrator's.

    `report` compares all calibrators on images that they were not fitted on; `passed` means that
    the calibrated softmax score is a probability.
    """

    __tablename__ = "calibration"
    __table_args__ = (UniqueConstraint("model_id", "sampler"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("model.id"))
    sampler: Mapped[str] = mapped_column(String(32))
    calibrator: Mapped[str] = mapped_column(String(32))
    parameters: Mapped[dict[str, Any]]
    nll_before: Mapped[float | None]
    nll_after: Mapped[float | None]
    images: Mapped[int]
    pixels: Mapped[int] = mapped_column(BigInteger)
    warning: Mapped[str | None] = mapped_column(Text)
    report: Mapped[dict[str, Any] | None]
    passed: Mapped[bool] = mapped_column(default=False, server_default=false())
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Assessment(Base):
    """The results on one model's uncertainty: one document of each kind, replaced by the next result."""

    __tablename__ = "assessment"
    __table_args__ = (
        UniqueConstraint("model_id", "kind"),
        one_of("kind", "quality", "stress", "novelty"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("model.id"))
    kind: Mapped[str] = mapped_column(String(16))
    document: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Evaluation(Base):
    """One model on one version of a split, with one sampler, before or after calibration."""

    __tablename__ = "evaluation"
    __table_args__ = (
        UniqueConstraint("model_id", "split", "split_version", "sampler", "calibrated"),
        one_of("split", "calibration", "test"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("model.id"))
    split: Mapped[str] = mapped_column(String(16))
    split_version: Mapped[int] = mapped_column(default=1)
    sampler: Mapped[str] = mapped_column(String(32))
    calibrated: Mapped[bool]
    images: Mapped[int]
    blocks: Mapped[int]
    curves: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Metric(Base):
    """A number of an evaluation and its interval. `class_index` is −1 for a number over all classes;
    `value` is NULL where it is not defined (a class that is in neither mask nor prediction)."""

    __tablename__ = "metric"

    evaluation_id: Mapped[int] = mapped_column(
        ForeignKey("evaluation.id", ondelete="CASCADE"), primary_key=True
    )
    name: Mapped[str] = mapped_column(String(48), primary_key=True)
    class_index: Mapped[int] = mapped_column(primary_key=True, default=-1)
    value: Mapped[float | None]
    low: Mapped[float | None]
    high: Mapped[float | None]
