# pyright: basic
"""The first schema

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "failure",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("step", sa.String(length=32), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_failure")),
        sa.UniqueConstraint("step", "subject", name=op.f("uq_failure_step_subject")),
    )
    op.create_table(
        "image",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("channels", sa.Integer(), nullable=False),
        sa.Column("group_name", sa.Text(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("split", sa.String(length=16), nullable=False),
        sa.Column("mask_uri", sa.Text(), nullable=True),
        sa.Column("duplicate_of", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("ingested_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("split IN ('pool', 'calibration', 'test', 'guard')", name=op.f("ck_image_split")),
        sa.ForeignKeyConstraint(["duplicate_of"], ["image.id"], name=op.f("fk_image_duplicate_of_image")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_image")),
        sa.UniqueConstraint("uri", name=op.f("uq_image_uri")),
    )
    with op.batch_alter_table("image", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_image_sha256"), ["sha256"], unique=False)
        batch_op.create_index(batch_op.f("ix_image_split_id"), ["split", "id"], unique=False)

    op.create_table(
        "project",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("class_names", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.Column("channels", sa.Integer(), nullable=False),
        sa.Column("splits_config", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=True),
        sa.Column("splits_locked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_project")),
    )
    op.create_table(
        "round",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('train', 'calibrate', 'evaluate', 'score', 'select', 'export', 'import', 'closed')",
            name=op.f("ck_round_state"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_round")),
        sa.UniqueConstraint("number", name=op.f("uq_round_number")),
    )
    op.create_table(
        "model",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("round_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("parent_id", sa.Integer(), nullable=True),
        sa.Column("checkpoint_uri", sa.Text(), nullable=False),
        sa.Column("checkpoint_sha256", sa.String(length=64), nullable=True),
        sa.Column("config", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.Column("config_hash", sa.String(length=64), nullable=False),
        sa.Column("labels_hash", sa.String(length=64), nullable=False),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("iterations", sa.Integer(), nullable=False),
        sa.Column("decision", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "status IN ('training', 'trained', 'promoted', 'refused')", name=op.f("ck_model_status")
        ),
        sa.ForeignKeyConstraint(["parent_id"], ["model.id"], name=op.f("fk_model_parent_id_model")),
        sa.ForeignKeyConstraint(["round_id"], ["round.id"], name=op.f("fk_model_round_id_round")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model")),
        sa.UniqueConstraint("name", name=op.f("uq_model_name")),
        sa.UniqueConstraint("round_id", name=op.f("uq_model_round_id")),
    )
    op.create_table(
        "calibration",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("sampler", sa.String(length=32), nullable=False),
        sa.Column("calibrator", sa.String(length=32), nullable=False),
        sa.Column("parameters", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.Column("nll_before", sa.Double(), nullable=True),
        sa.Column("nll_after", sa.Double(), nullable=True),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("pixels", sa.BigInteger(), nullable=False),
        sa.Column("warning", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_calibration_model_id_model")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_calibration")),
        sa.UniqueConstraint("model_id", "sampler", name=op.f("uq_calibration_model_id_sampler")),
    )
    op.create_table(
        "evaluation",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("split", sa.String(length=16), nullable=False),
        sa.Column("sampler", sa.String(length=32), nullable=False),
        sa.Column("calibrated", sa.Boolean(), nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("blocks", sa.Integer(), nullable=False),
        sa.Column("curves", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("split IN ('calibration', 'test')", name=op.f("ck_evaluation_split")),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_evaluation_model_id_model")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluation")),
        sa.UniqueConstraint(
            "model_id",
            "split",
            "sampler",
            "calibrated",
            name=op.f("uq_evaluation_model_id_split_sampler_calibrated"),
        ),
    )
    op.create_table(
        "scoring_run",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("scorer_hash", sa.String(length=64), nullable=False),
        sa.Column("scorer", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_scoring_run_model_id_model")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scoring_run")),
        sa.UniqueConstraint("scorer_hash", name=op.f("uq_scoring_run_scorer_hash")),
    )
    op.create_table(
        "image_score",
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("image_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("regions", sa.Integer(), nullable=False),
        sa.Column("pixels", sa.Integer(), nullable=False),
        sa.Column("predicted_class", sa.SmallInteger(), nullable=False),
        sa.Column("class_share", sa.REAL(), nullable=False),
        sa.Column("impurity", sa.REAL(), nullable=False),
        sa.Column("least_confidence", sa.REAL(), nullable=False),
        sa.Column("margin", sa.REAL(), nullable=False),
        sa.Column("entropy", sa.REAL(), nullable=False),
        sa.Column("expected_entropy", sa.REAL(), nullable=True),
        sa.Column("mutual_information", sa.REAL(), nullable=True),
        sa.Column("energy", sa.REAL(), nullable=False),
        sa.Column("max_logit", sa.REAL(), nullable=False),
        sa.Column("entropy_top10", sa.REAL(), nullable=False),
        sa.Column("heatmaps", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=True),
        sa.ForeignKeyConstraint(["image_id"], ["image.id"], name=op.f("fk_image_score_image_id_image")),
        sa.ForeignKeyConstraint(
            ["run_id"], ["scoring_run.id"], name=op.f("fk_image_score_run_id_scoring_run"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", "image_id", name=op.f("pk_image_score")),
    )
    with op.batch_alter_table("image_score", schema=None) as batch_op:
        batch_op.create_index("ix_image_score_top", ["run_id", "entropy"], unique=False)

    op.create_table(
        "metric",
        sa.Column("evaluation_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=48), nullable=False),
        sa.Column("class_index", sa.Integer(), nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("low", sa.Double(), nullable=True),
        sa.Column("high", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["evaluation_id"],
            ["evaluation.id"],
            name=op.f("fk_metric_evaluation_id_evaluation"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("evaluation_id", "name", "class_index", name=op.f("pk_metric")),
    )
    op.create_table(
        "queue",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("round_id", sa.Integer(), nullable=True),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=True),
        sa.Column("strategy", sa.String(length=48), nullable=False),
        sa.Column("unit", sa.String(length=16), nullable=False),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("spec", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.Column("export_uri", sa.Text(), nullable=True),
        sa.Column("exported_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("kind IN ('initial', 'selected')", name=op.f("ck_queue_kind")),
        sa.ForeignKeyConstraint(["round_id"], ["round.id"], name=op.f("fk_queue_round_id_round")),
        sa.ForeignKeyConstraint(
            ["run_id"], ["scoring_run.id"], name=op.f("fk_queue_run_id_scoring_run"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_queue")),
        sa.UniqueConstraint("name", name=op.f("uq_queue_name")),
        sa.UniqueConstraint("round_id", name=op.f("uq_queue_round_id")),
    )
    op.create_table(
        "region_score",
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("image_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("region_index", sa.Integer(), nullable=False),
        sa.Column("x", sa.Integer(), nullable=False),
        sa.Column("y", sa.Integer(), nullable=False),
        sa.Column("w", sa.Integer(), nullable=False),
        sa.Column("h", sa.Integer(), nullable=False),
        sa.Column("pixels", sa.Integer(), nullable=False),
        sa.Column("predicted_class", sa.SmallInteger(), nullable=False),
        sa.Column("class_share", sa.REAL(), nullable=False),
        sa.Column("impurity", sa.REAL(), nullable=False),
        sa.Column("least_confidence", sa.REAL(), nullable=False),
        sa.Column("margin", sa.REAL(), nullable=False),
        sa.Column("entropy", sa.REAL(), nullable=False),
        sa.Column("expected_entropy", sa.REAL(), nullable=True),
        sa.Column("mutual_information", sa.REAL(), nullable=True),
        sa.Column("energy", sa.REAL(), nullable=False),
        sa.Column("max_logit", sa.REAL(), nullable=False),
        sa.Column("entropy_top10", sa.REAL(), nullable=False),
        sa.ForeignKeyConstraint(["image_id"], ["image.id"], name=op.f("fk_region_score_image_id_image")),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["scoring_run.id"],
            name=op.f("fk_region_score_run_id_scoring_run"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("run_id", "image_id", "region_index", name=op.f("pk_region_score")),
    )
    with op.batch_alter_table("region_score", schema=None) as batch_op:
        batch_op.create_index("ix_region_score_top", ["run_id", "entropy"], unique=False)

    op.create_table(
        "shard",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("first_image_id", sa.BigInteger(), nullable=False),
        sa.Column("last_image_id", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("scored", sa.Integer(), nullable=False),
        sa.Column("failed", sa.Integer(), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("status IN ('pending', 'done')", name=op.f("ck_shard_status")),
        sa.ForeignKeyConstraint(
            ["run_id"], ["scoring_run.id"], name=op.f("fk_shard_run_id_scoring_run"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_shard")),
        sa.UniqueConstraint("run_id", "first_image_id", name=op.f("uq_shard_run_id_first_image_id")),
    )
    op.create_table(
        "label",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("image_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("queue_id", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("mask_uri", sa.Text(), nullable=False),
        sa.Column("mask_sha256", sa.String(length=64), nullable=False),
        sa.Column("labeled_pixels", sa.Integer(), nullable=False),
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column("annotator", sa.Text(), nullable=True),
        sa.Column("labeled_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("source IN ('initial', 'import', 'simulation')", name=op.f("ck_label_source")),
        sa.ForeignKeyConstraint(["image_id"], ["image.id"], name=op.f("fk_label_image_id_image")),
        sa.ForeignKeyConstraint(["queue_id"], ["queue.id"], name=op.f("fk_label_queue_id_queue")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_label")),
        sa.UniqueConstraint(
            "image_id", "queue_id", "version", name=op.f("uq_label_image_id_queue_id_version")
        ),
    )
    op.create_table(
        "queue_item",
        sa.Column(
            "id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("queue_id", sa.Integer(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("image_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("region_index", sa.Integer(), nullable=False),
        sa.Column("x", sa.Integer(), nullable=False),
        sa.Column("y", sa.Integer(), nullable=False),
        sa.Column("w", sa.Integer(), nullable=False),
        sa.Column("h", sa.Integer(), nullable=False),
        sa.Column("measure", sa.String(length=48), nullable=True),
        sa.Column("score", sa.Double(), nullable=True),
        sa.Column("predicted_class", sa.SmallInteger(), nullable=True),
        sa.Column("slice", sa.String(length=16), nullable=False),
        sa.Column("inclusion_probability", sa.Double(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.CheckConstraint("slice IN ('initial', 'selected', 'audit')", name=op.f("ck_queue_item_slice")),
        sa.CheckConstraint("status IN ('queued', 'labeled', 'released')", name=op.f("ck_queue_item_status")),
        sa.ForeignKeyConstraint(["image_id"], ["image.id"], name=op.f("fk_queue_item_image_id_image")),
        sa.ForeignKeyConstraint(
            ["queue_id"], ["queue.id"], name=op.f("fk_queue_item_queue_id_queue"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_queue_item")),
        sa.UniqueConstraint(
            "queue_id", "image_id", "x", "y", "w", "h", name=op.f("uq_queue_item_queue_id_image_id_x_y_w_h")
        ),
        sa.UniqueConstraint("queue_id", "rank", name=op.f("uq_queue_item_queue_id_rank")),
    )
    with op.batch_alter_table("queue_item", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_queue_item_image_id"), ["image_id"], unique=False)

    op.create_table(
        "label_region",
        sa.Column("label_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("x", sa.Integer(), nullable=False),
        sa.Column("y", sa.Integer(), nullable=False),
        sa.Column("w", sa.Integer(), nullable=False),
        sa.Column("h", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["label_id"], ["label.id"], name=op.f("fk_label_region_label_id_label"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("label_id", "x", "y", "w", "h", name=op.f("pk_label_region")),
    )
    op.create_table(
        "model_label",
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("label_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.ForeignKeyConstraint(["label_id"], ["label.id"], name=op.f("fk_model_label_label_id_label")),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_model_label_model_id_model")),
        sa.PrimaryKeyConstraint("model_id", "label_id", name=op.f("pk_model_label")),
    )


def downgrade() -> None:
    op.drop_table("model_label")
    op.drop_table("label_region")
    with op.batch_alter_table("queue_item", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_queue_item_image_id"))

    op.drop_table("queue_item")
    op.drop_table("label")
    op.drop_table("shard")
    with op.batch_alter_table("region_score", schema=None) as batch_op:
        batch_op.drop_index("ix_region_score_top")

    op.drop_table("region_score")
    op.drop_table("queue")
    op.drop_table("metric")
    with op.batch_alter_table("image_score", schema=None) as batch_op:
        batch_op.drop_index("ix_image_score_top")

    op.drop_table("image_score")
    op.drop_table("scoring_run")
    op.drop_table("evaluation")
    op.drop_table("calibration")
    op.drop_table("model")
    op.drop_table("round")
    op.drop_table("project")
    with op.batch_alter_table("image", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_image_split_id"))
        batch_op.drop_index(batch_op.f("ix_image_sha256"))

    op.drop_table("image")
    op.drop_table("failure")
