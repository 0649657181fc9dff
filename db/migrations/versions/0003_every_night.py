# pyright: basic
"""Leases, of shards and of whole steps

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "lease",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("taken_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_lease")),
    )
    op.add_column("shard", sa.Column("owner", sa.Text(), nullable=True))
    op.add_column("shard", sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True))
    op.add_column("shard", sa.Column("attempts", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("shard", sa.Column("regions", sa.Integer(), nullable=False, server_default="0"))
    _allow("shard", "status", ["pending", "running", "done"])


def downgrade() -> None:
    op.execute("UPDATE shard SET status = 'pending' WHERE status = 'running'")
    _allow("shard", "status", ["pending", "done"])
    for column in ("regions", "attempts", "lease_until", "owner"):
        op.drop_column("shard", column)
    op.drop_table("lease")


def one_of(column: str, values: list[str]) -> str:
    listed = ", ".join(f"'{value}'" for value in values)
    return f"{column} IN ({listed})"


def _allow(table: str, column: str, values: list[str]) -> None:
    name = op.f(f"ck_{table}_{column}")
    with op.batch_alter_table(table) as batch:
        batch.drop_constraint(name, type_="check")
        batch.create_check_constraint(name, one_of(column, values))
