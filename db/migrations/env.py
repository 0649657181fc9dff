"""Run by Alembic; the engine comes from `db.migrations.alembic_config`."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, Engine

from db.migrations import is_declared
from db.tables import Base

engine: Engine = context.config.attributes["engine"]
on_sqlite = engine.dialect.name == "sqlite"


def enforce_foreign_keys(connection: Connection, on: bool) -> None:
    """Switch SQLite's foreign keys on or off: it changes a table by copying it, which would delete rows that
    refer to it. The setting only changes outside a transaction, so before SQLAlchemy begins one."""
    if on_sqlite:
        connection.connection.cursor().execute(f"PRAGMA foreign_keys={'ON' if on else 'OFF'}")


with engine.connect() as connection:
    enforce_foreign_keys(connection, False)
    try:
        with connection.begin():
            context.configure(
                connection=connection,
                target_metadata=Base.metadata,
                include_name=is_declared,
                render_as_batch=on_sqlite,
            )
            with context.begin_transaction():
                context.run_migrations()
            if on_sqlite and connection.exec_driver_sql("PRAGMA foreign_key_check").first() is not None:
                raise RuntimeError("The migration would leave a row that refers to nothing.")
    finally:
        enforce_foreign_keys(connection, True)
