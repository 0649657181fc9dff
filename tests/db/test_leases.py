"""Leases and claims: nobody waits for the dead, nobody takes from the living, and two at once agree."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import update

from db.engine import Database
from db.queries import leases, runs, shards
from db.queries.shards import PlannedShard
from db.tables import Lease, Shard, utc_now
from tests.factories import ask, at_once, count_rows, count_scores, open_store, pending_shards, rows_for


@pytest.fixture
def database(store_url: str) -> Database:
    database = open_store(store_url)
    ask(database, shards.plan_shards, run_id=1, shard_images=2)
    return database


def claim(database: Database, owner: str, *, dead: set[str] | None = None) -> PlannedShard | None:
    return ask(database, shards.claim_shard, run_id=1, owner=owner, seconds=60, dead=dead or set())


def write(database: Database, owner: str, shard: PlannedShard) -> bool:
    ids = list(range(shard.first, shard.last + 1))
    images, regions = rows_for(ids)
    with database.session() as session:
        return shards.replace_shard(
            session, run_id=1, shard=shard, owner=owner, image_ids=ids, images=images, regions=regions
        )


def let_leases_end(database: Database) -> None:
    with database.session() as session:
        past = utc_now() - timedelta(seconds=1)
        session.execute(update(Shard).values(lease_until=past))
        session.execute(update(Lease).values(until=past))


def test_shards_are_claimed_in_order_and_each_once(database: Database) -> None:
    found = [claim(database, owner) for owner in "abcdef"]
    assert found == [(1, 2), (3, 4), (5, 6), (7, 8), (9, 10), None]


def test_a_shard_whose_lease_has_run_out_is_another_ones_and_its_first_owner_writes_nothing(
    database: Database,
) -> None:
    shard = claim(database, "a")
    assert shard is not None
    let_leases_end(database)
    for _ in range(4):
        claim(database, "b")
    assert claim(database, "b") == shard  # after those that nobody had begun
    assert not write(database, "a", shard)
    assert write(database, "b", shard)
    assert ask(database, count_scores, run_id=1) == (2, 4)


def test_a_lease_that_is_renewed_is_kept(database: Database) -> None:
    shard = claim(database, "a")
    assert shard is not None
    let_leases_end(database)
    ask(database, leases.renew_leases, owner="a", seconds=60)
    assert [claim(database, "b") for _ in range(5)][-1] is None
    assert write(database, "a", shard)


def test_what_is_planned_anew_goes_around_a_shard_that_somebody_is_at(database: Database) -> None:
    assert [claim(database, owner) for owner in "ab"] == [(1, 2), (3, 4)]
    with database.session() as session:
        shards.release_shards(session, run_id=1, owner="a")
        opened = shards.plan_shards(session, run_id=1, shard_images=5)
        assert pending_shards(session, run_id=1) == [(1, 2), (5, 9), (10, 10)]
    assert opened == (3, 1)


def test_what_a_dead_owner_had_is_planned_anew(database: Database) -> None:
    claim(database, "dead")
    with database.session() as session:
        shards.plan_shards(session, run_id=1, shard_images=10, dead={"dead"})
        assert pending_shards(session, run_id=1) == [(1, 10)]


def test_many_that_claim_at_once_never_get_the_same_shard(store_url: str) -> None:
    database = open_store(store_url, images=40)
    ask(database, shards.plan_shards, run_id=1, shard_images=1)
    found: list[PlannedShard] = []

    def drain(number: int) -> None:
        while (shard := claim(database, f"worker {number}")) is not None:
            found.append(shard)
            assert write(database, f"worker {number}", shard)

    at_once(4, drain)
    assert sorted(found) == [(n, n) for n in range(1, 41)]
    assert ask(database, count_scores, run_id=1) == (40, 80)


def test_many_that_plan_at_once_make_one_plan(database: Database) -> None:
    def plan(_: int) -> None:
        with database.session() as session:
            runs.open_run(session, model_id=1, scorer_hash="a", scorer={})
            shards.plan_shards(session, run_id=1, shard_images=3)

    at_once(4, plan)
    assert ask(database, pending_shards, run_id=1) == [(1, 3), (4, 6), (7, 9), (10, 10)]
    assert count_rows(database, Shard) == 4


def test_a_lease_is_one_ones_until_it_ends_or_is_given_back(database: Database) -> None:
    def take(owner: str, dead: set[str] | None = None) -> str | None:
        with database.session() as session:
            held = leases.take_lease(session, name="train", owner=owner, seconds=60, dead=dead or set())
            return None if held is None else held.owner

    assert [take("a"), take("b"), take("a")] == [None, "a", None]
    assert take("b", {"a"}) is None
    let_leases_end(database)
    assert [take("c"), take("b")] == [None, "c"]
    with database.session() as session:
        leases.give_lease_back(session, name="train", owner="b")
        assert session.get_one(Lease, "train").owner == "c"
        leases.give_lease_back(session, name="train", owner="c")
    assert take("b") is None


def test_of_many_that_take_a_free_lease_at_once_one_has_it(database: Database) -> None:
    taken: list[bool] = []

    def take(number: int) -> None:
        held = ask(database, leases.take_lease, name="train", owner=f"worker {number}", seconds=60)
        taken.append(held is None)

    at_once(4, take)
    assert sorted(taken) == [False, False, False, True]
