# pyright: basic
"""Versions of the held-out splits, and the classes of each mask

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

DOCUMENT = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
KEY = ("model_id", "split", "sampler", "calibrated")
KEY_OF_VERSION = ("model_id", "split", "split_version", "sampler", "calibrated")


def upgrade() -> None:
    """The splits that are locked are version 1, and so is what was measured on them."""
    op.add_column("project", sa.Column("open_splits", DOCUMENT, nullable=True))
    op.add_column("image", sa.Column("split_version", sa.Integer(), nullable=True))
    op.add_column("image", sa.Column("mask_classes", DOCUMENT, nullable=True))
    op.execute(
        "UPDATE image SET split_version = 1 WHERE split IN ('calibration', 'test') AND mask_uri IS NOT NULL"
        " AND EXISTS (SELECT 1 FROM project WHERE splits_locked_at IS NOT NULL)"
    )
    with op.batch_alter_table("evaluation") as batch:
        batch.add_column(sa.Column("split_version", sa.Integer(), nullable=False, server_default="1"))
        batch.drop_constraint(_name(KEY), type_="unique")
        batch.create_unique_constraint(_name(KEY_OF_VERSION), list(KEY_OF_VERSION))
    with op.batch_alter_table("evaluation") as batch:
        batch.alter_column("split_version", server_default=None)


def downgrade() -> None:
    """Of a model that was measured on several versions, the newest stays; waiting images join their split."""
    older = (
        "EXISTS (SELECT 1 FROM evaluation AS newer"
        " WHERE newer.model_id = evaluation.model_id AND newer.split = evaluation.split"
        " AND newer.sampler = evaluation.sampler AND newer.calibrated = evaluation.calibrated"
        " AND newer.split_version > evaluation.split_version)"
    )
    # SQLite enforces no foreign key in a migration, and so deletes no metric with its evaluation
    op.execute(f"DELETE FROM metric WHERE evaluation_id IN (SELECT id FROM evaluation WHERE {older})")
    op.execute(f"DELETE FROM evaluation WHERE {older}")
    with op.batch_alter_table("evaluation") as batch:
        batch.drop_constraint(_name(KEY_OF_VERSION), type_="unique")
        batch.create_unique_constraint(_name(KEY), list(KEY))
        batch.drop_column("split_version")
    op.drop_column("image", "mask_classes")
    op.drop_column("image", "split_version")
    op.drop_column("project", "open_splits")


def _name(columns: tuple[str, ...]) -> str:
    return op.f(f"uq_evaluation_{'_'.join(columns)}")
