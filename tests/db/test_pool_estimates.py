"""What the audits say about the pool, on either backend."""

from __future__ import annotations

from datetime import datetime, timedelta

from db.queries import pool_estimates
from db.queries.labels import LabeledRegion, record_label
from db.tables import PoolEstimate, utc_now
from tests.factories import ask, count_rows, new_item, new_queue, open_store, put


def test_the_estimate_of_a_queue_is_replaced_and_goes_with_its_queue(store_url: str) -> None:
    database = open_store(store_url)
    with database.session() as session:
        queue = put(session, new_queue(run_id=1))
        for number in (1, 2):
            pool_estimates.put_estimate(
                session, queue_id=queue.id, model_id=1, labels_hash=str(number), document={"bounds": [0, 0.5]}
            )
        queue_id = queue.id
    found = ask(database, pool_estimates.estimate_of, queue_id)
    assert found is not None
    assert (found.labels_hash, found.document) == ("2", {"bounds": [0, 0.5]})
    assert count_rows(database, PoolEstimate) == 1
    with database.session() as session:
        session.delete(session.get_one(type(queue), queue_id))
    assert count_rows(database, PoolEstimate) == 0


def test_what_was_labeled_or_skipped_before_a_queue_is_told_from_what_came_later(store_url: str) -> None:
    database = open_store(store_url)
    box = (0, 0, 8, 8)
    with database.session() as session:
        first, second = (put(session, new_queue(name)).id for name in ("initial", "round-01"))
        for queue_id, image_id in ((first, 1), (second, 2)):
            put(session, new_item(queue_id, image_id, image_id, box, status="skipped"))
        made = record_label(
            session,
            image_id=3,
            queue_id=first,
            mask_uri="m",
            mask_sha256="m",
            labeled_pixels=4,
            source="import",
            annotator=None,
            labeled_at=utc_now(),
            regions=[LabeledRegion(*box)],
        )
        assert made is not None
        moment: datetime = made.created_at
        assert pool_estimates.labeled_before(session, moment) == {3: {LabeledRegion(*box)}}
        assert pool_estimates.labeled_before(session, moment - timedelta(seconds=1)) == {}
        assert [pool_estimates.count_skipped_before(session, one) for one in (first, second)] == [0, 1]
