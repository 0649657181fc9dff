"""The commands of docs/operations.md, run as they are written."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import psycopg

from tests.conftest import opened
from tests.db.private_server import PROGRAMS, private_server

GUIDE = (Path(__file__).parents[1] / "docs" / "operations.md").read_text(encoding="utf-8")


def block(language: str, begins: str) -> str:
    """The only fenced block that begins so."""
    found = [
        text for text in re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL) if text.startswith(begins)
    ]
    assert len(found) == 1, begins
    return found[0]


def execute(begins: str, folder: Path, **environment: str) -> None:
    path = f"{PROGRAMS}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["sh", "-euc", block("sh", begins)]
    ended = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def rows(database: Path) -> list[str]:
    connection = sqlite3.connect(database)
    try:
        return list(connection.iterdump())
    finally:
        connection.close()


def test_a_project_on_sqlite_is_restored_as_it_was(trained: Path) -> None:
    database = trained / ".segcurate" / "segcurate.db"
    before = rows(database)
    files = {path: path.read_bytes() for path in (trained / ".segcurate").rglob("*.safetensors")}
    for _ in range(2):
        execute("# the database: SQLite", trained)
        execute("# checkpoints", trained)
    database.write_bytes(b"damaged")
    for path in files:
        path.unlink()
    execute("# restore the files", trained)
    execute("# restore SQLite", trained)
    assert rows(database) == before
    assert {path: path.read_bytes() for path in files} == files
    assert files
    with opened(trained):
        pass


def test_a_database_on_postgresql_is_made_and_restored_as_the_guide_says(tmp_path: Path) -> None:
    with private_server() as server:
        admin = server.url.set(drivername="postgresql")
        with psycopg.connect(admin.render_as_string(hide_password=False), autocommit=True) as connection:
            for statement in block("sql", "CREATE ROLE").split(";\n"):
                if statement:
                    connection.execute(statement.encode())
        url = admin.set(username="segcurate", database="segcurate").render_as_string(hide_password=False)
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE score (day int, value float) PARTITION BY LIST (day)")
            connection.execute(
                "CREATE TABLE score_1 PARTITION OF score (PRIMARY KEY (day)) FOR VALUES IN (1)"
            )
            connection.execute("INSERT INTO score VALUES (1, 0.5)")
        for _ in range(2):
            execute("# the database: PostgreSQL", tmp_path, URL=url)
            with psycopg.connect(url) as connection:
                connection.execute("DELETE FROM score")
            execute("# restore PostgreSQL", tmp_path, URL=url)
            with psycopg.connect(url) as connection:
                assert connection.execute("SELECT * FROM score").fetchall() == [(1, 0.5)]
