"""A password in `database.url` is shown nowhere."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path
from urllib.parse import quote

import pytest
from sqlalchemy import URL, make_url, text
from sqlalchemy.exc import DBAPIError

from db.engine import Database, connect, masked
from db.errors import StoreError
from pipeline.data.project import load_project

PASSWORDS = ("hunter2", "hun@ter/2", "100%hunter2", "a:b?c#hunter2", "hünter 2")
NOBODY = "postgresql+psycopg://someone:{}@127.0.0.1:1/none"


def parts_of(password: str) -> set[str]:
    """What must not be shown: the password as it is, and as a URL has it."""
    return {password, quote(password, safe="")}


def everything_about(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error) + str(error)


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_server_that_does_not_answer_is_named_without_the_password(password: str) -> None:
    url = NOBODY.format(quote(password, safe=""))
    with pytest.raises(StoreError, match="127.0.0.1:1/none cannot be used") as refused:
        Database(url)
    said = everything_about(refused.value)
    assert not [part for part in parts_of(password) if part in said.replace(f'"{url}"', "")]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://someone:hun@ter2@127.0.0.1:1/none",
        "postgresql+psycopg://someone:ter2/x@127.0.0.1:1/none",
        "postgresql+psycopg://someone:ter2:x@127.0.0.1:1/none",
        "postgresql+psycopg://someone:x#ter2@127.0.0.1:1/none",
        "postgresql+psycopg://127.0.0.1:1/none?user=someone&password=ter2",
        "mysql://someone:ter2@127.0.0.1/none",
        "someone:ter2@127.0.0.1",
    ],
)
def test_a_url_that_is_written_wrong_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(StoreError) as refused:
        connect(url)
    assert "ter2" not in everything_about(refused.value)
    assert "ter2" not in masked(url)


def test_a_password_of_any_characters_opens_the_database(postgresql: URL) -> None:
    for password in PASSWORDS:
        url = postgresql.set(password=password).render_as_string(hide_password=False)
        engine = connect(url)
        assert engine.url.password == password
        assert password not in repr(engine)
        assert masked(url) == masked(postgresql.set(password="x").render_as_string(hide_password=False))
        engine.dispose()


def test_a_statement_that_fails_and_a_connection_that_is_lost_tell_no_password(
    postgresql_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(
        make_url(postgresql_url).set(password="hunter2").render_as_string(hide_password=False)
    )
    caplog.set_level(logging.DEBUG)
    with pytest.raises(DBAPIError) as refused, database.session() as session:
        session.execute(text("SELECT nonsense"))
    with pytest.raises(DBAPIError) as lost, database.session() as session:
        session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    database.close()
    assert "hunter2" not in everything_about(refused.value) + everything_about(lost.value) + caplog.text


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_projects_settings_show_no_password(tmp_path: Path, password: str) -> None:
    url = NOBODY.format(quote(password, safe=""))
    file = tmp_path / "segcurate.yaml"
    file.write_text(f"name: p\ndata:\n  images: [images]\n  classes: [a, b]\ndatabase:\n  url: '{url}'\n")
    project = load_project(file)
    assert project.database_url == url
    dumped = project.config.model_dump(mode="json")
    assert dumped["database"]["url"] == NOBODY.format("***")
    shown = (
        repr(project) + str(project.config) + repr(project.config.database) + project.config.model_dump_json()
    )
    assert not [part for part in parts_of(password) if part in shown]


@pytest.mark.parametrize(
    "broken",
    [
        "scale: {engine: ray}",
        "name: {}",
        "database: {url: [x], pasword: hunter2}",
        "'",
        "database: {url: 'hunter2",
    ],
)
def test_settings_that_are_refused_are_refused_without_the_password(tmp_path: Path, broken: str) -> None:
    file = tmp_path / "segcurate.yaml"
    lines = ["name: p", "data: {images: [images], classes: [a, b]}"]
    lines += ["database: {url: 'sqlite:///x.db?password=hunter2'}", broken]
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(Exception) as refused:  # noqa: PT011  (whatever it is, it must not tell)
        load_project(file)
    assert "hunter2" not in everything_about(refused.value)
