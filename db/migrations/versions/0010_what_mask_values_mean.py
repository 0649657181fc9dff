# pyright: basic
"""What the values and colours of masks meant when they were read

Revision ID: 0010
Revises: 0009
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

DOCUMENT = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    """What values meant before is not known: NULL until the next ingest."""
    op.add_column("project", sa.Column("mask_values", DOCUMENT, nullable=True))


def downgrade() -> None:
    op.drop_column("project", "mask_values")
