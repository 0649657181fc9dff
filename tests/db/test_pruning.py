"""Runs that are pruned, and those that must not be."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import inspect, select, text, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from db import migrations
from db.engine import Database, lock_refused
from db.queries import pruning, runs, scores, shards
from db.tables import ImageScore, Queue, QueueItem, RegionScore, ScoringRun, Shard, utc_now
from tests.factories import (
    add_model,
    ask,
    at_once,
    change,
    count_scores,
    fetch,
    fetch_one,
    new_item,
    new_queue,
    open_store,
    put,
    rows_for,
)

MORNING = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def database(store_url: str) -> Database:
    """Runs 1 to 4 of models 1 to 4, all finished; model 4 serves, round 4 goes on."""
    database = open_store(store_url)
    for run_id in range(1, 5):
        images, regions = rows_for([1, 2, 3])
        with database.session() as session:
            if run_id > 1:
                add_model(session, run_id, state="select")
                assert open_run(session, run_id) == run_id
            scores.insert_scores(session, run_id=run_id, images=images, regions=regions)
            session.add(Shard(run_id=run_id, first_image_id=1, last_image_id=3, status="done", scored=3))
            runs.finish_run(session, run_id=run_id)
            at = MORNING + timedelta(days=run_id)
            session.execute(update(ScoringRun).where(ScoringRun.id == run_id).values(finished_at=at))
    return database


def open_run(session: Session, number: int) -> int:
    hashed = "a" if number == 1 else f"hash {number}"
    return runs.open_run(session, model_id=number, scorer_hash=hashed, scorer={"of": number}).id


def prune(database: Database, run_id: int) -> bool:
    return ask(database, pruning.prune_run, run_id=run_id, patience=1)


def rows_of(database: Database, run_id: int) -> tuple[int, int]:
    return ask(database, count_scores, run_id=run_id)


def delete_rows(database: Database, run_id: int, rows: int) -> int:
    """How many transactions it takes."""
    transactions = 0
    while True:
        with database.session() as session:
            if not pruning.delete_pruned_rows(session, run_id=run_id, rows=rows):
                return transactions
        transactions += 1


def test_runs_are_old_by_when_they_were_finished(database: Database) -> None:
    with database.session() as session:
        late = MORNING + timedelta(days=9)
        session.execute(update(ScoringRun).where(ScoringRun.id == 2).values(finished_at=late))
        assert pruning.runs_by_age(session) == [2, 4, 3, 1]


def test_what_a_pruned_run_still_holds_goes_with_a_downgrade(database: Database) -> None:
    assert prune(database, 2)
    command.downgrade(migrations.alembic_config(database.engine), "0002")
    with database.engine.connect() as connection:
        found = connection.execute(text("SELECT DISTINCT run_id FROM region_score ORDER BY run_id")).all()
    assert [run_id for (run_id,) in found] == [1, 3, 4]
    assert not [name for name in inspect(database.engine).get_table_names() if "score_" in name]


def test_a_pruned_run_has_no_rows_and_the_others_have_theirs(database: Database) -> None:
    assert prune(database, 2)
    delete_rows(database, 2, rows=2)
    assert [rows_of(database, run_id) for run_id in (1, 2, 3, 4)] == [(3, 6), (0, 0), (3, 6), (3, 6)]
    row = fetch_one(database, select(ScoringRun).where(ScoringRun.id == 2))
    assert (row.scorer, row.finished_at, row.pruned_at is not None) == ({"of": 2}, None, True)
    assert fetch(database, select(Shard.run_id).order_by(Shard.run_id)) == [1, 3, 4]
    assert ask(database, pruning.runs_by_age) == [4, 3, 1]
    assert ask(database, pruning.pruned_runs) == [2]


def test_a_run_is_pruned_once(database: Database) -> None:
    assert prune(database, 2)
    assert not prune(database, 2)


def test_rows_are_deleted_some_at_a_time_on_sqlite(tmp_path: Path) -> None:
    database = open_store(f"sqlite:///{tmp_path}/store.db", images=60)
    images, regions = rows_for(range(1, 61))
    ask(database, scores.insert_scores, run_id=1, images=images, regions=regions)
    assert delete_rows(database, 1, rows=20) == 6 + 3  # 120 regions, 60 images
    assert rows_of(database, 1) == (0, 0)


def test_what_a_pruned_scorer_scores_then_is_another_run_from_the_start(database: Database) -> None:
    assert prune(database, 2)  # on SQLite its rows are still there: as if it had been killed
    with database.session() as session:
        again = open_run(session, 2)
        assert again == 5
        assert open_run(session, 2) == 5
        assert shards.count_to_score(session, run_id=again) == 10
        images, regions = rows_for([1])
        scores.insert_scores(session, run_id=again, images=images, regions=regions)
    delete_rows(database, 2, rows=100)
    assert rows_of(database, 5) == (1, 2)


def test_the_serving_models_newest_scores_are_needed(database: Database) -> None:
    assert ask(database, pruning.needed_runs) == {4: "the scores of r04, which serves"}
    assert not prune(database, 4)
    assert rows_of(database, 4) == (3, 6)


def test_what_the_serving_model_still_scores_is_needed(database: Database) -> None:
    with database.session() as session:
        runs.open_run(session, model_id=4, scorer_hash="another", scorer={})
        assert set(pruning.needed_runs(session)) == {4, 5}
    assert not prune(database, 5)


def test_what_the_current_rounds_queue_was_selected_from_is_needed(database: Database) -> None:
    with database.session() as session:
        for number, run_id in ((3, 1), (4, 2)):
            session.add(new_queue(f"round-0{number}", round_id=number, run_id=run_id))
        assert set(pruning.needed_runs(session)) == {2, 4}
        assert "round-04" in pruning.needed_runs(session)[2]
    assert prune(database, 1)
    found, _ = fetch(database, select(Queue).order_by(Queue.id))
    assert (found.name, found.run_id) == ("round-03", 1)


def test_an_open_review_needs_its_run_until_it_is_labeled(database: Database) -> None:
    with database.session() as session:
        review = put(session, new_queue("review", run_id=1))
        put(session, new_item(review.id, 1, 1, (0, 0, 1, 1), slice="review"))
        assert set(pruning.needed_runs(session)) == {1, 4}
        session.execute(update(QueueItem).values(status="labeled"))
        assert set(pruning.needed_runs(session)) == {4}


def test_a_run_that_somebody_is_scoring_is_needed_until_the_lease_is_over(database: Database) -> None:
    with database.session() as session:
        values = {"status": "running", "owner": "a", "lease_until": utc_now() + timedelta(minutes=1)}
        session.execute(update(Shard).where(Shard.run_id == 1).values(**values))
    assert not prune(database, 1)
    change(database, Shard, Shard.run_id == 1, lease_until=MORNING)
    assert prune(database, 1)


def test_a_worker_that_had_a_pruned_shard_writes_nothing(database: Database) -> None:
    with database.session() as session:
        values = {"status": "running", "owner": "a", "lease_until": MORNING}
        session.execute(update(Shard).where(Shard.run_id == 1).values(**values))
    assert prune(database, 1)
    delete_rows(database, 1, rows=100)
    images, regions = rows_for([1, 2, 3])
    with database.session() as session:
        shard = shards.PlannedShard(1, 3)
        assert not shards.replace_shard(
            session, run_id=1, shard=shard, owner="a", image_ids=[1, 2, 3], images=images, regions=regions
        )
    assert rows_of(database, 1) == (0, 0)


@pytest.fixture
def on_server(postgresql_url: str) -> Database:
    database = open_store(postgresql_url)
    images, regions = rows_for([1, 2, 3])
    with database.session() as session:
        add_model(session, 2, state="select")
        open_run(session, 2)
        scores.insert_scores(session, run_id=1, images=images, regions=regions)
    return database


def tables(database: Database) -> set[str]:
    return {name for name in inspect(database.engine).get_table_names() if "score_" in name}


def test_each_run_has_partitions_until_it_is_pruned(on_server: Database) -> None:
    assert tables(on_server) == {f"{kind}_score_{run}" for kind in ("region", "image") for run in (1, 2)}
    assert prune(on_server, 1)
    assert rows_of(on_server, 1) == (0, 0)
    assert delete_rows(on_server, 1, rows=1) == 1
    assert tables(on_server) == {"region_score_2", "image_score_2"}


def test_pruning_gives_up_where_scores_are_being_read_and_can_be_tried_again(on_server: Database) -> None:
    with on_server.session(write=False) as reader:
        reader.scalars(select(RegionScore.image_id).where(RegionScore.run_id == 2)).all()
        with pytest.raises(OperationalError) as refused, on_server.session() as session:
            pruning.prune_run(session, run_id=1, patience=0.1)
        assert lock_refused(refused.value)
        assert rows_of(on_server, 1) == (3, 6)
        assert fetch_one(on_server, select(ScoringRun).where(ScoringRun.id == 1)).pruned_at is None
    assert prune(on_server, 1)


def test_a_run_can_be_opened_while_the_scores_of_another_are_written_and_read(on_server: Database) -> None:
    images, regions = rows_for([4, 5])
    with on_server.session() as writer, on_server.session(write=False) as reader:
        scores.insert_scores(writer, run_id=2, images=images, regions=regions)
        reader.scalars(select(ImageScore.image_id)).all()
        with on_server.session() as session:
            session.execute(text("SET LOCAL lock_timeout = '2s'"))
            assert runs.open_run(session, model_id=1, scorer_hash="another", scorer={}).id == 3
    assert rows_of(on_server, 2) == (2, 4)


def test_two_that_open_the_same_run_at_once_get_the_same_one(store_url: str) -> None:
    database = open_store(store_url)
    found: list[int] = []

    def open_it(_: int) -> None:
        found.append(ask(database, runs.open_run, model_id=1, scorer_hash="new", scorer={}).id)

    at_once(4, open_it)
    assert len(found) == 4
    assert len(set(found)) == 1
    images, regions = rows_for([1])
    ask(database, scores.insert_scores, run_id=found[0], images=images, regions=regions)
