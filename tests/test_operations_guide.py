"""The commands of docs/operations.md, run as they are written."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import psycopg
import pytest
from psycopg.sql import SQL, Identifier

from pipeline.data.project import load_project
from pipeline.operation.retrain import run_retrain
from pipeline.operation.runner import Runner
from pipeline.ownership import identity_of
from pipeline.steps.ingest import ingest
from tests.conftest import QUICK, draw, opened, write_config
from tests.db.private_server import PROGRAMS, Server, private_server
from tests.test_compose import ROOT, compose, filled

GUIDE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
PATH = f"{PROGRAMS}:{Path(sys.executable).parent}:{os.environ['PATH']}"


DOCKER = """\
#!{python}
import json, os, sys

services = json.load(open(os.environ["SERVICES"]))
verb, *rest = sys.argv[2:]
print(verb, *rest, file=open(os.environ["CALLS"], "a"))
if verb not in ("run", "exec"):
    sys.exit()
service, *words = rest[rest.index(dict(run="--rm", exec="-T")[verb]) + 1 :]
found = services[service]
environment = dict(PATH=os.environ["PATH"], HOME=os.environ["HOME"], **found["environment"])
command = found.get("entrypoint", []) + words if verb == "run" else words
os.chdir(os.environ["PROJECT"] if verb == "run" else ".")
os.execvpe(command[0], command, environment)
"""
"""`docker compose`, which runs a service's command on this machine, with only the service's environment."""

ELSEWHERE = {
    "$ pip install 'segcurate'": "tests/real/test_private_server.py starts `serve`",
    "# containers: Label Studio": "needs Docker; tests/test_compose.py reads the service",
    "# containers: upgrade": "needs Docker; `up` runs the service `setup`, as tests/test_compose.py knows it",
    "# the Prefect server": "tests/real/test_prefect_alerts.py",
    "# alerts": "tests/real/test_prefect_alerts.py",
}
"""The blocks of commands that this file does not run, and where they are run, or why they are not."""


def block(language: str, begins: str) -> str:
    """The only fenced block that begins so."""
    found = [
        text for text in re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL) if text.startswith(begins)
    ]
    assert len(found) == 1, begins
    return found[0]


def beginnings() -> list[str]:
    """The first line of each block of commands."""
    return re.findall(r"```(?:sh|console|bash|sql)\n(.*)\n", GUIDE)


def run(*command: str, folder: Path, **environment: str) -> str:
    """What the command prints; it must succeed."""
    ended = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": PATH} | environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stderr == ""
    return ended.stdout


def execute(begins: str, folder: Path, **environment: str) -> None:
    run("sh", "-euc", block("sh", begins), folder=folder, **environment)


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


def postgresql_rows(url: str) -> dict[str, list[str]]:
    """Every row of every table, partitions by themselves, and where each sequence stands."""
    with psycopg.connect(url) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        found = {
            name: sorted(
                str(row) for row in connection.execute(SQL("SELECT * FROM {}").format(Identifier(name)))
            )
            for (name,) in tables
        }
        sequences = connection.execute("SELECT sequencename, last_value FROM pg_sequences ORDER BY 1")
        return found | {"sequences": [str(row) for row in sequences]}


def test_a_database_on_postgresql_is_made_and_restored_as_the_guide_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with private_server() as server:
        admin = server.url.set(drivername="postgresql")
        with psycopg.connect(admin.render_as_string(hide_password=False), autocommit=True) as connection:
            for statement in block("sql", "CREATE ROLE").split(";\n"):
                if statement:
                    connection.execute(statement.encode())
        owner = server.url.set(username="segcurate", database="segcurate")
        url = owner.set(drivername="postgresql").render_as_string(hide_password=False)
        monkeypatch.setenv("SEGCURATE_DATABASE__URL", owner.render_as_string(hide_password=False))
        for index in range(16):
            draw(tmp_path / "images", tmp_path / "masks", name=f"frame_{index:03d}.png", seed=index)
        write_config(tmp_path, **QUICK)
        run("segcurate", "db", "upgrade", folder=tmp_path)
        with opened(tmp_path) as (project, database):
            ingest(project, database)
            run_retrain(Runner(project, database))
            identity_of(project, database)

        before = postgresql_rows(url)
        for _ in range(2):
            execute("# the database: PostgreSQL", tmp_path, URL=url)
            with psycopg.connect(url) as connection:
                connection.execute("TRUNCATE image CASCADE")
            assert postgresql_rows(url) != before
            execute("# restore PostgreSQL", tmp_path, URL=url)
            assert postgresql_rows(url) == before

        run("segcurate", "db", "upgrade", folder=tmp_path)
        assert "queues/round-01" in run("segcurate", "status", folder=tmp_path)
        assert postgresql_rows(url) == before
    filled = {name for name, found in before.items() if found}
    assert {"image", "label", "model", "queue_item", "image_score_1", "region_score_1", "sequences"} <= filled


def stand_in_for_docker(folder: Path, server: Server) -> dict[str, str]:
    """The environment of a shell whose `docker` runs services here, with the server's databases."""
    services = compose(filled())["services"]
    (url,) = {services[name]["environment"]["SEGCURATE_DATABASE__URL"] for name in ("setup", "segcurate")}
    here = server.url.set(username="segcurate", database="segcurate").render_as_string(hide_password=False)
    host = str(server.url.query["host"])
    known = {url: here, "/project/segcurate.yaml": str(folder / "project" / "segcurate.yaml")}
    for service in services.values():
        environment = service.setdefault("environment", {})
        environment.update({name: known.get(value, value) for name, value in environment.items()})
    services["postgres"]["environment"]["PGHOST"] = host
    (folder / "services.json").write_text(json.dumps(services), encoding="utf-8")
    programs = folder / "programs"
    programs.mkdir()
    (programs / "docker").write_text(DOCKER.format(python=sys.executable), encoding="utf-8")
    (programs / "docker").chmod(0o755)
    init = ROOT / "configs" / "postgres-init.sh"
    run("sh", str(init), folder=folder, **services["postgres"]["environment"])
    return {
        "SERVICES": str(folder / "services.json"),
        "CALLS": str(folder / "calls"),
        "PROJECT": str(folder / "project"),
        "PATH": f"{programs}:{PATH}",
        "HOME": str(folder),
    }


def test_containers_come_from_nothing_to_the_first_night_and_back_from_a_back_up(tmp_path: Path) -> None:
    project = tmp_path / "project"
    for index in range(16):
        draw(project / "images", project / "masks", name=f"frame_{index:03d}.png", seed=index)
    shutil.copy(ROOT / ".env.example", tmp_path)
    with private_server() as server:
        shell = stand_in_for_docker(tmp_path, server)
        url = server.url.set(drivername="postgresql", username="segcurate", database="segcurate")
        database = url.render_as_string(hide_password=False)
        execute("# containers: settings", tmp_path, **shell)
        assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600
        for line in block("sh", "# containers: the first night").splitlines():
            run("sh", "-euc", line, folder=tmp_path, **shell)
            if " init " in line:
                assert load_project(project / "segcurate.yaml").config.name == "squares"
                write_config(project, **QUICK)  # without downloads, and quick
        assert (project / "queues" / "round-01" / "manifest.jsonl").is_file()

        before = postgresql_rows(database)
        assert before["queue_item"]
        execute("# containers: back up", tmp_path, **shell)
        with psycopg.connect(database) as connection:
            connection.execute("TRUNCATE image CASCADE")
        execute("# containers: restore", tmp_path, **shell)
        assert postgresql_rows(database) == before
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call for call in calls if call.split()[0] not in ("run", "exec")] == [
        "build",
        "up --detach",
        "stop worker",
        "up --detach",
    ]


def test_every_block_of_commands_is_run_or_known_not_to_be() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    here = re.findall(r'(?:(?<!\.)execute\(|block\("(?:sh|sql)", )"([^"]+)"', source)
    known = {
        first: [begins for begins in (*here, *ELSEWHERE) if first.startswith(begins)]
        for first in beginnings()
    }
    assert [first for first, found in known.items() if not found] == []
    assert {begins for found in known.values() for begins in found} == {*here, *ELSEWHERE}


def test_settings_of_systemd_can_be_read() -> None:
    unit, journal = ConfigParser(), ConfigParser()
    for parser in (unit, journal):
        parser.optionxform = str  # pyright: ignore[reportAttributeAccessIssue]
    unit.read_string(block("ini", "[Unit]"))
    journal.read_string(block("ini", "[Journal]"))
    assert unit["Service"]["ExecStart"].split()[1:] == ["serve"]
    assert unit["Service"]["Restart"] == "always"
    assert re.fullmatch(r"\d+G", journal["Journal"]["SystemMaxUse"])
