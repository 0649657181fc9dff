"""Every table of the store, and nothing else.

Each table has a natural unique key, so that every insert can be repeated; times are UTC; URIs are POSIX
paths relative to the project's folder where the file lies inside it, absolute otherwise. The two score
tables are written in bulk by `db.queries.scores`; the others are small and are used through the ORM.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    REAL,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    Integer,
    SmallInteger,
    String,
    Text,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from db.base import BY_RUN, Base, BigId, one_of, utc_now


class Identity(Base):
    """One row: which project the database belongs to. `id` never changes; `name` is the configuration's."""

    __tablename__ = "identity"
    __table_args__ = (CheckConstraint("key = 1", name="single_row"),)

    key: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    id: Mapped[str] = mapped_column(String(32))
    name: Mapped[str] = mapped_column(Text)


class Project(Base):
    """One row: the settings that must not change after the first ingest. `open_splits` says of each held-out
    split without a version what it still needs."""

    __tablename__ = "project"

    id: Mapped[int] = mapped_column(primary_key=True)
    class_names: Mapped[list[Any]]
    channels: Mapped[int]
    splits_config: Mapped[dict[str, Any] | None]
    splits_locked_at: Mapped[datetime | None]
    open_splits: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Image(Base):
    """A readable image; `width`, `height` are those after EXIF orientation.

    A held-out image is measured on from a version of its split on, `split_version`; before that, it waits.
    `mask_classes` are the indices of the classes in its mask; NULL where they are not known.
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


class Lease(Base):
    """Work that one process at a time may do. The owner renews `until`; after that time any process may take
    the lease."""

    __tablename__ = "lease"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    owner: Mapped[str] = mapped_column(Text)
    taken_at: Mapped[datetime]
    until: Mapped[datetime]


class Scores:
    """The common columns of regions and images; `sort_order` keeps the order of the key.

    `stratum` is the class that stratified strategies count a row for, with its share; NULL, which means the
    predicted class, for a model that does not know how frequent its classes are.
    """

    run_id: Mapped[int] = mapped_column(primary_key=True, sort_order=-2)
    image_id: Mapped[int] = mapped_column(BigId, primary_key=True, sort_order=-1)
    pixels: Mapped[int]
    predicted_class: Mapped[int] = mapped_column(SmallInteger)
    class_share: Mapped[float] = mapped_column(REAL)
    stratum: Mapped[int | None] = mapped_column(SmallInteger, sort_order=1)
    stratum_share: Mapped[float | None] = mapped_column(REAL, sort_order=1)
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
    found through it, without an index of all regions, which would halve the rate of writing.
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


class Queue(Base):
    """An ordered labeling list. `kind` is `initial` for the first labels of a project, and `review` for
    labels that the model contradicts."""

    __tablename__ = "queue"
    __table_args__ = (
        UniqueConstraint("round_id"),
        UniqueConstraint("name"),
        one_of("kind", "initial", "selected", "review"),
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
        one_of("slice", "initial", "selected", "audit", "review"),
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


class Label(Base):
    """An imported mask for one image of one queue: index PNG, 255 for unlabeled pixels.

    A correction is the next version. The newest version of each annotator is in force; the training mask of
    an image is made of its labels in force, in the order of queue id and version. `seconds` is the
    annotator's time, and `origin` the labeling tool's id of the annotation; NULL where unknown.
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
