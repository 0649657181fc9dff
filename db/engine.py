"""Opening the store, and its one way to hold a transaction.

The contract of the store, for every backend:

- `Database.session()` is the only way in. It commits when the block ends, rolls back when it raises, and
  closes always. A block is one transaction: either all that it wrote is there, or none of it.
- A session belongs to the thread that opened it; a `Database` may be shared by threads, never by forks.
- Rows that a finished step has written are changed by no other step, except for `status`, `state` and the
  `*_at` columns.
- A writer on SQLite takes the write lock when its transaction begins (`BEGIN IMMEDIATE`), so two writers
  wait for each other instead of failing half-way; readers never wait.
- Every table has a natural unique key, so that a step that was killed may run again: nothing is lost, and
  nothing is there twice.
- A value that is made from what a row holds is read under the row's lock (`FOR UPDATE`), and read anew,
  because PostgreSQL lets another transaction change the row until then. A shard of scores is one transaction.
- A block that only reads says so (`write=False`), or it waits for every writer on SQLite.
- A database at another revision than this code is refused, except for an empty one, which is filled.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

from sqlalchemy import Engine, create_engine, event, inspect
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from db import migrations
from db.errors import StoreError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

BUSY_TIMEOUT_MS = 30_000
PAGE_SIZE = 8192
"""Bytes; scores are written a tenth faster than with SQLite's 4096."""
PATIENCE = 120.0
"""Seconds for which a server that is restarted is waited for."""
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
POSTGRESQL = {"connect_timeout": 10, "application_name": "segcurate"}
"""Of each connection, where the URL says nothing else."""
SECRETS = ("password", "sslpassword")
"""Secret parameters behind the `?` of a URL."""
RECYCLE_SECONDS = 1800
"""Firewalls forget a connection that is silent for longer."""
GONE = ("08", "57P")
"""SQLSTATE classes of PostgreSQL: connection exceptions, and a server that shuts down or is starting up."""


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
    def session(self, *, write: bool = True, patience: float = PATIENCE) -> Generator[Session]:
        """One transaction. `write=False` never waits for another writer on SQLite.

        Args:
            patience: seconds for which a server that is gone is asked again before the block begins.
        """
        session = Session(self._writer if write else self.engine, expire_on_commit=False)
        try:
            if self.engine.dialect.name != "sqlite":
                _patiently(session.connection, patience=patience)
            yield session
            session.commit()
        except BaseException:
            session.rollback()
            raise
        finally:
            session.close()

    def transact(
        self, work: Callable[[Session], Result], *, write: bool = True, patience: float = PATIENCE
    ) -> Result:
        """Do `work` in a transaction of its own, and again when the connection to the server was lost.

        Args:
            work: may run several times, but only the last one is committed; or, where the connection broke
                while it was committed, perhaps the one before too, so it must be repeatable.
            write: as for `session`.
            patience: seconds for which a server that is gone is asked again.

        Raises:
            DBAPIError: the server stayed away, or something else went wrong.
        """

        def once() -> Result:
            with self.session(write=write, patience=0.0) as session:
                return work(session)

        return _patiently(once, patience=patience)

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()


def _patiently(work: Callable[[], Result], *, patience: float) -> Result:
    give_up_at = time.monotonic() + patience
    pause = FIRST_PAUSE
    while True:
        try:
            return work()
        except DBAPIError as error:
            if not connection_lost(error) or time.monotonic() + pause > give_up_at:
                raise
            logger.warning("The database is gone; asking again in %.1f s.", pause)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def connection_lost(error: DBAPIError) -> bool:
    """Whether the server went away, is starting, or cannot be reached just now: another try may work."""
    if error.connection_invalidated:
        return True
    if not isinstance(error, OperationalError) or not hasattr(error.orig, "sqlstate"):  # SQLite has no server
        return False
    state: str | None = getattr(error.orig, "sqlstate", None)
    return state is None or state.startswith(GONE)  # None: no server answered


def lock_refused(error: DBAPIError) -> bool:
    """Whether PostgreSQL gave up waiting for a lock, as `lock_timeout` has it."""
    return getattr(error.orig, "sqlstate", None) == "55P03"


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
        settings = {name: value for name, value in POSTGRESQL.items() if name not in parsed.query}
        engine = create_engine(
            parsed, pool_pre_ping=True, pool_recycle=RECYCLE_SECONDS, connect_args=settings
        )
    try:
        with engine.connect() as connection:
            inspect(connection).get_table_names()
    except DBAPIError as error:
        raise StoreError(
            f"The database {_shown(parsed)} cannot be opened: {_without_secrets(str(error.orig), parsed)}.",
            "Check `database.url`, and that the server is up, or the folder writable and its disk not full.",
        ) from None  # the driver's words may hold the password
    return engine


def masked(url: str) -> str:
    """The URL with its secrets masked, for people.

    >>> masked("postgresql+psycopg://someone:s3cret@host/name?sslpassword=s3cret")
    'postgresql+psycopg://someone:***@host/name?sslpassword=***'
    """
    try:
        return _shown(_parse(url))
    except StoreError:
        return url if url.startswith("sqlite:") else "***"


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
        parsed.get_dialect()
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise StoreError(
            "`database.url` is not a database URL that segcurate knows.",
            "Write `sqlite:///segcurate.db` or `postgresql+psycopg://user@host/name`; in a password, %40 "
            "stands for @, %2F for / and %25 for %.",
        ) from None  # SQLAlchemy's words may hold a part of the password
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise StoreError(
            f"`database.url` names {parsed.get_backend_name()!r}, which segcurate does not support.",
            "Write `sqlite:///segcurate.db` or `postgresql+psycopg://user@host/name`.",
        )
    if "@" in (parsed.host or ""):
        raise StoreError("The password in `database.url` holds an @.", "Write %40 for it.")
    return parsed


def _shown(url: URL) -> str:
    hidden = {name: "***" for name in url.query if name in SECRETS}
    return unquote(url.update_query_dict(hidden).render_as_string(hide_password=True))


def _without_secrets(said: str, url: URL) -> str:
    secrets = [url.password, *(value for name, value in url.query.items() if name in SECRETS)]
    for secret in secrets:
        if isinstance(secret, str) and secret:
            said = said.replace(secret, "***").replace(quote(secret, safe=""), "***")
    return said


def _configure_sqlite(connection: Any, _record: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # SQLAlchemy's `begin` event, not the driver, opens transactions
    cursor = connection.cursor()
    for pragma in (
        f"page_size={PAGE_SIZE}",  # of a new database
        "journal_mode=WAL",
        "synchronous=NORMAL",
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "foreign_keys=ON",
        "cache_size=-8192",
        "temp_store=MEMORY",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    mode = connection.get_execution_options().get("begin", "DEFERRED")
    connection.exec_driver_sql(f"BEGIN {mode}")
