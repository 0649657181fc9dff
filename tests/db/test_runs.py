"""Scoring runs: which one is the newest, and what is known of each."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from db.engine import Database
from db.queries.runs import lock_summary, newest_run, update_summary
from db.tables import ScoringRun
from tests.factories import add_model, ask, fetch_one, new_run, open_store, put

DAY = timedelta(days=1)
START = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def database(store_url: str) -> Database:
    """A store whose model 1 has run 1, begun on the first day."""
    database = open_store(store_url)
    with database.session() as session:
        session.get_one(ScoringRun, 1).created_at = START
    return database


def add_run(database: Database, begun: int, finished: int | None = None, *, model_id: int = 1) -> int:
    """A run that was begun, and finished, so many days after the first."""
    with database.session() as session:
        row = new_run(model_id, scorer_hash=f"{begun}", scorer={"begun": begun, "seed": 0})
        row.created_at = START + begun * DAY
        row.finished_at = None if finished is None else START + finished * DAY
        return put(session, row).id


class TestNewestRun:
    def test_it_is_the_one_that_was_finished_last_or_begun_last(self, database: Database) -> None:
        long_ago = add_run(database, 1, 9)
        later = add_run(database, 2, 5)
        unfinished = add_run(database, 7)
        ids = [ask(database, newest_run, 1, finished=finished) for finished in (True, False)]
        assert [row and row.id for row in ids] == [long_ago, long_ago]
        other = ask(database, newest_run, 1, finished=True, other_than=long_ago)
        begun = ask(database, newest_run, 1, finished=False, other_than=long_ago)
        assert (other and other.id, begun and begun.id) == (later, unfinished)

    def test_a_pruned_run_and_the_run_of_another_model_are_none(self, database: Database) -> None:
        with database.session() as session:
            add_model(session, 2, status="trained")
            session.get_one(ScoringRun, 1).pruned_at = START
        assert ask(database, newest_run, 1, finished=False) is None
        of_second = add_run(database, 1, 2, model_id=2)
        assert ask(database, newest_run, 1, finished=False) is None
        of_any = ask(database, newest_run, None, finished=True)
        assert of_any is not None
        assert of_any.id == of_second

    def test_where_it_has_other_settings_no_older_run_takes_its_place(self, database: Database) -> None:
        add_run(database, 1, 1)
        newest = add_run(database, 2, 2)
        assert ask(database, newest_run, 1, finished=True, settings={"begun": 1}) is None
        found = ask(database, newest_run, 1, finished=True, settings={"begun": 2, "seed": 0})
        assert found is not None
        assert found.id == newest


class TestSummary:
    def test_a_part_takes_the_place_of_the_former_one_and_the_others_stay(self, database: Database) -> None:
        with database.session() as session:
            update_summary(session, 1, drift={"checked": 1}, reordering={"share": 0.5})
            update_summary(session, 1, drift={"checked": 2})
        summary = fetch_one(database, select(ScoringRun).where(ScoringRun.id == 1)).summary
        assert summary == {"drift": {"checked": 2}, "reordering": {"share": 0.5}}

    def test_workers_that_add_to_one_list_at_the_same_time_lose_nothing(self, database: Database) -> None:
        def add(image_id: int) -> None:
            with database.session() as session:
                before = session.get_one(ScoringRun, 1)  # out of date once another worker has written
                images = lock_summary(session, before.id).get("images", [])
                update_summary(session, 1, images=[*images, image_id])

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(add, range(20)))
        summary = fetch_one(database, select(ScoringRun).where(ScoringRun.id == 1)).summary
        assert summary is not None
        assert sorted(summary["images"]) == list(range(20))
