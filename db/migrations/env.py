"""Run by Alembic; the engine comes from `db.migrations.alembic_config`."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Engine

from db.tables import Base

engine: Engine = context.config.attributes["engine"]

with engine.begin() as connection:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()
