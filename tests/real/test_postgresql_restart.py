"""A PostgreSQL server that is restarted while scores are written to it costs retries, not the run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from db.engine import Database
from db.queries import scores
from db.tables import Failure, ImageScore, ScoringRun, Shard
from pipeline.steps.score import score
from pipeline.uncertainty.measures import MEASURES
from tests.db.private_server import Server, empty_database, private_server
from tests.factories import ask, fetch, make_pool

COLUMNS = ("image_id", "region_index", "x", "y", "w", "h", "pixels", "predicted_class", *MEASURES)
IMAGES = 40


@pytest.fixture(scope="module")
def server() -> Generator[Server]:
    with private_server({}) as server:  # a server that forgets what it has promised is another matter
        yield server


def fast(server: Server) -> None:
    server.stop("fast")
    server.start()


def immediate(server: Server) -> None:
    server.stop("immediate")
    server.start()


def away_for_five_seconds(server: Server) -> None:
    server.stop("fast")
    time.sleep(5)
    server.start()


def score_pool(
    root: Path, monkeypatch: pytest.MonkeyPatch, *, url: str | None = None
) -> Callable[[], Database]:
    """A pool of images in a store; calling it scores them."""
    scoring: dict[str, Any] = {"samples": 3, "regions": {"kind": "grid", "cell": 32}, "batch_size": 2}
    scoring |= {"shard_images": 2, "heatmaps": {"images": "top", "top": 3}}
    if url is None:
        monkeypatch.delenv("SEGCURATE_DATABASE__URL", raising=False)
    else:
        monkeypatch.setenv("SEGCURATE_DATABASE__URL", url)
    project, database = make_pool(root, [(64, 96)] * IMAGES, scoring=scoring)

    def run() -> Database:
        score(project, database)
        return database

    return run


def rows_of(database: Database) -> dict[str, np.ndarray]:
    (run,) = fetch(database, ScoringRun)
    assert run.finished_at is not None
    assert fetch(database, Failure.reason) == []
    assert set(fetch(database, Shard.status)) == {"done"}
    columns = ask(database, scores.region_columns, run_id=run.id, columns=COLUMNS)
    # PostgreSQL writes a REAL with as few digits as tell it from its neighbours
    return {
        name: values.astype(np.float32) if name in MEASURES else values for name, values in columns.items()
    }


def images_scored(database: Database) -> int:
    return database.transact(lambda session: len(session.scalars(select(ImageScore.image_id)).all()))


@pytest.mark.parametrize("trouble", [fast, immediate, away_for_five_seconds])
def test_a_restart_in_mid_run_loses_no_row_and_doubles_none(
    server: Server,
    trouble: Callable[[Server], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = rows_of(score_pool(tmp_path / "undisturbed", monkeypatch)())
    assert len(expected["image_id"]) == IMAGES * 6
    with empty_database(server.url) as url:
        run = score_pool(tmp_path / "disturbed", monkeypatch, url=url)
        watcher = Database(url)
        troubled: list[int] = []

        def make_trouble() -> None:
            for wanted in (4, 16, 28):
                while (done := images_scored(watcher)) < wanted:
                    time.sleep(0.01)
                if done < IMAGES:
                    troubled.append(done)
                    trouble(server)

        thread = threading.Thread(target=make_trouble)
        thread.start()
        found = rows_of(run())
        thread.join()
        watcher.close()
    assert troubled
    assert "The database cannot be reached" in caplog.text
    for name in COLUMNS:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_a_restart_at_any_moment_of_the_run_is_survived(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crashes again and again, from the plan to the last heat map."""
    expected = rows_of(score_pool(tmp_path / "undisturbed", monkeypatch)())
    with empty_database(server.url) as url:
        run = score_pool(tmp_path / "disturbed", monkeypatch, url=url)
        ended = threading.Event()

        def crash_again_and_again() -> None:
            while not ended.wait(1.5):
                immediate(server)

        thread = threading.Thread(target=crash_again_and_again)
        thread.start()
        try:
            database = run()
        finally:
            ended.set()
            thread.join()
        found = rows_of(database)
        database.close()
    for name in COLUMNS:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
