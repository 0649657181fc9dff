# pyright: basic
"""The class that a scored region counts for where a budget is split over classes

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TABLES = ("region_score", "image_score")


def upgrade() -> None:
    """Scores that are there keep NULL, which means their predicted class."""
    for table in TABLES:
        op.add_column(table, sa.Column("stratum", sa.SmallInteger(), nullable=True))
        op.add_column(table, sa.Column("stratum_share", sa.REAL(), nullable=True))


def downgrade() -> None:
    """The strata are lost."""
    for table in TABLES:
        op.drop_column(table, "stratum_share")
        op.drop_column(table, "stratum")
