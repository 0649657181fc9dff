"""A shard that ends its workers is tried a few times, after all others, and then left alone."""

from __future__ import annotations

from collections.abc import Collection

import pytest
from sqlalchemy import text

from db.engine import Database
from db.queries import shards
from db.queries.shards import MOST_ATTEMPTS, PlannedShard
from tests.factories import ask, open_store


@pytest.fixture
def database(store_url: str) -> Database:
    """Four images of the pool in two shards of run 1."""
    database = open_store(store_url, images=4)
    ask(database, shards.plan_shards, run_id=1, shard_images=2)
    return database


def claim(
    database: Database, owner: str, *, dead: Collection[str] = (), unbegun: bool = False
) -> PlannedShard | None:
    return ask(database, shards.claim_shard, run_id=1, owner=owner, seconds=60, dead=dead, unbegun=unbegun)


FIRST, SECOND = PlannedShard(1, 2), PlannedShard(3, 4)


def test_a_shard_whose_worker_died_comes_after_those_that_nobody_has_begun(database: Database) -> None:
    assert claim(database, "a") == FIRST
    assert claim(database, "b", dead={"a"}) == SECOND
    assert claim(database, "c", dead={"a"}, unbegun=True) is None
    assert claim(database, "c", dead={"a"}) == FIRST


def test_a_shard_is_left_alone_after_its_last_attempt(database: Database) -> None:
    claim(database, "b")
    with database.session() as session:
        shards.replace_shard(
            session, run_id=1, shard=FIRST, owner="b", image_ids=[1, 2], images={}, regions={}
        )
    dead: set[str] = set()
    for attempt in range(MOST_ATTEMPTS):
        assert ask(database, shards.fatal_shards, run_id=1, dead=dead) == []
        assert claim(database, f"victim {attempt}", dead=dead) == SECOND
        dead.add(f"victim {attempt}")
    assert claim(database, "next", dead=dead) is None
    with database.session() as session:
        assert shards.fatal_shards(session, run_id=1, dead=dead) == [SECOND]
        (worker,) = shards.workers(session, run_id=1)
        assert worker == ("b", 1, 0, 0, 2)


def test_a_shard_that_is_given_back_was_not_to_blame(database: Database) -> None:
    for _ in range(MOST_ATTEMPTS + 1):
        assert claim(database, "a", unbegun=True) == FIRST
        ask(database, shards.release_shards, run_id=1, owner="a")


def test_a_new_plan_tries_again_what_was_left_alone(database: Database) -> None:
    dead = {"a"}
    for _ in range(2 * MOST_ATTEMPTS):
        claim(database, "a", dead=dead)
    with database.session() as session:
        assert len(shards.fatal_shards(session, run_id=1, dead=dead)) == 2
        assert shards.plan_shards(session, run_id=1, shard_images=2, dead=dead) == (2, 0)
    assert claim(database, "b", unbegun=True) == FIRST


def test_a_plan_does_not_wait_for_a_silent_worker_that_is_writing_its_shard(postgresql_url: str) -> None:
    database = open_store(postgresql_url)
    ask(database, shards.plan_shards, run_id=1, shard_images=2)
    assert ask(database, shards.claim_shard, run_id=1, owner="slow", seconds=-1.0) == FIRST
    with database.session() as writing:
        assert shards.replace_shard(
            writing, run_id=1, shard=FIRST, owner="slow", image_ids=[1, 2], images={}, regions={}
        )
        with database.session() as planning:
            planning.execute(text("SET LOCAL lock_timeout = '2s'"))
            opened = shards.plan_shards(planning, run_id=1, shard_images=2)
            assert opened.running == 1
