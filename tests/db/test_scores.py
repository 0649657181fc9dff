"""Planning shards, replacing them, and reading scores back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import runs, scores, shards
from db.queries.shards import PlannedShard
from db.tables import Shard, utc_now
from tests.factories import ask, count_scores, fetch, pending_shards, rows_for

OWNER = "here:1:0"
LATER = utc_now() + timedelta(hours=1)


def write(database: Database, shard: PlannedShard, ids: Sequence[int], *, tried: Sequence[int] = ()) -> None:
    images, regions = rows_for(ids)
    with database.session() as session:
        take(session, shard)
        assert shards.replace_shard(
            session,
            run_id=1,
            shard=shard,
            owner=OWNER,
            image_ids=[*ids, *tried],
            images=images,
            regions=regions,
        )


def take(session: Session, shard: PlannedShard) -> None:
    """Have a shard as if it had been planned and claimed."""
    mine = {"status": "running", "owner": OWNER, "last_image_id": shard.last, "lease_until": LATER}
    found = session.scalars(select(Shard).where(Shard.first_image_id == shard.first)).one_or_none()
    if found is None:
        session.add(Shard(run_id=1, first_image_id=shard.first, **mine))
    else:
        session.execute(update(Shard).where(Shard.id == found.id).values(**mine))
    session.flush()


def plan(database: Database, shard_images: int) -> list[PlannedShard]:
    with database.session() as session:
        shards.plan_shards(session, run_id=1, shard_images=shard_images)
        return pending_shards(session, run_id=1)


def test_planning_cuts_the_pool_into_shards_and_forgets_the_plan_before(database: Database) -> None:
    assert plan(database, 4) == [(1, 4), (5, 8), (9, 10)]
    assert plan(database, 5) == [(1, 5), (6, 10)]


def test_a_shard_that_is_done_is_not_planned_again(database: Database) -> None:
    first, *_ = plan(database, 4)
    write(database, first, [1, 2, 3, 4])
    assert plan(database, 4) == [(5, 8), (9, 10)]
    assert ask(database, count_scores, run_id=1) == (4, 8)


def test_writing_a_shard_twice_leaves_its_rows_once(database: Database) -> None:
    first, *_ = plan(database, 4)
    write(database, first, [1, 2, 3, 4])
    write(database, first, [1, 2, 3, 4])
    assert ask(database, count_scores, run_id=1) == (4, 8)


def test_failed_images_are_planned_again_and_their_neighbours_keep_their_rows(database: Database) -> None:
    first, *_ = plan(database, 10)
    write(database, first, [2, 3, 4, 6, 7, 8, 9], tried=[1, 5, 10])
    again = plan(database, 10)
    assert again == [(1, 10)]
    found = ask(database, shards.unscored_images, run_id=1, shard=shards.PlannedShard(1, 10))
    assert [image.id for image in found] == [1, 5, 10]
    write(database, again[0], [1, 5], tried=[10])
    assert ask(database, count_scores, run_id=1) == (9, 18)
    (shard,) = fetch(database, Shard)
    assert (shard.status, shard.scored, shard.failed) == ("done", 2, 1)


def test_a_transaction_that_fails_leaves_neither_rows_nor_a_done_shard(database: Database) -> None:
    first, *_ = plan(database, 4)
    images, regions = rows_for([1, 2])
    broken = {**regions, "entropy": [None] * 4}
    with pytest.raises(IntegrityError, match=r"(?i)not.null"), database.session() as session:
        take(session, first)
        shards.replace_shard(
            session, run_id=1, shard=first, owner=OWNER, image_ids=[1, 2], images=images, regions=broken
        )
    assert ask(database, count_scores, run_id=1) == (0, 0)
    assert ask(database, pending_shards, run_id=1)[0] == first


def test_columns_come_back_in_order_with_nan_for_what_was_not_measured(database: Database) -> None:
    write(database, PlannedShard(5, 6), [5, 6])
    write(database, PlannedShard(1, 2), [1, 2])
    found = ask(
        database, scores.region_columns, run_id=1, columns=["image_id", "region_index", "mutual_information"]
    )
    nothing = ask(database, scores.image_columns, run_id=2, columns=["entropy"])
    assert found["image_id"].tolist() == [1, 1, 2, 2, 5, 5, 6, 6]
    assert found["region_index"].tolist() == [0, 1] * 4
    assert np.isnan(found["mutual_information"]).all()
    assert len(nothing["entropy"]) == 0


def test_the_top_is_ordered_by_score(database: Database) -> None:
    for image_id, entropy in ((3, 0.2), (4, 0.9), (5, 0.6)):
        images, regions = rows_for([image_id], entropy)
        with database.session() as session:
            shard = PlannedShard(image_id, image_id)
            take(session, shard)
            shards.replace_shard(
                session,
                run_id=1,
                shard=shard,
                owner=OWNER,
                image_ids=[image_id],
                images=images,
                regions=regions,
            )
    ask(database, scores.set_heatmaps, run_id=1, heatmaps={4: {"entropy": "map.png"}})
    top = ask(database, scores.top_images, run_id=1, limit=2)
    assert [(image.id, uris) for image, uris in top] == [(4, {"entropy": "map.png"}), (5, None)]
    regions = ask(database, scores.top_regions, run_id=1, limit=3)
    assert [(row.image_id, row.region_index) for row in regions] == [(4, 0), (4, 1), (5, 0)]


@pytest.mark.parametrize("name", ["surprise", "__table__", "metadata"])
def test_an_unknown_column_is_refused(database: Database, name: str) -> None:
    with database.session(write=False) as session, pytest.raises(ValueError, match="a column of"):
        scores.region_columns(session, run_id=1, columns=[name])


def test_an_open_run_is_found_again_by_its_hash(database: Database) -> None:
    with database.session() as session:
        same = runs.open_run(session, model_id=1, scorer_hash="a", scorer={})
        other = runs.open_run(session, model_id=1, scorer_hash="b", scorer={})
        assert (same.id, other.id) == (1, 2)


def test_the_top_is_the_top_of_all_regions(database: Database) -> None:
    rng = np.random.default_rng(0)
    images, regions = rows_for(range(1, 11))
    entropy = rng.integers(0, 6, 20) / 8  # ties, within images and between them
    entropy[4:6] = 0.0
    with database.session() as session:
        scores.insert_scores(session, run_id=1, images=images, regions={**regions, "entropy": entropy})
        for limit in (1, 3, 5, 20, 30):
            found = scores.top_regions(session, run_id=1, limit=limit)
            places = np.lexsort((regions["region_index"], regions["image_id"], -entropy))[:limit]
            assert [2 * (row.image_id - 1) + row.region_index for row in found] == places.tolist()


def test_a_region_of_an_image_without_a_row_is_refused(database: Database) -> None:
    images, regions = rows_for([1, 2])
    with database.session() as session, pytest.raises(ValueError, match="for the image of each region"):
        scores.insert_scores(session, run_id=1, images={**images, "image_id": [1, 3]}, regions=regions)
