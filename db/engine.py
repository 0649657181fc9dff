"""Opening the store, and its one way to hold a transaction.

The contract of the store, for every backend:

- `Database.session()` is the only way in. It commits when the block ends, rolls back when it raises, and
  closes always. A block is one transaction: either all that it wrote is there, or none of it.
- A session belongs to the thread that opened it; a `Database` may be shared by threads, never by forks.
- Rows that a finished step has written are changed by no other step, except for `status`, `state` and the
  `*_at` columns.
- A writer on SQLite takes the write lock when its transaction begins (`BEGIN IMMEDIATE`), so two writers
  wait for each other instead of failing half-way; readers never wait.
- A database at another revision than this code is refused, except for an empty one, which is filled.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, inspect
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from db import migrations
from db.errors import StoreError

BUSY_TIMEOUT_MS = 30_000


class Database:
    """A store at the current revision.

    Args:
        url: `sqlite:///path/to.db` or `postgresql+psycopg://user:password@host/name`.

    Raises:
        StoreError: the URL is not one of these, nothing answers there, or the database is at another
            revision than this code.
    """

    def __init__(self, url: str) -> None:
        self.engine = connect(url)
        migrations.prepare(self.engine)
        self._writer = self.engine.execution_options(begin="IMMEDIATE")

    @contextmanager
    def session(self, *, write: bool = True) -> Generator[Session]:
        """One transaction. `write=False` never waits for another writer on SQLite."""
        session = Session(self._writer if write else self.engine, expire_on_commit=False)
        try:
            yield session
            session.commit()
        except BaseException:
            session.rollback()
            raise
        finally:
            session.close()

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def connect(url: str) -> Engine:
    """An engine with the settings that the contract needs. Looks at no table.

    Raises:
        StoreError: the URL is malformed, of an unknown kind, or nothing answers there.
    """
    parsed = _parse(url)
    if parsed.get_backend_name() == "sqlite":
        if parsed.database and parsed.database != ":memory:":
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed)
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        engine = create_engine(parsed, pool_pre_ping=True)
    try:
        with engine.connect() as connection:
            inspect(connection).get_table_names()
    except DBAPIError as error:
        raise StoreError(
            f"The database {parsed.render_as_string(hide_password=True)} cannot be opened: {error.orig}.",
            "Check `database.url`, and that the server is up and the folder writable.",
        ) from error
    return engine


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
        parsed.get_dialect()
    except (ArgumentError, NoSuchModuleError) as error:
        raise StoreError(
            "`database.url` is not a database URL that segcurate knows.",
            "Write `sqlite:///segcurate.db` or `postgresql+psycopg://user@host/name`.",
        ) from error
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise StoreError(
            f"`database.url` names {parsed.get_backend_name()!r}, which segcurate does not support.",
            "Write `sqlite:///segcurate.db` or `postgresql+psycopg://user@host/name`.",
        )
    return parsed


def _configure_sqlite(connection: Any, _record: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # SQLAlchemy's `begin` event, not the driver, opens transactions
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=NORMAL",
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "foreign_keys=ON",
        "cache_size=-65536",
        "temp_store=MEMORY",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    mode = connection.get_execution_options().get("begin", "DEFERRED")
    connection.exec_driver_sql(f"BEGIN {mode}")
