# pyright: basic
"""How long the borders between predicted classes are in a region, which its labeling costs clicks for

Revision ID: 0014
Revises: 0013
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

TABLES = ("region_score", "image_score")


def upgrade() -> None:
    """Scores that are there keep NULL: selection by cost needs newer ones."""
    for table in TABLES:
        op.add_column(table, sa.Column("border", sa.REAL(), nullable=True))


def downgrade() -> None:
    """The lengths are lost."""
    for table in TABLES:
        op.drop_column(table, "border")
