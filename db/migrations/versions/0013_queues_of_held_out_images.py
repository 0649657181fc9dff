# pyright: basic
"""Queues of held-out images

Revision ID: 0013
Revises: 0012
"""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

BEFORE = {"queue": ("kind", ["initial", "selected", "review"])}
BEFORE["queue_item"] = ("slice", ["initial", "selected", "audit", "review"])


def upgrade() -> None:
    for table, (column, values) in BEFORE.items():
        _allow(table, column, [*values, "held_out"])


def downgrade() -> None:
    """Queues of held-out images become reviews, the other kind that belongs to no round."""
    for table, (column, values) in BEFORE.items():
        op.execute(f"UPDATE {table} SET {column} = 'review' WHERE {column} = 'held_out'")
        _allow(table, column, values)


def _allow(table: str, column: str, values: list[str]) -> None:
    name, listed = op.f(f"ck_{table}_{column}"), ", ".join(f"'{value}'" for value in values)
    with op.batch_alter_table(table) as batch:
        batch.drop_constraint(name, type_="check")
        batch.create_check_constraint(name, f"{column} IN ({listed})")
