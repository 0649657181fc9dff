"""What an audit slice says about its pool."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.bench_audit import simulate
from pipeline.config import EvaluationConfig
from pipeline.evaluation.estimate import Estimate
from pipeline.evaluation.pool_estimate import Audit, Counts, PoolEstimate, estimate_pool, stacked

CONFIG = EvaluationConfig(resamples=200)
SEEDS = range(500, 530)
ROUNDS = 4


def counts(confusion: list[list[float]], confident: float = 0.0) -> Counts:
    """A confusion, and its pixels in the last of three bins with this summed confidence."""
    table = np.array(confusion)
    bins = np.zeros((3, 3))
    bins[2] = table.sum(), confident, np.trace(table)
    return Counts(table, bins)


def audit(*images: Counts, regions: list[int], population: int, drawn: int | None = None) -> Audit:
    """An audit of these images, all of it labeled by default."""
    number = np.array(regions, dtype=float)
    return Audit(stacked(images), number, population, int(number.sum()) if drawn is None else drawn)


def estimated(certain: Counts, of: Audit) -> PoolEstimate:
    return estimate_pool(certain, of, CONFIG, seed=0)


NOTHING = Counts.none(classes=2, bins=3)
RIGHT, HALF = counts([[6, 0], [0, 4]], 9), counts([[2, 4], [1, 3]], 8)


def test_a_total_of_the_pool_is_what_is_certain_plus_the_audit_times_the_regions_for_each_audited_one() -> (
    None
):
    certain = counts([[30, 10], [0, 60]], 95)
    found = estimated(certain, audit(RIGHT, HALF, regions=[1, 1], population=20))
    confusion = np.array([[30, 10], [0, 60]]) + 10 * np.array([[8, 4], [1, 7]])
    pixels = confusion.sum()
    assert found.pool["error_rate", -1].value == pytest.approx(1 - np.trace(confusion) / pixels)

    def iou(table: np.ndarray) -> np.ndarray:
        return np.diag(table) / (table.sum(axis=0) + table.sum(axis=1) - np.diag(table))

    assert [found.pool["iou", index].value for index in (0, 1)] == pytest.approx(iou(confusion).tolist())
    without = np.mean([iou(certain.confusion + 20 * one.confusion).mean() for one in (RIGHT, HALF)])
    corrected = iou(confusion).mean() - (1 - 2 / 20) * (without - iou(confusion).mean())
    assert found.pool["miou", -1].value == pytest.approx(corrected)
    assert found.pool["class_share", 1].value == pytest.approx(confusion[1].sum() / pixels)
    gap = (95 + 10 * 17 - np.trace(confusion)) / pixels
    assert found.pool["overconfidence", -1].value == pytest.approx(gap)
    assert found.pool["ece", -1].value == pytest.approx(abs(gap))
    assert found.unlabeled["error_rate", -1].value == pytest.approx(5 / 20)
    assert (found.certain_pixels, found.audit_pixels, found.images, found.population) == (100, 20, 2, 20)


def test_regions_and_not_images_are_what_the_audit_drew() -> None:
    two = audit(RIGHT.plus(RIGHT), HALF, regions=[2, 1], population=30)
    three = audit(RIGHT, RIGHT, HALF, regions=[1, 1, 1], population=30)
    for part in ("unlabeled", "pool"):
        first, second = (getattr(estimated(RIGHT, one), part)["error_rate", -1] for one in (two, three))
        assert first.value == pytest.approx(second.value)
        assert first.high - first.low > second.high - second.low


def test_an_audit_of_all_regions_leaves_no_doubt() -> None:
    found = estimated(HALF, audit(RIGHT, HALF, RIGHT, regions=[1, 1, 1], population=3))
    for one in (*found.unlabeled.values(), *found.pool.values()):
        if one.defined and not np.isnan(one.low):
            assert one.low == pytest.approx(one.value)
            assert one.high == pytest.approx(one.value)
    assert found.unlabeled["error_rate", -1].value == pytest.approx(5 / 30)


def test_an_audit_without_an_error_leaves_room_for_some_that_it_did_not_meet() -> None:
    of = audit(*[RIGHT] * 8, regions=[1] * 8, population=1000)
    found = estimated(counts([[900, 100], [0, 0]]), of)
    alone, pool = (part["error_rate", -1] for part in (found.unlabeled, found.pool))
    assert (alone.value, alone.low) == (0.0, 0.0)
    assert 0.1 < alone.high < 0.4
    total = 1000 + 1000 * 10
    assert pool.value == pytest.approx(100 / total)
    assert pool.low == pytest.approx(100 / total)
    assert pool.high == pytest.approx((100 + 1000 * 10 * alone.high) / total)


def test_one_image_gives_no_interval_and_a_class_that_was_not_met_no_number() -> None:
    found = estimated(NOTHING, audit(counts([[5, 0], [0, 0]], 5), regions=[1], population=9))
    assert found.unlabeled["error_rate", -1] == Estimate(0.0)
    assert np.isnan(found.unlabeled["ece_noise", -1].value)
    assert not found.unlabeled["iou", 1].defined
    assert found.document()["unlabeled"]["iou"][1] == {"value": None, "low": None, "high": None}


def test_what_was_drawn_and_not_labeled_bounds_the_error_rate() -> None:
    found = estimated(NOTHING, audit(RIGHT, HALF, regions=[1, 1], population=20, drawn=8))
    assert found.bounds == pytest.approx((0.25 * 0.25, 0.25 * 0.25 + 0.75))
    whole = estimated(NOTHING, audit(RIGHT, HALF, regions=[1, 1], population=20))
    assert whole.bounds == pytest.approx((0.25, 0.25))


@pytest.mark.parametrize(("drawn", "population"), [(1, 20), (4, 3)])
def test_an_audit_cannot_be_larger_than_what_it_was_drawn_from(drawn: int, population: int) -> None:
    with pytest.raises(ValueError, match="labeled ≤ drawn ≤ population"):
        audit(RIGHT, RIGHT, regions=[1, 1], population=population, drawn=drawn)


def test_estimates_over_rounds_of_real_queues_are_unbiased_where_pooled_audits_are_not() -> None:
    runs = [list(simulate(seed, rounds=ROUNDS)) for seed in SEEDS]
    held = []
    for number in range(ROUNDS):
        at = [run[number] for run in runs]
        for part in ("pool", "unlabeled"):
            truth = np.array([getattr(one, part)["error_rate"] for one in at])
            found = [getattr(one.found, part)["error_rate", -1] for one in at]
            bias = np.array([one.value for one in found]) - truth
            assert abs(bias.mean()) < 3 * bias.std() / np.sqrt(len(bias))
            held += [one.low <= true <= one.high for one, true in zip(found, truth.tolist(), strict=True)]
        former = np.array([one.former - one.pool["error_rate"] for one in at])
        if number == ROUNDS - 1:
            assert former.mean() < -3 * former.std() / np.sqrt(len(former))
    assert 0.9 < np.mean(held) < 0.99
