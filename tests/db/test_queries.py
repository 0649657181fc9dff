"""Images, failures, rounds, queues, labels, models, evaluations and candidates, on either backend.

The other modules of `db.queries` have files of their own beside this one.
"""

from __future__ import annotations

from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import (
    audits,
    candidates,
    evaluations,
    failures,
    images,
    labels,
    models,
    queue_items,
    queues,
    rounds,
    runs,
    scores,
)
from db.queries.labels import LabeledRegion
from db.tables import Label, Metric, QueueItem, utc_now
from tests.factories import add_model, new_item, new_queue, new_run, put, score_columns


@pytest.fixture
def session(store_url: str) -> Generator[Session]:
    """A transaction on a store with eight images of 16×8: a to d and h in the pool, e test, f calibration, g
    guard. d has the content of e, and h that of a."""
    database = Database(store_url)
    with database.session() as session:
        rows = [
            {"uri": f"{name}.png", "sha256": content, "width": 16, "height": 8, "channels": 3}
            | {"group_name": group, "position": position}
            for position, (name, content, group) in enumerate(
                zip("abcdefgh", "abceefga", ["x", "x", "y", "y", "x", "z", "z", "z"], strict=True)
            )
        ]
        images.insert_images(session, rows)
        codes = [images.SPLITS.index(split) for split in ("test", "calibration", "guard")]
        images.set_splits(session, np.array([5, 6, 7]), np.array(codes, dtype=np.uint8))
        images.link_duplicates(session)
        yield session
    database.close()


def label(
    session: Session, image_id: int, queue_id: int, mask: str, *regions: Any, **values: Any
) -> Label | None:
    known: dict[str, Any] = {"mask_uri": mask, "mask_sha256": mask, "labeled_pixels": 4, "source": "import"}
    known |= {"annotator": None, "labeled_at": utc_now(), "regions": [LabeledRegion(*box) for box in regions]}
    return labels.record_label(session, image_id=image_id, queue_id=queue_id, **known | values)


def ids(rows: Any) -> list[int]:
    return [row.id for row in rows]


def test_images_are_found_by_split_name_and_content(session: Session) -> None:
    assert images.project_row(session) is None
    assert ids(images.pool_images(session, limit=2)) == [1, 2]
    assert ids(images.pool_images(session, after_id=2, limit=9)) == [3]
    assert ids(images.split_images(session, "calibration")) == [6]
    assert {uri: row.id for uri, row in images.images_by_uri(session, ["b.png", "none.png"]).items()} == {
        "b.png": 2
    }
    assert ids(images.images_by_id(session, [3, 1])) == [1, 3]
    named = images.images_named(session, stems={"b"}, copies_of={1})
    assert [tuple(row) for row in named] == [(2, "b.png", None), (8, "h.png", 1)]
    assert images.image_uris(session, [7]) == {7: "g.png"}
    assert images.originals(session, ["a", "e", "unknown"]) == {"a": 1, "e": 5}


def test_images_are_counted_and_read_as_columns(session: Session) -> None:
    images.update_images(session, [{"id": 1, "mask_uri": "a"}, {"id": 5, "mask_uri": "e"}])
    images.update_images(session, [{"id": 2, "group_name": "w", "position": 70}])
    columns = images.split_columns(session)
    assert columns.ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [columns.names[group] for group in columns.groups] == ["x", "w", "y", "y", "x", "z", "z", "z"]
    assert columns.positions.tolist() == [0, 70, 2, 3, 4, 5, 6, 7]
    assert [images.SPLITS[code] for code in columns.splits[4:7]] == ["test", "calibration", "guard"]
    assert columns.has_mask.tolist() == [True, False, False, False, True, False, False, False]
    sizes = images.pool_sizes(session)
    assert [column.tolist() for column in sizes] == [[1, 2, 3], [16] * 3, [8] * 3, [True, False, False]]
    assert images.count_splits(session) == {
        "pool": 3,
        "test": 1,
        "calibration": 1,
        "guard": 1,
        "duplicate": 2,
    }
    assert images.count_unmasked(session) == {"calibration": 1}
    assert images.count_masks(session) == 2
    queue = put(session, new_queue())
    assert label(session, 2, queue.id, "m", (0, 0, 16, 8)) is not None
    assert images.unlabeled_ids(session) == [1, 3]


def test_a_failure_is_replaced_and_forgotten(session: Session) -> None:
    failures.record_failures(session, "ingest", [("a", "broken"), ("b", "too large")])
    failures.record_failures(session, "score", [("a", "gone")])
    failures.record_failures(session, "ingest", [("a", "truncated")])
    assert [(row.step, row.subject, row.reason) for row in failures.list_failures(session)] == [
        ("ingest", "a", "truncated"),
        ("ingest", "b", "too large"),
        ("score", "a", "gone"),
    ]
    assert [row.subject for row in failures.list_failures(session, step="ingest", limit=1)] == ["a"]
    failures.clear_failures(session, "ingest", ["b"])
    failures.clear_failures_before(session, "ingest", utc_now() - timedelta(hours=1))
    assert [row.subject for row in failures.list_failures(session, step="ingest")] == ["a"]
    failures.clear_failures_before(session, "ingest", utc_now() + timedelta(hours=1))
    failures.clear_failures(session, "score")
    assert failures.list_failures(session) == []


def test_a_draft_is_replaced_and_an_exported_queue_is_followed_by_another_name(session: Session) -> None:
    assert rounds.current_round(session) is None
    first = rounds.open_round(session, number=1, state="closed")
    second = rounds.open_round(session, number=2, state="select")
    assert rounds.current_round(session) is second
    assert rounds.list_rounds(session) == [first, second]
    assert queues.newest_queue(session) is None
    initial = put(session, new_queue("initial"))
    for boxes in ([(0, 0, 8, 8), (8, 0, 8, 8)], [(0, 0, 4, 4)]):
        name = queues.free_queue_name(session, number=2, round_id=second.id)
        items = [new_item(0, rank, 1, box) for rank, box in enumerate(boxes, start=1)]
        queue = queues.replace_draft(session, new_queue(name, round_id=second.id), items)
    assert queue.name == "round-02"
    assert [item.w for item in queue_items.queue_items(session, queue.id)] == [4]
    assert session.scalar(select(func.count()).select_from(QueueItem)) == 1
    queue.exported_at = utc_now()
    session.flush()
    assert queues.free_queue_name(session, number=2, round_id=second.id) == "round-02-b"
    assert queues.queue_by_name(session, "round-02") is queue
    assert queues.queue_by_name(session, "round-03") is None
    assert queues.round_queue(session, second.id) is queue
    assert queues.round_queue(session, first.id) is None
    assert queues.initial_queue(session) is initial
    assert queues.newest_queue(session) is queue
    assert queues.list_queues(session) == [initial, queue]


def test_a_queue_has_places_in_folders_and_on_servers(session: Session) -> None:
    queue, other = put(session, new_queue()), put(session, new_queue("round-02"))
    queues.record_place(session, queue_id=queue.id, tool="folder", url="", place="queues/round-01")
    for place in ("1", "2", "1"):
        queues.record_place(session, queue_id=queue.id, tool="cvat", url="https://s", place=place)
    queues.record_place(session, queue_id=other.id, tool="cvat", url="https://s", place="3")
    assert [row.place for row in queues.places_of(session, queue.id)] == ["queues/round-01", "1", "2"]
    on_server = queues.places_on(session, tool="cvat", url="https://s")
    assert [row.place for row in on_server] == ["3", "2", "1"]
    until = datetime(2024, 5, 1, 12, tzinfo=UTC)
    queues.mark_pulled(session, queue_id=queue.id, tool="cvat", url="https://s", until=until)
    session.expire_all()
    assert [row.pulled_until for row in queues.places_of(session, queue.id)] == [None, until, until]
    queues.forget_places(session, [row.id for row in on_server[:2]])
    assert [row.place for row in queues.places_on(session, tool="cvat", url="https://s")] == ["1"]


def test_a_queue_keeps_its_first_items_and_the_probability_of_its_shorter_audit(session: Session) -> None:
    queue, other = put(session, new_queue()), put(session, new_queue(name="other"))
    for rank in range(1, 7):
        audit = {"slice": "audit", "inclusion_probability": 0.5} if rank % 3 == 2 else {}
        session.add(new_item(queue.id, rank, rank % 2 + 1, (8 * rank, 0, 8, 8), **audit))
    session.add(new_item(other.id, 1, 1, (0, 0, 8, 8)))
    session.flush()
    for _ in range(2):
        queue_items.keep_first(session, queue_id=queue.id, items=4)
        session.expire_all()
        found = queue_items.queue_items(session, queue.id)
        assert [(item.rank, item.inclusion_probability) for item in found] == [
            (1, None),
            (2, 0.25),
            (3, None),
            (4, None),
        ]
    assert len(queue_items.queue_items(session, other.id)) == 1


def test_the_items_of_a_queue_are_read_counted_and_moved(session: Session) -> None:
    images.update_images(session, [{"id": 1, "mask_uri": "a"}, {"id": 3, "mask_uri": "c"}])
    queue = put(session, new_queue())
    boxes = {1: (1, (0, 0, 8, 8)), 2: (2, (0, 0, 8, 8)), 3: (1, (8, 0, 8, 8))}
    for rank, (image_id, box) in boxes.items():
        session.add(new_item(queue.id, rank, image_id, box, predicted_class=rank % 2, outline=None))
    session.add(new_item(queue.id, 4, 2, (8, 0, 8, 8), slice="audit", outline="04"))
    session.flush()
    items = queue_items.queue_items(session, queue.id)
    assert [
        (found.item.rank, found.image.uri) for found in queue_items.queued_regions(session, queue_id=queue.id)
    ] == [
        (1, "a.png"),
        (2, "b.png"),
        (3, "a.png"),
        (4, "b.png"),
    ]
    assert [found.item.rank for found in queue_items.queued_regions(session, queue_id=queue.id, limit=2)] == [
        1,
        2,
    ]
    box, image = list(queue_items.queued_boxes(session, queue_id=queue.id))[3]
    assert tuple(box) == (items[3].id, 4, 8, 0, 8, 8, 0, "04")
    assert tuple(image) == (2, "b.png", "b", 16, 8)
    assert ids(queue_items.images_to_label(session, queue_id=queue.id, after_id=0, limit=9)) == [3]

    queue_items.set_status(session, item_ids=[items[0].id], status="labeled")
    queue_items.set_status(session, item_ids=[items[1].id], status="skipped")
    queue_items.set_clicks(session, {items[0].id: 2.5, items[2].id: 4.0})
    session.expire_all()
    assert ids(queue_items.queue_items(session, queue.id, status="labeled")) == [items[0].id]
    assert ids(queue_items.waiting_images(session, queue.id, after_id=0, limit=9)) == [1, 2]
    waiting = queue_items.waiting_items(session, queue.id, image_ids=[1])
    assert [item.rank for item in waiting] == [3]
    assert queue_items.skipped_images(session, queue.id) == {2}
    assert queue_items.item_statuses(session, queue.id)[items[1].id] == "skipped"
    assert queue_items.count_items(session, queue.id) == {"labeled": 1, "skipped": 1, "queued": 2}
    assert list(queue_items.count_by(session, queue.id, QueueItem.slice).items()) == [
        ("selected", 3),
        ("audit", 1),
    ]
    assert queue_items.count_by(session, queue.id, QueueItem.predicted_class) == {1: 2, 0: 1, None: 1}
    assert queue_items.count_clicks(session, queue.id) == 6.5
    assert queue_items.next_rank(session, queue.id) == 5
    row = {"slice": "selected", "reason": "", "status": "released", "region_index": 0}
    row |= {"queue_id": queue.id, "rank": 5, "image_id": 3, "x": 0, "y": 0, "w": 2, "h": 2}
    queue_items.insert_items(session, [row])

    assert label(session, 3, queue.id, "m", (0, 0, 16, 8)) is not None
    taken = queue_items.taken_regions(session)
    assert sorted(zip(taken.image_id.tolist(), taken.box.tolist(), taken.outline, strict=True), key=str) == [
        (1, [0, 0, 8, 8], None),
        (1, [8, 0, 8, 8], None),
        (2, [0, 0, 8, 8], None),
        (2, [8, 0, 8, 8], "04"),
        (3, [0, 0, 16, 8], None),
    ]
    assert queue_items.taken_regions(session, except_queue_id=queue.id).image_id.tolist() == [3]


def test_a_review_that_was_never_exported_is_replaced(session: Session) -> None:
    row = {"slice": "review", "reason": "", "region_index": 0, "rank": 1, "x": 0, "y": 0, "w": 4, "h": 4}
    for image_id in (1, 2):
        review = queues.put_review(
            session,
            run_id=None,
            strategy="review",
            unit="region",
            spec={},
            items=[row | {"image_id": image_id}],
        )
    assert review.name == "review-01"
    assert queue_items.reviewed_regions(session) == {}
    review.exported_at = utc_now()
    session.flush()
    reviewed = queue_items.reviewed_regions(session)
    assert {image_id: [tuple(region) for region in found] for image_id, found in reviewed.items()} == {
        2: [(0, 0, 4, 4, None)]
    }


def test_the_newest_label_of_each_annotator_is_in_force(session: Session) -> None:
    queue = put(session, new_queue())
    item = put(session, new_item(queue.id, 1, 1, (0, 0, 8, 8), status="labeled", clicks=3.0))
    left, right = (0, 0, 8, 8), (8, 0, 8, 8)
    assert not labels.has_labels(session)
    first = label(session, 1, queue.id, "m1", left, annotator="ann", origin="7")
    assert label(session, 1, queue.id, "m1", left, annotator="ann") is None
    second = label(session, 1, queue.id, "m1", left, annotator="bob")
    third = label(session, 1, queue.id, "m2", right, annotator="ann", origin="7")
    assert first is not None
    assert second is not None
    assert third is not None
    assert third.version == 3
    assert labels.latest_label(session, image_id=1, queue_id=queue.id) is third
    assert labels.latest_label(session, image_id=2, queue_id=queue.id) is None
    assert labels.labels_in_force(session) == [second, third]
    assert labels.labels_in_force(session, queue_id=queue.id, image_id=2) == []
    assert labels.regions_in_force(session, queue_id=queue.id, image_id=1) == {
        LabeledRegion(*left),
        LabeledRegion(*right),
    }
    assert labels.labeled_images(session, queue_id=queue.id) == {1}
    assert labels.has_labels(session)
    assert labels.has_labels(session, queue_id=queue.id)
    covered = labels.covered_regions(session, [first.id, third.id])
    assert [tuple(*covered[row.id]) for row in (first, third)] == [(*left, 0, True), (*right, 0, True)]
    assert tuple(labels.count_covered(session, select(Label.id))) == (1, 3.0)
    assert tuple(labels.count_covered(session, select(Label.id).where(Label.id == third.id))) == (0, None)
    assert item.status == "labeled"


def test_what_a_model_may_be_trained_on_and_what_is_new_to_it(session: Session) -> None:
    queue = put(session, new_queue())
    for image_id, mask in ((1, "m1"), (2, "m2"), (4, "m4"), (5, "m5")):
        assert label(session, image_id, queue.id, mask, (0, 0, 8, 8)) is not None
    usable = models.training_labels(session)
    assert [(row.uri, [one.mask_uri for one in row.labels]) for row in usable] == [
        ("a.png", ["m1"]),
        ("b.png", ["m2"]),
    ]
    assert models.promoted_model(session) is None
    assert models.newest_trained(session) is None
    assert models.count_new_labels(session) == 2

    first = rounds.open_round(session, number=1, state="train")
    values: dict[str, Any] = {"round_id": first.id, "name": "r01", "parent_id": None, "checkpoint_uri": "m"}
    values |= {"config": {"a": 1}, "config_hash": "", "labels_hash": "", "seed": 0, "iterations": 1}
    models.start_model(session, label_ids=[usable[1].labels[0].id], **values)
    model = models.start_model(session, label_ids=[usable[0].labels[0].id], **values)
    assert models.round_model(session, first.id) is model
    assert [row.mask_uri for row in models.model_labels(session, model.id)] == ["m1"]
    assert models.labeled_ids(session, model.id) == [1]
    model.status, model.created_at = "promoted", utc_now() - timedelta(hours=1)
    second = add_model(session, 2, status="refused", created_at=utc_now() - timedelta(hours=2))
    assert models.list_models(session) == [model, second]
    assert models.promoted_model(session) is model
    assert list(models.promoted_models(session, other_than=model.id)) == []
    assert list(models.promoted_models(session, other_than=second.id)) == [model]
    assert models.newest_trained(session) is second
    assert models.count_new_labels(session) == 1


def test_audit_regions_are_unseen_until_a_model_is_trained_on_their_image(session: Session) -> None:
    queue = put(session, new_queue())
    audit: dict[str, Any] = {"slice": "audit", "status": "labeled", "inclusion_probability": 0.25}
    session.add_all(new_item(queue.id, rank, rank, (0, 0, 8, 8), **audit) for rank in (1, 2))
    session.add(new_item(queue.id, 3, 3, (0, 0, 8, 8), **audit | {"status": "queued"}))
    made = [label(session, image_id, queue.id, f"m{image_id}", (0, 0, 8, 8)) for image_id in (1, 2, 3)]
    assert made[0] is not None
    regions = audits.audit_regions(session)
    assert [tuple(region) for region in regions] == [
        (image_id, 0, 0, 8, 8, None, queue.id, queue.created_at, (f"m{image_id}",)) for image_id in (1, 2)
    ]
    assert audits.audit_slices(session) == [
        audits.AuditSlice(queue.id, queue.name, None, 3, 12, queue.created_at, False, True)
    ]
    current = rounds.open_round(session, number=1, state="train")
    values: dict[str, Any] = {"name": "r01", "parent_id": None, "checkpoint_uri": "", "config": {}, "seed": 0}
    values |= {"config_hash": "", "labels_hash": "", "iterations": 1, "label_ids": [made[0].id]}
    parent = models.start_model(session, round_id=current.id, **values)
    child = add_model(session, 2, parent_id=parent.id)
    assert [region.image_id for region in audits.unseen(session, regions, model_ids=[child.id])] == [2]
    made[0].created_at = queue.created_at - timedelta(hours=1)  # what it covers was labeled before the draw
    session.flush()
    assert audits.unseen(session, regions, model_ids=[child.id]) == regions
    made[0].created_at = utc_now()
    parent.config = {audits.HELD_OUT: "audit"}
    session.flush()
    assert audits.unseen(session, regions, model_ids=[child.id]) == regions


def test_a_calibration_is_replaced_and_evaluations_go_with_their_metrics(session: Session) -> None:
    model = add_model(session)
    for nll in (0.5, 0.25):
        evaluations.put_calibration(
            session,
            model_id=model.id,
            sampler="none",
            calibrator="temperature",
            parameters={"temperature": 1.5},
            nll_before=1.0,
            nll_after=nll,
            images=3,
            pixels=2**33,
            warning=None,
        )
    (calibration,) = evaluations.model_calibrations(session, model.id).values()
    assert (calibration.nll_after, calibration.pixels, calibration.passed) == (0.25, 2**33, False)
    place: dict[str, Any] = {"model_id": model.id, "sampler": "none"}
    numbers = {("mean_iou", -1): evaluations.Interval(0.5, 0.25, 0.75)}
    numbers |= {("iou", 2): evaluations.Interval(None, None, None)}
    for split, calibrated in (("calibration", True), ("test", True), ("test", False)):
        evaluations.add_evaluation(
            session,
            **place,
            split=split,
            calibrated=calibrated,
            images=2,
            blocks=1,
            curves={"a": [1]},
            metrics=numbers,
        )
    known = evaluations.model_evaluations(session, model.id)
    assert [(row.split, row.calibrated) for row in known] == [
        ("test", False),
        ("test", True),
        ("calibration", True),
    ]
    assert evaluations.evaluation_of(session, **place, split="test", calibrated=False) is known[0]
    assert evaluations.evaluation_of(session, **place, split="calibration", calibrated=False) is None
    metrics = evaluations.metrics_of(session, **place, split="test", calibrated=True)
    assert {key: (row.value, row.low, row.high) for key, row in metrics.items()} == numbers
    evaluations.clear_evaluations(session, model.id, versions={"test": 1, "calibration": 1})
    assert session.scalar(select(func.count()).select_from(Metric)) == 0


def test_only_eligible_images_of_a_run_become_candidates(session: Session) -> None:
    run = runs.open_run(session, model_id=add_model(session).id, scorer_hash="a", scorer={})
    assert candidates.last_eligible(session, run_id=run.id) == 0
    scored = [1, 2, 4, 8]
    shared = {name: [value] * 4 for name, value in score_columns().items()}
    box = {"region_index": [0] * 4, "x": [8] * 4, "y": [0] * 4, "w": [8] * 4, "h": [8] * 4}
    scores.insert_scores(
        session,
        run_id=run.id,
        images={"image_id": scored, "regions": [1] * 4, "heatmaps": [None] * 4} | shared,
        regions={"image_id": scored} | box | shared | {"entropy": [0.1, 0.2, 0.4, 0.8]},
    )
    assert candidates.last_eligible(session, run_id=run.id) == 8
    codes: dict[str, int] = {}
    found = candidates.eligible_images(session, run_id=run.id, after_id=0, last_id=8, limit=9, codes=codes)
    assert (found.id.tolist(), codes) == ([1, 2], {"x": 0})
    assert (found.position.tolist(), found.regions.tolist()) == ([0, 1], [1, 1])
    regions = candidates.region_candidates(
        session, run_id=run.id, images=found, measure="entropy", outlines=True
    )
    assert regions["image_id"].tolist() == [1, 2]
    assert regions["box"].tolist() == [[8, 0, 8, 8]] * 2
    np.testing.assert_allclose(regions["score"], [0.1, 0.2], rtol=1e-6)
    assert np.isnan(regions["mutual_information"]).all()
    assert regions["pixels"].tolist() == [64, 64]
    assert regions["outline"].tolist() == [None, None]
    whole = candidates.image_candidates(session, run_id=run.id, images=found, measure=None)
    assert "score" not in whole
    assert whole["region_index"].tolist() == [candidates.WHOLE_IMAGE] * 2
    assert whole["box"].tolist() == [[0, 0, 16, 8]] * 2


def test_the_newest_run_is_the_one_that_was_finished_or_begun_last(session: Session) -> None:
    first, second = add_model(session), add_model(session, 2)
    now = utc_now()
    made = [
        put(session, new_run(model.id, scorer_hash=name, scorer={"samples": samples}, **values))
        for model, name, samples, values in (
            (first, "a", 4, {"finished_at": now - timedelta(hours=1)}),
            (first, "b", 8, {"created_at": now - timedelta(hours=2)}),
            (second, "c", 4, {"finished_at": now}),
            (second, "d", 4, {"pruned_at": now, "finished_at": now + timedelta(hours=1)}),
        )
    ]
    assert [(row.run.scorer_hash, row.model) for row in runs.list_runs(session)] == [
        ("a", "r01"),
        ("b", "r01"),
        ("c", "r02"),
        ("d", "r02"),
    ]
    assert runs.newest_run(session, None, finished=True) is made[2]
    assert runs.newest_run(session, None, finished=True, other_than=made[2].id) is made[0]
    assert runs.newest_run(session, first.id, finished=False) is made[0]
    assert runs.newest_run(session, first.id, finished=True, settings={"samples": 8}) is None
    runs.update_summary(session, made[0].id, reordering={"share": 1})
    runs.update_summary(session, made[0].id, drift={})
    assert runs.lock_summary(session, made[0].id) == {"reordering": {"share": 1}, "drift": {}}
    runs.finish_run(session, run_id=made[1].id)
    session.expire_all()
    assert runs.newest_run(session, first.id, finished=True) is made[1]
