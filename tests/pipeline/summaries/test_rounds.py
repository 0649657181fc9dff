"""What each round's labels cost: pixels, clicks and hours, where several annotators share a queue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from db.queries.labels import LabeledRegion
from db.tables import ModelLabel, Queue
from pipeline.config import IGNORE
from pipeline.regions.outlines import encode_outline
from pipeline.summaries.queues import queue_summary
from pipeline.summaries.rounds import RoundSummary, round_history
from tests.factories import add_rows, ask
from tests.pipeline.shared_queue import (
    CELL,
    CELLS,
    CLASSES,
    SIDE,
    Mask,
    SharedQueue,
    filled,
    make_shared_queue,
)


@pytest.fixture
def shared(tmp_path: Path) -> SharedQueue:
    return make_shared_queue(tmp_path, images=3)


def last_round(shared: SharedQueue) -> RoundSummary:
    return ask(shared.database, round_history, sampler="none", class_names=CLASSES)[-1]


def use_for_training(shared: SharedQueue, *label_ids: int) -> None:
    """Say that the round's model was trained on these."""
    add_rows(shared.database, *(ModelLabel(model_id=1, label_id=label_id) for label_id in label_ids))


def within(cells: slice) -> Mask:
    """A mask that says something in some of the regions only."""
    mask = np.full((SIDE, SIDE), IGNORE, np.uint8)
    for x, y, w, h in CELLS[cells]:
        mask[y : y + h, x : x + w] = 1
    return mask


def test_what_two_annotators_painted_counts_once_and_both_their_hours_do(shared: SharedQueue) -> None:
    part = filled(2)
    part[: SIDE // 2] = IGNORE
    labels = [
        shared.label(1, filled(1), by="ann", seconds=5400),
        shared.label(1, part, by="bo", seconds=1800),
        shared.label(2, part, by="bo"),
    ]
    for image_id in (1, 2):
        shared.settle(image_id, [filled(1), part])
    use_for_training(shared, *labels)
    row = last_round(shared)
    assert row.labeled_pixels == SIDE * SIDE + SIDE * SIDE // 2
    assert row.labeled_share == pytest.approx(0.5)
    assert (row.labeled_images, row.labeled_regions) == (2, 8)
    assert row.clicks == 2 * (1 + 2 + 3 + 4)
    assert row.hours == pytest.approx(2.0)


def test_two_annotators_of_different_regions_of_an_image_add_up(shared: SharedQueue) -> None:
    labels = [
        shared.label(1, within(slice(0, 1)), by="ann", regions=CELLS[:1]),
        shared.label(1, within(slice(1, 3)), by="bo", regions=CELLS[1:3]),
    ]
    use_for_training(shared, *labels)
    assert last_round(shared).labeled_pixels == 3 * CELL * CELL
    joining = shared.label(1, within(slice(0, 3)), by="cy", regions=CELLS[:3])
    use_for_training(shared, joining)
    assert last_round(shared).labeled_pixels == 3 * CELL * CELL


def test_a_label_of_the_whole_image_holds_every_region_of_it(shared: SharedQueue) -> None:
    labels = [
        shared.label(1, within(slice(0, 2)), by="ann", regions=CELLS[:2]),
        shared.label(1, filled(1), by="bo", regions=[(0, 0, SIDE, SIDE)]),
    ]
    use_for_training(shared, *labels)
    assert last_round(shared).labeled_pixels == SIDE * SIDE


def test_a_region_that_does_not_fill_its_box_holds_no_other_region(tmp_path: Path) -> None:
    """Ann labels a ring, which is its image's region 0, and Bo what lies in the hole of its box."""
    shared = make_shared_queue(tmp_path, images=1)
    hole = np.zeros((SIDE, SIDE), bool)
    hole[8:24, 8:24] = True
    ring, core = np.where(hole, IGNORE, 1).astype(np.uint8), np.where(hole, 2, IGNORE).astype(np.uint8)
    outlined = LabeledRegion(0, 0, SIDE, SIDE, 0, encode_outline(~hole))
    labels = [
        shared.label(1, ring, by="ann", regions=[outlined]),
        shared.label(1, core, by="bo", regions=[(8, 8, 16, 16)]),
    ]
    use_for_training(shared, *labels)
    assert last_round(shared).labeled_pixels == SIDE * SIDE


def test_what_was_labeled_after_the_training_is_not_of_that_round(shared: SharedQueue) -> None:
    use_for_training(shared, shared.label(1, within(slice(0, 2)), by="ann", regions=CELLS[:2]))
    shared.label(1, filled(1), by="ann")
    shared.settle(1, [filled(1)])
    row = last_round(shared)
    assert (row.labeled_regions, row.clicks) == (2, 1 + 2)
    shared.settle(2, [filled(1)])
    use_for_training(shared, shared.label(2, filled(1), by="bo", regions=[(0, 0, SIDE, SIDE)]))
    row = last_round(shared)
    assert (row.labeled_regions, row.clicks) == (2 + 4, 1 + 2 + 10)


def test_without_an_estimate_or_a_measured_time_the_cost_is_unknown(shared: SharedQueue) -> None:
    row = last_round(shared)
    assert (row.labeled_pixels, row.clicks, row.hours) == (0, None, None)
    use_for_training(shared, shared.label(1, filled(1), by="ann"))
    assert (last_round(shared).clicks, last_round(shared).hours) == (None, None)


def test_a_queue_says_what_it_takes_and_who_differs(shared: SharedQueue) -> None:
    half = filled(1)
    half[: SIDE // 4] = 0
    for name, mask in (("ann", filled(1)), ("bo", half)):
        shared.label(1, mask, by=name)
    shared.settle(1, [filled(1), half])
    with shared.database.session(write=False) as session:
        (queue,) = session.query(Queue)
        found = queue_summary(session, queue, class_names=CLASSES, head=5)
    assert found.clicks == 3 * (1 + 2 + 3 + 4)
    assert [item.clicks for item in found.head] == [1, 2, 3, 4, 1]
    assert [(item.annotators, item.disagreement) for item in found.head] == [
        *[(2, 0.5)] * 2,
        *[(2, 0.0)] * 2,
        (None, None),
    ]
    assert found.by_status == {"labeled": 4, "queued": 8}
