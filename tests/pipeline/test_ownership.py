"""A database belongs to one project."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from flows import cli
from pipeline.errors import UserError
from pipeline.ownership import identity_of, open_database, rename
from tests.factories import configured, make_project


def test_the_first_project_that_opens_a_database_owns_it(tmp_path: Path) -> None:
    project, database = make_project(tmp_path)
    with (
        closing(database),
        closing(open_database(project)) as first,
        closing(open_database(project)) as again,
    ):
        owner = identity_of(project, first)
        assert (owner.name, len(owner.id)) == ("test", 32)
        assert identity_of(project, again).id == owner.id


def test_a_database_of_another_project_is_refused_with_both_names(tmp_path: Path) -> None:
    project, database = make_project(tmp_path)
    open_database(project).close()
    other = configured(project, name="other")
    with closing(database):
        with pytest.raises(UserError, match="belongs to the project 'test'.* of 'other'.*db rename"):
            open_database(other)

        before = identity_of(project, database).id
        assert rename(other, database) == ("test", "other")
        open_database(other).close()
        assert identity_of(other, database).id == before
        with pytest.raises(UserError, match="belongs to the project 'other'"):
            open_database(project)


def test_a_copy_gets_a_name_and_an_id_of_its_own(tmp_path: Path) -> None:
    project, database = make_project(tmp_path)
    with closing(database):
        before = identity_of(project, database).id
        with pytest.raises(UserError, match="still named 'test'.*Change `name`"):
            rename(project, database, copied=True)
        assert identity_of(project, database).id == before

        copy = configured(project, name="copy")
        assert rename(copy, database, copied=True) == ("test", "copy")
        found = identity_of(copy, database)
        assert found.name == "copy"
        assert len(found.id) == 32
        assert found.id != before


def test_a_command_on_another_projects_database_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project, database = make_project(tmp_path)
    open_database(project).close()
    database.close()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["segcurate", "status"])
    monkeypatch.setenv("SEGCURATE_NAME", "other")
    with pytest.raises(SystemExit) as end:
        cli.main()
    shown = " ".join(capsys.readouterr().err.split())
    assert end.value.code == 1
    for text in ("'test'", "'other'", "segcurate db rename"):
        assert text in shown
