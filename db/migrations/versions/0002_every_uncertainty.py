# pyright: basic
"""Outlines of regions, two more measures, reports of calibrators, assessments

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

DOCUMENT = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
MEASURES = ("variation_ratio", "max_logit_norm")
KINDS = ["initial", "selected"]
SLICES = ["initial", "selected", "audit"]
ITEM = ["queue_id", "image_id", "x", "y", "w", "h"]
REGION = ["label_id", "x", "y", "w", "h"]


def upgrade() -> None:
    for table in ("region_score", "image_score"):
        for measure in MEASURES:
            op.add_column(table, sa.Column(measure, sa.REAL(), nullable=True))
    op.add_column("region_score", sa.Column("outline", sa.Text(), nullable=True))
    op.add_column("scoring_run", sa.Column("summary", DOCUMENT, nullable=True))
    op.add_column("calibration", sa.Column("report", DOCUMENT, nullable=True))
    op.add_column("calibration", sa.Column("passed", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_table(
        "assessment",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("document", DOCUMENT, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(one_of("kind", ["quality", "stress", "novelty"]), name=op.f("ck_assessment_kind")),
        sa.ForeignKeyConstraint(["model_id"], ["model.id"], name=op.f("fk_assessment_model_id_model")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_assessment")),
        sa.UniqueConstraint("model_id", "kind", name=op.f("uq_assessment_model_id_kind")),
    )
    _allow("queue", "kind", [*KINDS, "review"])
    _allow("queue_item", "slice", [*SLICES, "review"])
    _identify_items([*ITEM, "region_index"])
    op.add_column("queue_item", sa.Column("outline", sa.Text(), nullable=True))
    op.add_column("label_region", sa.Column("region_index", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("label_region", sa.Column("outline", sa.Text(), nullable=True))
    _identify_regions([*REGION, "region_index"])


def downgrade() -> None:
    """What only this revision can say is lost: reviews, outlines, assessments, and regions of one box."""
    op.execute(_beside("label_region", REGION))
    _identify_regions(REGION)
    reviews = "SELECT id FROM queue WHERE kind = 'review'"
    labels = f"SELECT id FROM label WHERE queue_id IN ({reviews})"
    for table, column, doomed in (
        ("label_region", "label_id", labels),
        ("model_label", "label_id", labels),
        ("label", "queue_id", reviews),
        ("queue_item", "queue_id", reviews),
    ):
        op.execute(f"DELETE FROM {table} WHERE {column} IN ({doomed})")
    op.execute("DELETE FROM queue WHERE kind = 'review'")
    op.execute(_beside("queue_item", ITEM))
    _identify_items(ITEM)
    _allow("queue_item", "slice", SLICES)
    _allow("queue", "kind", KINDS)
    op.drop_table("assessment")
    for table, columns in (
        ("label_region", ["outline", "region_index"]),
        ("queue_item", ["outline"]),
        ("calibration", ["passed", "report"]),
        ("scoring_run", ["summary"]),
        ("region_score", ["outline", *MEASURES]),
        ("image_score", list(MEASURES)),
    ):
        for column in columns:
            op.drop_column(table, column)


def one_of(column: str, values: list[str]) -> str:
    listed = ", ".join(f"'{value}'" for value in values)
    return f"{column} IN ({listed})"


def _beside(table: str, columns: list[str]) -> str:
    """All but the first of the regions that share a box."""
    same = " AND ".join(f"other.{column} = {table}.{column}" for column in columns)
    return (
        f"DELETE FROM {table} WHERE region_index >"
        f" (SELECT MIN(other.region_index) FROM {table} other WHERE {same})"
    )


def _allow(table: str, column: str, values: list[str]) -> None:
    name = op.f(f"ck_{table}_{column}")
    with op.batch_alter_table(table) as batch:
        batch.drop_constraint(name, type_="check")
        batch.create_check_constraint(name, one_of(column, values))


def _identify_items(columns: list[str]) -> None:
    longer = len(columns) > len(ITEM)
    before = ITEM if longer else [*ITEM, "region_index"]
    with op.batch_alter_table("queue_item") as batch:
        batch.drop_constraint(op.f("uq_queue_item_" + "_".join(before)), type_="unique")
        batch.create_unique_constraint(op.f("uq_queue_item_" + "_".join(columns)), columns)


def _identify_regions(columns: list[str]) -> None:
    with op.batch_alter_table("label_region") as batch:
        batch.drop_constraint(op.f("pk_label_region"), type_="primary")
        batch.create_primary_key(op.f("pk_label_region"), columns)
