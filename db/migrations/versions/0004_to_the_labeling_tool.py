# pyright: basic
"""Where queues lie on labeling servers; effort, time, and how annotators agree; skipped regions

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

STATUSES = ["queued", "labeled", "released"]
OF_ITEM = {
    "clicks": sa.Double,
    "annotators": sa.Integer,
    "disagreement": sa.Double,
    "vote_entropy": sa.Double,
}
OF_LABEL = {"seconds": sa.Double, "origin": sa.Text}


def upgrade() -> None:
    op.create_table(
        "queue_place",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("queue_id", sa.Integer(), nullable=False),
        sa.Column("tool", sa.String(length=32), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("place", sa.Text(), nullable=False),
        sa.Column("pushed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("pulled_until", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["queue_id"], ["queue.id"], name=op.f("fk_queue_place_queue_id_queue"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_queue_place")),
        sa.UniqueConstraint(
            "queue_id", "tool", "url", "place", name=op.f("uq_queue_place_queue_id_tool_url_place")
        ),
    )
    for table, columns in (("queue_item", OF_ITEM), ("label", OF_LABEL)):
        for column, kind in columns.items():
            op.add_column(table, sa.Column(column, kind(), nullable=True))
    _allow([*STATUSES, "skipped"])


def downgrade() -> None:
    """What only this revision can say is lost; skipped regions count as released."""
    op.execute("UPDATE queue_item SET status = 'released' WHERE status = 'skipped'")
    _allow(STATUSES)
    for table, columns in (("queue_item", OF_ITEM), ("label", OF_LABEL)):
        for column in columns:
            op.drop_column(table, column)
    op.drop_table("queue_place")


def _allow(statuses: list[str]) -> None:
    name = op.f("ck_queue_item_status")
    listed = ", ".join(f"'{status}'" for status in statuses)
    with op.batch_alter_table("queue_item") as batch:
        batch.drop_constraint(name, type_="check")
        batch.create_check_constraint(name, f"status IN ({listed})")
