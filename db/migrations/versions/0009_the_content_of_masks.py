# pyright: basic
"""The content of each mask, so that a corrected one is told from one that was only copied

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Masks that were read before keep NULL; they count as corrected when their file is written again."""
    op.add_column("image", sa.Column("mask_sha256", sa.String(length=64), nullable=True))


def downgrade() -> None:
    op.drop_column("image", "mask_sha256")
