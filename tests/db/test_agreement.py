"""Regions with several annotators, on both backends."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from db.queries import agreement, labels, scores
from db.queries.agreement import set_agreement
from db.queries.labels import LabeledRegion
from db.queries.queue_items import count_clicks, set_clicks
from db.tables import Label, QueueItem, ScoringRun
from pipeline.evaluation.agreement import Agreement
from tests.factories import ask, new_item, new_queue, open_store, put, rows_for

BOX = (0, 0, 0, 0)
"""Of every region of `rows_for`."""


def record(session: Session, number: int, **values: Any) -> None:
    """A label whose mask is told from others by its number."""
    known = {"image_id": 1, "queue_id": 1, "mask_uri": "m", "mask_sha256": str(number), "labeled_pixels": 4}
    known |= {"source": "import", "annotator": str(number), "labeled_at": datetime.now(UTC)}
    labels.record_label(session, **known | values)


def test_a_shared_region_comes_with_its_scores_and_only_the_most_disputed_first(store_url: str) -> None:
    database = open_store(store_url, images=3)
    with database.session() as session:
        images, regions = rows_for([1, 2])
        regions = {**regions, "expected_entropy": np.array([0.1, 0.2, 0.3, 0.4])}
        scores.insert_scores(session, run_id=1, images=images, regions=regions)
        for name, run_id in (("round-01", 1), ("other", None)):
            put(session, new_queue(name, run_id=run_id))
        for queue_id, image_id, index in ((1, 1, 1), (1, 2, 0), (1, 3, 0), (2, 1, 1)):
            put(session, new_item(queue_id, image_id, image_id, BOX, region_index=index))
        assert (agreement.shared_regions(session), count_clicks(session, 1)) == ([], None)
        set_agreement(
            session,
            {1: Agreement(2, 5, 0.2, 0.3), 2: Agreement(3, 5, 0.6, 0.7), 4: Agreement(2, 5, 0.1, 0.5)},
        )
        set_clicks(session, {1: 4.0, 2: 6.5})
    found = ask(database, agreement.shared_regions)
    assert [(row.queue, row.rank, row.annotators) for row in found] == [
        ("round-01", 2, 3),
        ("other", 1, 2),
        ("round-01", 1, 2),
    ]
    np.testing.assert_allclose([row.expected_entropy or -1 for row in found], [0.3, -1, 0.2], rtol=1e-6)
    assert [row.uri for row in ask(database, agreement.shared_regions, queue_id=2)] == ["0.png"]
    assert ask(database, count_clicks, 1) == 10.5
    with database.session() as session:
        scores.forget_scores(session, run_id=1, image_ids=[1, 2])
        session.execute(update(ScoringRun).values(pruned_at=datetime.now(UTC)))
    assert [row.expected_entropy for row in ask(database, agreement.shared_regions)] == [None] * 3


def test_an_image_is_shared_within_one_queue_and_one_without_a_name_is_one_annotator(store_url: str) -> None:
    database = open_store(store_url, images=4)
    given = (
        *((1, 1, "ann"), (1, 1, "bo")),  # two of one queue
        *((2, 1, "ann"), (2, 2, "bo")),  # one of each queue
        *((3, 2, "ann"), (3, 2, "ann")),  # a correction
        *((4, 2, None), (4, 2, "ann")),
    )
    with database.session() as session:
        for name in ("a", "b"):
            put(session, new_queue(name))
        for number, (image_id, queue_id, annotator) in enumerate(given):
            regions = [LabeledRegion(number, 0, 2, 2), LabeledRegion(0, 0, 8, 8, 3, "outline")]
            values = {"image_id": image_id, "queue_id": queue_id, "annotator": annotator}
            record(session, number, regions=regions, **values)
    found = ask(database, agreement.shared_images)
    assert [(row.queue_id, row.image_id, row.width) for row in found] == [(2, 4, 8), (1, 1, 8)]
    assert [row.image_id for row in ask(database, agreement.shared_images, queue_id=1)] == [1]
    assert ask(database, labels.covered_regions, [2, 5]) == {
        2: {(1, 0, 2, 2, 0, True), (0, 0, 8, 8, 3, False)},
        5: {(4, 0, 2, 2, 0, True), (0, 0, 8, 8, 3, False)},
    }


def test_an_item_that_several_labels_cover_counts_once(store_url: str) -> None:
    """Items: two boxes, two outlines of one box, and one that no label covers."""
    database = open_store(store_url, images=1)
    shapes = (
        *((5, (0, 0, 2, 2), None), (6, (2, 0, 2, 2), None)),
        *((7, (4, 4, 4, 4), "one"), (8, (4, 4, 4, 4), "two"), (9, (0, 4, 2, 2), None)),
    )
    with database.session() as session:
        put(session, new_queue("a"))
        for rank, (index, box, outline) in enumerate(shapes):
            clicks = None if index == 6 else 2.0**index
            values = {"region_index": index, "outline": outline, "status": "labeled", "clicks": clicks}
            session.add(new_item(1, rank, 1, box, **values))
        whole = LabeledRegion(0, 0, 8, 8)
        of_labels = (
            [LabeledRegion(0, 0, 2, 2), LabeledRegion(4, 4, 4, 4, 8, "two")],
            [LabeledRegion(0, 0, 2, 2), LabeledRegion(2, 0, 2, 2)],
            [LabeledRegion(0, 0, 8, 8, 1, "not the whole")],
            [whole],
        )
        for number, regions in enumerate(of_labels):
            record(session, number, regions=regions)
    with database.session() as session:

        def covered(*label_ids: int) -> labels.Covered:
            return labels.count_covered(session, select(Label.id).where(Label.id.in_(label_ids)))

        assert covered(1) == (2, 2.0**5 + 2.0**8)
        assert covered(2) == (2, 2.0**5)
        assert covered(1, 2) == (3, 2.0**5 + 2.0**8)
        assert covered(3) == (0, None)
        assert covered(4) == (5, 2.0**5 + 2.0**7 + 2.0**8 + 2.0**9)
        session.execute(update(QueueItem).where(QueueItem.region_index == 5).values(status="released"))
        assert covered(1, 2) == (2, 2.0**8)
