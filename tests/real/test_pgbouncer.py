"""The store behind pgbouncer in transaction mode: each transaction may get another connection."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import errors
from sqlalchemy import URL, make_url

from pipeline.operation.nightly import run_nightly
from pipeline.operation.retrain import run_retrain
from pipeline.operation.runner import Runner
from pipeline.steps.ingest import ingest
from tests.conftest import QUICK, draw, opened, write_config
from tests.db.private_server import Server, empty_database, private_server
from tests.factories import at_once
from tests.real.house import BIN, free_port, wait_for

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="pgbouncer is not installed")


@contextmanager
def pgbouncer(server: Server) -> Generator[URL]:
    """Any database of the server through a pool of four connections, in transaction mode."""
    port = free_port()
    settings = server.folder / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n* = host={server.folder} user=postgres\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        "auth_type = any\npool_mode = transaction\ndefault_pool_size = 4\n"
    )
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    with (server.folder / "pgbouncer.log").open("wb") as log:
        pooler = subprocess.Popen([str(PROGRAM), *user, str(settings)], stdout=log, stderr=log)
    url = server.url.set(username="segcurate", host="127.0.0.1", port=port, query={})
    try:
        wait_for("pgbouncer", lambda: _answers(url), seconds=20)
        yield url
    finally:
        pooler.terminate()
        pooler.wait(20)


def _answers(url: URL) -> bool:
    try:
        psycopg.connect(_plain(url)).close()
    except psycopg.OperationalError:
        return False
    return True


def _plain(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def score_in(folder: Path) -> None:
    """`segcurate score`, as a process."""
    subprocess.run([str(BIN / "segcurate"), "score"], cwd=folder, check=True, capture_output=True)


def test_a_first_round_with_two_scoring_processes_runs_through_a_pool_of_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(24):
        draw(tmp_path / "images", tmp_path / "masks", name=f"frame_{index:03d}.png", seed=index)
    write_config(tmp_path, **QUICK)

    with private_server() as server, empty_database(server.url) as url, pgbouncer(server) as pooled:
        pooled = pooled.set(database=make_url(url).database)
        monkeypatch.setenv("SEGCURATE_DATABASE__URL", pooled.render_as_string(hide_password=False))
        with opened(tmp_path) as (project, database):
            ingest(project, database)
            run_retrain(Runner(project, database), then_nightly=False)
            at_once(2, lambda _: score_in(tmp_path))
            night = run_nightly(Runner(project, database))
            assert night.warnings == ()
            assert (tmp_path / "queues" / "round-01" / "manifest.jsonl").is_file()
        with (
            pytest.raises((errors.DuplicatePreparedStatement, errors.InvalidSqlStatementName)),
            psycopg.connect(_plain(pooled)) as one,
            psycopg.connect(_plain(pooled)) as other,
        ):
            for connection in (one, other) * 20:  # so this pool does break prepared statements
                connection.execute("SELECT 1", prepare=True)
                connection.commit()
