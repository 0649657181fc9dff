# pyright: basic
"""How bright each scored image is, and its contrast: drift of the pixels is seen by them

Revision ID: 0011
Revises: 0010
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

COLUMNS = ("brightness", "contrast")


def upgrade() -> None:
    """Images that were scored before keep NULL: comparisons with them are without these two."""
    for name in COLUMNS:
        op.add_column("image_score", sa.Column(name, sa.REAL(), nullable=True))


def downgrade() -> None:
    """Both are lost."""
    for name in reversed(COLUMNS):
        op.drop_column("image_score", name)
