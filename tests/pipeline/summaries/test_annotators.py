"""Who differs from the others, and whether the model was in doubt where people differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from sqlalchemy import delete, select

from db.tables import Label, QueueItem, RegionScore
from pipeline.config import IGNORE
from pipeline.errors import UserError
from pipeline.summaries.annotators import (
    LEAST_IMAGES,
    LEAST_REGIONS,
    NAMELESS,
    AnnotatorReport,
    annotator_report,
)
from tests.factories import add_rows, ask, fetch_one, new_queue
from tests.pipeline.shared_queue import CELL, SIDE, SharedQueue, disputing, filled, make_shared_queue

IMAGES = 8


def shares(images: int = IMAGES) -> np.ndarray:
    """How much of each region is disputed, in sixteenths."""
    return np.random.default_rng(0).integers(0, 9, size=(images, 4)) / 16


@pytest.fixture(scope="module")
def shared_once(tmp_path_factory: pytest.TempPathFactory) -> SharedQueue:
    """Ann and Bo differ by the shares; the model expects that, with a little noise."""
    disputed = shares()
    noise = np.random.default_rng(1).normal(scale=0.02, size=disputed.shape)
    made = make_shared_queue(
        tmp_path_factory.mktemp("shared"), images=IMAGES, expected_entropy=disputed + noise
    )
    for image_id in range(1, IMAGES + 1):
        masks = [filled(0), disputing(disputed[image_id - 1])]
        for name, mask in zip(("ann", "bo"), masks, strict=True):
            made.label(image_id, mask, by=name)
        made.settle(image_id, masks)
    made.database.close()
    return made


@pytest.fixture
def shared(shared_once: SharedQueue, tmp_path: Path) -> SharedQueue:
    return shared_once.copied_to(tmp_path / "project")


def report(shared: SharedQueue, *, queue: str | None = None) -> AnnotatorReport:
    return ask(shared.database, annotator_report, shared.project, queue=queue)


def test_regions_come_most_disputed_first_with_what_the_model_said_of_them(shared: SharedQueue) -> None:
    found = report(shared)
    assert (found.regions, found.images, found.annotators) == (4 * IMAGES, IMAGES, ["ann", "bo"])
    entropies = [row.vote_entropy for row in found.rows]
    assert entropies == sorted(entropies, reverse=True)
    worst = found.rows[0]
    assert worst.disagreement == shares().max()
    assert worst.vote_entropy == pytest.approx(shares().max() * np.log(2) / np.log(3))
    with shared.database.session(write=False) as session:
        score = session.get_one(RegionScore, (1, worst.image_id, (worst.rank - 1) % 4))
        assert (score.x, score.y, score.w, score.h) == (worst.x, worst.y, worst.w, worst.h)
        assert (worst.expected_entropy, worst.entropy, worst.mutual_information) == (
            score.expected_entropy,
            score.entropy,
            score.mutual_information,
        )


def test_the_rank_correlation_is_spearmans_and_lies_in_its_interval(shared: SharedQueue) -> None:
    found = report(shared)
    expected, information = found.correlations
    assert (expected.measure, information.measure) == ("expected_entropy", "mutual_information")
    votes = [row.vote_entropy for row in found.rows]
    for one in (expected, information):
        scores = [getattr(row, one.measure) for row in found.rows]
        assert one.value == pytest.approx(spearmanr(votes, scores)[0])
        assert None not in (one.value, one.low, one.high)
        assert (one.low or 0) <= (one.value or 0) <= (one.high or 0)
        assert (one.regions, one.images, one.reason) == (4 * IMAGES, IMAGES, None)
    assert (expected.value or 0) > 0.9
    assert (information.value or 0) < -0.9


def test_without_scores_the_regions_are_listed_and_the_correlation_says_why_rejected(
    shared: SharedQueue,
) -> None:
    with shared.database.session() as session:
        session.execute(delete(RegionScore))
    found = report(shared)
    assert len(found.rows) == 4 * IMAGES
    assert {row.expected_entropy for row in found.rows} == {None}
    for one in found.correlations:
        assert (one.regions, one.value, one.low) == (0, None, None)
        assert one.reason == "the scores of these regions are pruned, or come from a sampler without samples"


def test_a_queue_whose_regions_are_not_those_of_the_run_has_no_scores(shared: SharedQueue) -> None:
    with shared.database.session() as session:
        for item in session.query(QueueItem):
            item.w = item.w - 1
    assert {row.expected_entropy for row in report(shared).rows} == {None}


def test_a_few_regions_are_too_few(tmp_path: Path) -> None:
    shared = make_shared_queue(tmp_path, images=4, expected_entropy=shares(4))
    for image_id in range(1, 5):
        masks = [filled(0), disputing(shares(4)[image_id - 1])]
        for name, mask in zip(("ann", "bo"), masks, strict=True):
            shared.label(image_id, mask, by=name)
        shared.settle(image_id, masks)
    (one, _) = report(shared).correlations
    assert one.reason == (
        f"too few: 16 regions of 4 images; at least {LEAST_REGIONS} of {LEAST_IMAGES} are needed"
    )


def test_where_all_agree_there_is_nothing_to_correlate(tmp_path: Path) -> None:
    shared = make_shared_queue(tmp_path, images=6, expected_entropy=shares(6))
    for image_id in range(1, 7):
        for name in ("ann", "bo"):
            shared.label(image_id, filled(1), by=name)
        shared.settle(image_id, [filled(1)] * 2)
    found = report(shared)
    assert {one.reason for one in found.correlations} == {"the annotators agree equally on every region"}
    assert [pair.agreement for pair in found.pairs] == [1.0]


def test_nobody_shares_a_region_where_each_image_has_one_annotator(tmp_path: Path) -> None:
    shared = make_shared_queue(tmp_path, images=2)
    shared.label(1, filled(1), by="ann")
    shared.label(2, filled(1), by="bo")
    found = report(shared)
    assert (found.regions, found.images, found.annotators, found.pairs) == (0, 0, [], [])
    assert {one.reason for one in found.correlations} == {"no region has two annotators"}


def test_whose_masks_differ_from_everybody_s_comes_first(tmp_path: Path) -> None:
    shared = make_shared_queue(tmp_path, images=2)
    quarter = disputing(np.array([1.0, 0, 0, 0]))
    odd = filled(2)
    for image_id in (1, 2):
        for name, mask in (("ann", filled(0)), ("bo", quarter), ("cy", odd)):
            shared.label(image_id, mask, by=name)
    found = report(shared)
    pixels = 2 * SIDE * SIDE
    assert [(one.annotator, one.images, one.pixels, one.agreement) for one in found.against_others] == [
        ("cy", 2, 2 * pixels, 0.0),
        ("ann", 2, 2 * pixels, 0.375),
        ("bo", 2, 2 * pixels, 0.375),
    ]
    assert [(one.annotator, one.other, one.pixels, one.agreement) for one in found.pairs] == [
        ("ann", "cy", pixels, 0.0),
        ("bo", "cy", pixels, 0.0),
        ("ann", "bo", pixels, 0.75),
    ]


def test_only_pixels_that_both_have_labeled_count_and_a_correction_counts_in_place_of_what_it_corrects(
    tmp_path: Path,
) -> None:
    shared = make_shared_queue(tmp_path, images=1)
    left, right = filled(0), filled(0)
    left[:, CELL + 4 :], right[:, :CELL] = IGNORE, IGNORE
    shared.label(1, filled(2), by="ann")
    shared.label(1, left, by="ann")
    shared.label(1, right, by=None)
    (pair,) = report(shared).pairs
    assert (pair.annotator, pair.other) == ("ann", NAMELESS)
    assert (pair.pixels, pair.agreement) == (4 * SIDE, 1.0)


def test_a_mask_that_cannot_be_read_is_counted_and_the_rest_compared(shared: SharedQueue) -> None:
    lost = shared.label(1, filled(2), by="cy")
    shared.project.path(fetch_one(shared.database, select(Label).where(Label.id == lost)).mask_uri).unlink()
    found = report(shared)
    assert (found.compared, found.unreadable) == (IMAGES - 1, 1)
    assert found.regions == 4 * IMAGES


def test_one_queue_is_looked_at_alone_and_an_unknown_one_is_named(shared: SharedQueue) -> None:
    add_rows(shared.database, new_queue("review-01"))
    assert report(shared, queue="round-01").regions == 4 * IMAGES
    empty = report(shared, queue="review-01")
    assert (empty.queue, empty.regions, empty.pairs) == ("review-01", 0, [])
    with pytest.raises(UserError, match="There is no queue 'round-09'; there are: round-01, review-01"):
        report(shared, queue="round-09")
