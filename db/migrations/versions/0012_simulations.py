# pyright: basic
"""Simulated labeling: strategies compared on a project whose images have masks

Revision ID: 0012
Revises: 0011
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

DOCUMENT = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "simulation",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("settings", DOCUMENT, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_simulation")),
        sa.UniqueConstraint("hash", name=op.f("uq_simulation_hash")),
    )
    op.create_table(
        "simulation_cell",
        sa.Column("simulation_id", sa.Integer(), nullable=False),
        sa.Column("strategy", sa.String(length=48), nullable=False),
        sa.Column("seed", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("budget", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("document", DOCUMENT, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["simulation_id"],
            ["simulation.id"],
            name=op.f("fk_simulation_cell_simulation_id_simulation"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "simulation_id", "strategy", "seed", "budget", name=op.f("pk_simulation_cell")
        ),
    )


def downgrade() -> None:
    op.drop_table("simulation_cell")
    op.drop_table("simulation")
