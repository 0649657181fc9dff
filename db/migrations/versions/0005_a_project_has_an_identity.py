# pyright: basic
"""The id of the project that the database belongs to, beside its name

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

from uuid import uuid4

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """A project that has ingested images keeps its name; another is named by the first command."""
    op.create_table(
        "identity",
        sa.Column("key", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.CheckConstraint("key = 1", name=op.f("ck_identity_single_row")),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_identity")),
    )
    op.execute(f"INSERT INTO identity (key, id, name) SELECT 1, '{uuid4().hex}', name FROM project")
    op.drop_column("project", "name")


def downgrade() -> None:
    """The id is lost."""
    op.add_column("project", sa.Column("name", sa.String(length=200), nullable=False, server_default=""))
    op.execute("UPDATE project SET name = (SELECT name FROM identity) WHERE EXISTS (SELECT 1 FROM identity)")
    with op.batch_alter_table("project") as batch:
        batch.alter_column("name", server_default=None)
    op.drop_table("identity")
