"""Opening the store, and its transactions.

The contract of the store, for every backend:

- `Database.session()` is the only access. It commits when the block ends, rolls back when it raises, and
  always closes. A block is one transaction: either everything that it wrote is stored, or nothing.
- A session belongs to the thread that opened it; a `Database` may be shared by threads, never by forks.
- No other step changes the rows of a finished step, except for `status`, `state` and the `*_at` columns.
- A writer on SQLite takes the write lock when its transaction begins (`BEGIN IMMEDIATE`), so two writers
  wait for each other instead of failing half-way; readers never wait.
- Every table has a natural unique key, so that a killed step may run again without losing or
  duplicating rows.
- A value that is computed from a row is read again under the row's lock (`FOR UPDATE`), because PostgreSQL
  lets another transaction change the row until then. A shard of scores is one transaction.
- A block that only reads sets `write=False`; otherwise it waits for every writer on SQLite.
- No prepared statement or setting outlives a transaction in the server's session: pgbouncer may give each
  transaction another connection.
- A database at another revision than this code is refused; an empty one gets its tables.
"""

from __future__ import annotations

import logging
import os
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
"""Seconds to wait for a server that restarts."""
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
POSTGRESQL = {"connect_timeout": 10, "application_name": "segcurate"}
"""Settings of each connection; the URL overrides them."""
POOLED = {"prepare_threshold": None}
"""No prepared statements: behind pgbouncer in transaction mode, a connection would meet those of others.
They save no time that can be measured here."""
SECRETS = ("password", "sslpassword")
"""Secret parameters behind the `?` of a URL."""
RECYCLE_SECONDS = 1800
"""Firewalls drop a connection that is silent for longer."""
FORBIDDEN = ("42501", "25006")
"""SQLSTATEs of PostgreSQL: a privilege is missing, and the server may only be read."""
_LONGEST_MESSAGE = 300
GONE = ("08", "57P")
"""SQLSTATE classes of PostgreSQL: connection exceptions, and a server that shuts down or is starting up."""


class Database:
    """A store at the current revision.

    Args:
        url: `sqlite:///path/to.db` or `postgresql://user:password@host/name`, which psycopg 3 opens. In both,
            `%25` stands for %, and `%3F` for ?.

    Raises:
        StoreError: the URL is not one of these, its driver is missing, no server answers, the user may not
            use the schema, or the database is at another revision than this code.
    """

    def __init__(self, url: str) -> None:
        self.engine = connect(url)
        try:
            migrations.prepare(self.engine)
        except DBAPIError as error:
            self.engine.dispose()
            raise _failed(self.engine.url, error) from None
        self._writer = self.engine.execution_options(begin="IMMEDIATE")

    @contextmanager
    def session(self, *, write: bool = True, patience: float = PATIENCE) -> Generator[Session]:
        """One transaction. `write=False` never waits for another writer on SQLite.

        Args:
            patience: seconds of retries before the block begins, when the server cannot be reached.
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
        """Run `work` in its own transaction, and again when the connection to the server was lost.

        Args:
            work: must be repeatable: it may run several times, and though only the last run is committed, a
                run whose connection broke during its commit may be committed too.
            write: as for `session`.
            patience: seconds of retries when the server cannot be reached.

        Raises:
            DBAPIError: the server could not be reached in time, or another error.
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
            logger.warning("The database cannot be reached; retrying in %.1f s.", pause)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def connection_lost(error: DBAPIError) -> bool:
    """Whether the server shut down, is starting, or cannot be reached: a retry may succeed."""
    if error.connection_invalidated:
        return True
    if not isinstance(error, OperationalError) or not hasattr(error.orig, "sqlstate"):  # SQLite has no server
        return False
    state: str | None = getattr(error.orig, "sqlstate", None)
    return state is None or state.startswith(GONE)  # None: no server answered


def lock_refused(error: DBAPIError) -> bool:
    """Whether PostgreSQL stopped waiting for a lock after `lock_timeout`."""
    return getattr(error.orig, "sqlstate", None) == "55P03"


def explain(engine: Engine, error: DBAPIError) -> StoreError | None:
    """What the user can do about an error of the database; None for an error of the program."""
    state: str | None = getattr(error.orig, "sqlstate", None)
    if isinstance(error, OperationalError) or state in FORBIDDEN:
        return _failed(engine.url, error)
    return None


def connect(url: str) -> Engine:
    """An engine with the settings that the contract needs. Reads no table.

    A SQLite file that may not be written is opened for reading.

    Raises:
        StoreError: the URL is malformed or of an unknown kind, its driver is missing, or no server answers.
    """
    parsed = _parse(url)
    if parsed.get_backend_name() == "sqlite":
        path = Path(parsed.database) if parsed.database and parsed.database != ":memory:" else None
        if path is not None:
            _check_file(path)
        if path is not None and _is_read_only(path):
            engine = create_engine(_reading(path))
        else:
            engine = create_engine(parsed)
            event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        settings = {name: value for name, value in POSTGRESQL.items() if name not in parsed.query}
        engine = create_engine(
            parsed, pool_pre_ping=True, pool_recycle=RECYCLE_SECONDS, connect_args=settings | POOLED
        )
    try:
        with engine.connect() as connection:
            inspect(connection).get_table_names()
    except DBAPIError as error:
        engine.dispose()
        raise _failed(parsed, error) from None  # the driver's message may contain the password
    return engine


def masked(url: str) -> str:
    """The URL with its secrets masked, for output.

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
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() == "sqlite" and "uri" not in parsed.query:
            parsed = parsed.set(database=unquote(parsed.database or "") or None)
        parsed.get_dialect()
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise StoreError(
            "`database.url` is not a valid database URL.",
            "Write `sqlite:///segcurate.db` or `postgresql://user@host/name`; in a password, %40 "
            "stands for @, %2F for / and %25 for %.",
        ) from None  # SQLAlchemy's message may contain a part of the password
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise StoreError(
            f"`database.url` names {parsed.get_backend_name()!r}, which segcurate does not support.",
            "Write `sqlite:///segcurate.db` or `postgresql://user@host/name`.",
        )
    if "@" in (parsed.host or ""):
        raise StoreError("The password in `database.url` contains an @.", "Write %40 for it.")
    _check_driver(parsed)
    return parsed


def _check_driver(parsed: URL) -> None:
    try:
        parsed.get_dialect().import_dbapi()
    except ModuleNotFoundError:
        if parsed.get_driver_name() != "psycopg":
            raise StoreError(
                f"`database.url` names the driver {parsed.get_driver_name()!r}, which is not installed.",
                "Write `postgresql://user@host/name`.",
            ) from None
        raise StoreError(
            "`database.url` names PostgreSQL, whose driver is not installed.",
            "Run `pip install 'segcurate[postgres]'`.",
        ) from None


def _check_file(path: Path) -> None:
    """Make the folder of an SQLite file; refuse what is no file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"The folder {path.parent} of the database cannot be made: {error.strerror}.",
            "Give yourself write permission, or name another file in `database.url`.",
        ) from None
    if path.exists() and not path.is_file():
        raise StoreError(f"The database {path} is no plain file.", "Name a file in `database.url`.")


def _is_read_only(path: Path) -> bool:
    """Whether an SQLite file, or its folder, where SQLite keeps two more files, may not be written."""
    return path.exists() and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK))


def _reading(path: Path) -> URL:
    """The URL that opens an SQLite file for reading.

    Without its write-ahead log nobody writes the file: SQLite then needs neither a lock nor another file.
    """
    query = {"mode": "ro", "uri": "true"}
    if not path.with_name(path.name + "-wal").exists():
        query["immutable"] = "1"
    return URL.create("sqlite", database=f"file:{quote(str(path.absolute()))}", query=query)


def _failed(url: URL, error: DBAPIError) -> StoreError:
    """The error as one line, and what to do about it."""
    message = " ".join(_without_secrets(str(error.orig), url).split()).rstrip(".")
    message = message if len(message) <= _LONGEST_MESSAGE else message[:_LONGEST_MESSAGE] + " …"
    state: str | None = getattr(error.orig, "sqlstate", None)
    if url.get_backend_name() == "sqlite":
        path = url.query.get("uri") and url.database
        if path or "readonly" in message:
            remedy = "It may only be read here. Give yourself write permission to the file and its folder."
        else:
            remedy = "Check that its folder is writable and its disk not full, and that it is an SQLite file."
    elif state == "42501":
        remedy = f"As its owner: GRANT USAGE, CREATE ON SCHEMA public TO {url.username or 'the user'};"
    elif state == "25006":
        remedy = "The server is a stand-by, or read-only: name its primary in `database.url`."
    else:
        remedy = "Check user, password, host and name in `database.url`, and that the server is up."
    return StoreError(f"The database {_shown(url)} cannot be used: {message}.", remedy)


def _shown(url: URL) -> str:
    hidden = {name: "***" for name in url.query if name in SECRETS}
    return unquote(url.update_query_dict(hidden).render_as_string(hide_password=True))


def _without_secrets(message: str, url: URL) -> str:
    secrets = [url.password, *(value for name, value in url.query.items() if name in SECRETS)]
    for secret in secrets:
        if isinstance(secret, str) and secret:
            message = message.replace(secret, "***").replace(quote(secret, safe=""), "***")
    return message


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
