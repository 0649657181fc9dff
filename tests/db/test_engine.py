"""The store's contract: transactions, revisions, and what is refused."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, select, text
from sqlalchemy.exc import IntegrityError

from db import migrations
from db.engine import Database, connect
from db.errors import StoreError
from db.tables import Base, Failure, Round
from tests.factories import add_rows, at_once, fetch, fetch_one, new_image


def failure(subject: str) -> Failure:
    return Failure(step="ingest", subject=subject, reason="truncated")


@pytest.fixture
def new_stores_are_copies() -> None:
    """No: here the migrations fill each store."""


@pytest.fixture
def database(url: str) -> Database:
    return Database(url)


def test_a_block_that_raises_writes_nothing(database: Database) -> None:
    def write_then_fail() -> None:
        with database.session() as session:
            session.add(failure("a.png"))
            session.flush()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_then_fail()
    assert fetch(database, Failure) == []


def test_natural_keys_make_a_repeated_insert_fail(database: Database) -> None:
    add_rows(database, new_image("a.png"))
    with pytest.raises(IntegrityError), database.session() as session:
        session.add(new_image("a.png"))


def test_an_unknown_state_is_refused(database: Database) -> None:
    with pytest.raises(IntegrityError), database.session() as session:
        session.add(new_image("a.png", split="training"))


def test_foreign_keys_are_enforced(database: Database) -> None:
    with pytest.raises(IntegrityError), database.session() as session:
        session.add(new_image("a.png", duplicate_of=99))


def test_times_come_back_aware_and_in_utc(database: Database) -> None:
    moment = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
    add_rows(database, Round(number=1, state="train", started_at=moment))
    row = fetch_one(database, Round)
    assert row.started_at == moment
    assert row.started_at.tzinfo is not None


def test_a_reader_is_not_blocked_by_an_open_writer(database: Database) -> None:
    with database.session() as writer:
        writer.add(failure("a.png"))
        writer.flush()
        assert fetch(database, Failure) == []
        assert database.transact(lambda session: session.scalars(select(Failure)).all(), write=False) == []


def test_two_writers_wait_for_each_other(database: Database) -> None:
    def write_many(number: int) -> None:
        for index in range(20):
            with database.session() as session:
                session.scalars(select(Failure)).all()
                session.add(failure(f"{number}-{index}"))

    at_once(3, write_many)
    assert len(fetch(database, Failure)) == 60


def test_the_migrations_make_exactly_the_tables_of_the_code(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "include_name": migrations.is_declared}
        )
        assert compare_metadata(context, Base.metadata) == []


def test_the_migrations_go_both_ways(url: str) -> None:
    engine = connect(url)
    migrations.prepare(engine)
    command.downgrade(migrations.alembic_config(engine), "base")
    with engine.connect() as connection:
        assert inspect(connection).get_table_names() == ["alembic_version"]
    assert migrations.upgrade(engine) == (None, migrations.head())


def test_a_database_of_an_unknown_revision_is_refused_with_a_remedy(url: str) -> None:
    database = Database(url)
    with database.session() as session:
        session.execute(text("UPDATE alembic_version SET version_num = 'f00d'"))
    database.close()
    with pytest.raises(StoreError, match="revision f00d") as refusal:
        Database(url)
    assert "newer" in refusal.value.remedy


def test_a_strangers_database_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE invoice (id INTEGER)")
    with pytest.raises(StoreError, match="tables of another program"):
        Database(f"sqlite:///{path}")
    with sqlite3.connect(path) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    assert names == [("invoice",)]


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    path.write_text("this is not a database, just a note that is long enough to be looked at" * 20)
    with pytest.raises(StoreError, match=r"cannot be used"):
        Database(f"sqlite:///{path}")


@pytest.mark.parametrize("unknown", ["nonsense", "mysql://host/name", "oracle+nothing://x"])
def test_an_unknown_kind_of_database_is_refused(unknown: str) -> None:
    with pytest.raises(StoreError, match="database.url"):
        Database(unknown)


def test_a_password_never_reaches_the_message() -> None:
    pytest.importorskip("psycopg", reason="the driver for PostgreSQL is not installed")
    with pytest.raises(StoreError) as refusal:
        Database("postgresql+psycopg://someone:hunter2@127.0.0.1:1/none")
    assert "hunter2" not in str(refusal.value)


def test_nothing_of_a_transaction_stays_in_the_servers_session(postgresql_url: str) -> None:
    database = Database(f"{postgresql_url}{'&' if '?' in postgresql_url else '?'}prepare_threshold=1")
    for _ in range(10):
        assert fetch(database, Failure) == []
    with database.session(write=False) as session:
        assert session.scalar(text("SELECT count(*) FROM pg_prepared_statements")) == 0
        assert session.scalar(text("SELECT count(*) FROM pg_cursors WHERE is_holdable")) == 0
