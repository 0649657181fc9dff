"""Every test of the store runs on SQLite and on a real PostgreSQL.

`SEGCURATE_TEST_POSTGRESQL` names a server whose user may create databases, such as
`postgresql+psycopg://postgres@localhost/postgres`; without it, all processes of the run share
a private one.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from sqlalchemy import URL, make_url

from db.engine import Database
from tests.db.private_server import empty_database, shared_server
from tests.factories import open_store


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Generator[URL]:
    """A running PostgreSQL server."""
    given = os.environ.get("SEGCURATE_TEST_POSTGRESQL")
    if given:
        yield make_url(given)
        return
    folder = tmp_path_factory.getbasetemp()
    with shared_server(folder if worker_id == "master" else folder.parent) as server:
        yield server.url


@pytest.fixture(scope="session")
def migrated(postgresql: URL) -> Generator[str]:
    """The name of a database on the server that has all tables, and no row."""
    with empty_database(postgresql) as url:
        Database(url).close()
        yield make_url(url).database or ""


@pytest.fixture
def postgresql_url(postgresql: URL, migrated: str) -> Generator[str]:
    """The URL of a store on the server that is gone after the test."""
    with empty_database(postgresql, template=migrated) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a store, or of none yet, that is gone after the test, on either backend."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    return request.getfixturevalue("postgresql_url")


@pytest.fixture
def database(store_url: str) -> Database:
    """Ten images of the pool, a promoted model, and its empty run 1."""
    return open_store(store_url)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[str]:
    """The URL of an empty database that is gone after the test, on either backend."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'nested' / 'store.db'}"
        return
    with empty_database(request.getfixturevalue("postgresql")) as url:
        yield url
