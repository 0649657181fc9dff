"""A database that cannot be used is explained in two lines; one that may only be read is read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, select, text
from sqlalchemy.exc import OperationalError

from db.engine import Database, explain
from db.errors import StoreError
from db.tables import Failure
from tests.db.private_server import empty_database
from tests.factories import open_store

ROOT = Path(__file__).parents[2]
NOBODY = 65534


def refusal(url: str) -> StoreError:
    with pytest.raises(StoreError) as caught:
        Database(url)
    error = caught.value
    assert error.remedy
    assert "\n" not in error.problem + error.remedy
    assert len(error.problem) < 500
    return error


@pytest.mark.parametrize("url", ["postgresql+psycopg://a@b/c", "postgresql+psycopg://a:secret@b/c"])
def test_a_missing_driver_is_named_with_the_command_that_installs_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert refusal(url).remedy == "Run `pip install 'segcurate[postgres]'`."


def test_another_driver_is_refused_with_the_one_to_write() -> None:
    error = refusal("postgresql+psycopg2://a:secret@b/c")
    assert "'psycopg2'" in error.problem
    assert "`postgresql://" in error.remedy


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_a_url_without_a_driver_means_psycopg_3(scheme: str) -> None:
    assert "postgresql+psycopg://a:***@127.0.0.1" in refusal(f"{scheme}://a:secret@127.0.0.1:1/c").problem


@pytest.fixture(scope="module")
def stranger(postgresql: object) -> Generator[str]:
    """The URL of an empty database, for a user who may not create tables in it."""
    assert not isinstance(postgresql, str)
    with empty_database(postgresql) as url:  # pyright: ignore[reportArgumentType]
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(text("REVOKE CREATE ON SCHEMA public FROM PUBLIC"))
            connection.execute(text("CREATE ROLE stranger LOGIN PASSWORD 'secret'"))
        yield make_url(url).set(username="stranger", password="secret").render_as_string(hide_password=False)
        with engine.begin() as connection:
            connection.execute(text("DROP OWNED BY stranger"))
            connection.execute(text("DROP ROLE stranger"))
        engine.dispose()


def test_a_missing_privilege_is_named_with_the_grant(stranger: str) -> None:
    error = refusal(stranger)
    assert "permission denied for schema public" in error.problem
    assert "secret" not in str(error)
    assert error.remedy == "As its owner: GRANT USAGE, CREATE ON SCHEMA public TO stranger;"


def test_a_database_and_a_user_that_do_not_exist_are_named(postgresql: object) -> None:
    url = make_url(str(postgresql) if isinstance(postgresql, str) else postgresql)  # pyright: ignore
    missing = url.set(database="none").render_as_string(hide_password=False)
    assert 'database "none" does not exist' in refusal(missing).problem
    unknown = url.set(username="nobody_known").render_as_string(hide_password=False)
    assert 'role "nobody_known" does not exist' in refusal(unknown).problem


@pytest.mark.parametrize("port", [1])
def test_a_server_that_is_away_is_named(port: int) -> None:
    error = refusal(f"postgresql+psycopg://a:secret@127.0.0.1:{port}/c")
    assert "refused" in error.problem
    assert "secret" not in str(error)


@pytest.mark.parametrize("what", ["pipe", "device", "text", "folder"])
def test_what_is_no_database_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "store.db"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "folder":
        path.mkdir()
    else:
        path.write_text("secret words " * 1000)
    assert "secret words" not in str(refusal(f"sqlite:///{path}"))


READ = """
import os, sys
from sqlalchemy import select
from db.engine import Database, explain
from db.tables import Failure
Database("sqlite:///:memory:").close()  # imports all that is needed
os.setuid(int(sys.argv[2]))  # root may write anywhere
database = Database(sys.argv[1])
with database.session(write=False) as session:
    print(session.scalars(select(Failure.subject)).all())
try:
    with database.session() as session:
        session.add(Failure(step="ingest", subject="b.png", reason="no"))
except Exception as error:
    known = explain(database.engine, error)
    print(known.problem)
    print(known.remedy)
"""


@pytest.fixture
def read_only() -> Generator[Path]:
    """A store with a row, in a folder where the user `nobody` may only read."""
    folder = Path(tempfile.mkdtemp(prefix="read_only", dir="/tmp"))
    folder.chmod(0o755)
    database = open_store(f"sqlite:///{folder / 'store.db'}")
    with database.session() as session:
        session.add(Failure(step="ingest", subject="a.png", reason="no"))
    database.close()
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_a_store_that_may_only_be_read_is_read_and_writing_says_why(read_only: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", READ, f"sqlite:///{read_only / 'store.db'}", str(NOBODY)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows, problem, remedy = done.stdout.splitlines()
    assert rows == "['a.png']"
    assert "readonly database" in problem
    assert "write permission" in remedy
    assert [path.name for path in read_only.iterdir()] == ["store.db"]


def test_a_read_only_store_is_opened_without_a_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(f"sqlite:///{tmp_path / 'store.db'}").close()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))
    database = Database(f"sqlite:///{tmp_path / 'store.db'}")
    with database.session(write=False) as session:
        assert session.scalars(select(Failure)).all() == []
        assert [path.name for path in tmp_path.iterdir()] == ["store.db"]
    with pytest.raises(OperationalError) as caught, database.session() as session:
        session.add(Failure(step="ingest", subject="b.png", reason="no"))
    known = explain(database.engine, caught.value)
    assert known is not None
    assert "write permission" in known.remedy
