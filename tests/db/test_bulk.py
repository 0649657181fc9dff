"""Columns go in as they are, whatever they hold, and come out the same on both databases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sqlalchemy import (
    REAL,
    BigInteger,
    Boolean,
    Column,
    Double,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    select,
    text,
)
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, OperationalError
from sqlalchemy.orm import Session

from db import bulk
from db.base import Document
from db.bulk import insert_columns
from db.engine import Database, connection_lost
from tests.factories import ask

TABLE = Table(
    "everything",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("small", SmallInteger),
    Column("big", BigInteger),
    Column("yes", Boolean),
    Column("real", REAL),
    Column("double", Double),
    Column("name", String(20)),
    Column("note", Text),
    Column("document", Document),
)
FULL: dict[str, list[Any]] = {
    "small": [-32768, 0, 32767],
    "big": [-(2**63), 7, 2**63 - 1],
    "yes": [True, False, True],
    "real": [0.5, -1e30, 1.25],
    "double": [1e-300, 0.1, -7.0],
    "name": ["", "Straße \N{SNOWMAN}", "a'b\"c\\d\te"],
    "note": ["x" * 5000, "\n", "PGCOPY"],
    "document": [{"entropy": "map.png", "n": [1, None, 2.5]}, [], {"ü": "\N{SNOWMAN}"}],
}


@pytest.fixture
def database(store_url: str) -> Database:
    database = Database(store_url)
    TABLE.create(database.engine)
    return database


def rows(database: Database) -> list[dict[str, Any]]:
    with database.session(write=False) as session:
        return [dict(row._mapping) for row in session.execute(select(TABLE).order_by(TABLE.c.id))]


def write(database: Database, **columns: Any) -> int:
    return ask(database, insert_columns, TABLE, columns)


def test_every_type_comes_back_as_it_went_in(database: Database) -> None:
    assert write(database, id=[1, 2, 3], **FULL) == 3
    wanted = [{"id": row + 1} | {name: values[row] for name, values in FULL.items()} for row in range(3)]
    for found, row in zip(rows(database), wanted, strict=True):
        assert found["real"] == pytest.approx(row.pop("real"), rel=1e-6)
        del found["real"]
        assert found == row


def test_nulls_come_back_wherever_they_are(database: Database) -> None:
    """Every subset of the columns is NULL in some row."""
    names = list(FULL)
    count = 2 ** len(names)
    columns: dict[str, list[Any]] = {
        name: [None if row >> place & 1 else FULL[name][1] for row in range(count)]
        for place, name in enumerate(names)
    }
    write(database, id=list(range(count)), **columns)
    found = rows(database)
    assert len(found) == count
    for row, values in enumerate(found):
        assert [values[name] is None for name in names] == [
            bool(row >> place & 1) for place in range(len(names))
        ]
        assert values["name"] in (None, FULL["name"][1])
        assert values["big"] in (None, 7)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_not_a_number_is_null(database: Database, dtype: type) -> None:
    values = np.array([np.nan, 0.5, np.nan], dtype=dtype)
    write(database, id=np.arange(3), real=values, double=[None, float("nan"), 1.5])
    assert [(row["real"], row["double"]) for row in rows(database)] == [
        (None, None),
        (0.5, None),
        (None, 1.5),
    ]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint64])
def test_integers_of_any_width_fit_where_their_values_do(database: Database, dtype: type) -> None:
    write(database, id=np.array([1, 2], dtype=dtype), small=np.array([0, 100], dtype=dtype))
    assert [(row["id"], row["small"]) for row in rows(database)] == [(1, 0), (2, 100)]


def test_columns_that_are_views_of_others_are_read_right(database: Database) -> None:
    table = np.arange(12).reshape(4, 3)
    write(database, id=table[:, 0], small=table[::-1, 1], real=np.broadcast_to(np.float32(0.25), 4))
    found = [(row["id"], row["small"], row["real"]) for row in rows(database)]
    assert found == [(0, 10, 0.25), (3, 7, 0.25), (6, 4, 0.25), (9, 1, 0.25)]


def test_blocks_follow_each_other(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "INSERT_ROWS", 7)
    monkeypatch.setattr(bulk, "COPY_ROWS", 7)
    notes = [None if n % 3 else "x" * n for n in range(20)]
    assert write(database, id=np.arange(20), note=notes) == 20
    assert [(row["id"], row["note"]) for row in rows(database)] == list(enumerate(notes))


def test_no_rows_are_no_rows(database: Database) -> None:
    assert write(database, id=[], note=[]) == 0
    assert write(database) == 0
    assert rows(database) == []


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"id": [1, 2], "small": [1]}, "one length"),
        ({"id": [1], "surprise": [1]}, "columns of everything, but got surprise"),
        ({"id": [1], "small": [40_000]}, "small from -32768 to 32767, but got 40000"),
        ({"id": np.array([2**31])}, "id from -2147483648 to 2147483647"),
        ({"id": [1], "small": [0.5]}, "integers for small"),
        ({"id": [1], "yes": [2]}, "yes from 0 to 1"),
    ],
)
def test_columns_that_do_not_fit_are_refused(database: Database, columns: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        write(database, **columns)
    assert rows(database) == []


def test_a_key_that_is_there_is_the_error_that_any_insert_raises(database: Database) -> None:
    write(database, id=[1], small=[5])
    with pytest.raises(IntegrityError, match=r"(?i)unique"):
        write(database, id=[2, 1])
    assert [row["id"] for row in rows(database)] == [1]


def test_a_session_whose_insert_failed_can_be_rolled_back_and_used_again(database: Database) -> None:
    with database.session() as session:
        insert_columns(session, TABLE, {"id": [1]})
        with pytest.raises(IntegrityError), session.begin_nested():
            insert_columns(session, TABLE, {"id": [1]})
        insert_columns(session, TABLE, {"id": [2]})
    assert [row["id"] for row in rows(database)] == [1, 2]


@pytest.fixture
def on_server(postgresql_url: str) -> Database:
    database = Database(postgresql_url)
    TABLE.create(database.engine)
    return database


def test_a_text_that_the_server_refuses_is_a_data_error(on_server: Database) -> None:
    with pytest.raises(DataError):
        write(on_server, id=[1], note=["a\0b"])


def test_a_lost_connection_is_known_as_one(on_server: Database) -> None:
    def kill_and_write(session: Session) -> None:
        me = session.scalar(text("SELECT pg_backend_pid()"))
        with on_server.engine.connect() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": me})
        insert_columns(session, TABLE, {"id": [1]})

    with pytest.raises(DBAPIError) as lost, on_server.session() as session:
        kill_and_write(session)
    assert isinstance(lost.value, OperationalError)
    assert connection_lost(lost.value)

    tries: list[int] = []

    def write_in_the_end(session: Session) -> int:
        tries.append(1)
        if len(tries) == 1:
            kill_and_write(session)
        return insert_columns(session, TABLE, {"id": [1]})

    assert on_server.transact(write_in_the_end) == 1
    assert len(tries) == 2
    assert [row["id"] for row in rows(on_server)] == [1]
