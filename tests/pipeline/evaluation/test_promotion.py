"""A new model against the current one, on the same resampled units."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from benchmarks.bench_promotion import DIFFERENCES, against_best, against_newest, promoted, rounds
from pipeline.config import EvaluationConfig
from pipeline.evaluation.bootstrap import BlockBootstrap, bootstrap_weights
from pipeline.evaluation.estimate import Estimate
from pipeline.evaluation.measure_bins import MEASURE_BINS
from pipeline.evaluation.metrics import summarise
from pipeline.evaluation.overlap import Overlap
from pipeline.evaluation.promotion import Verdict, compare
from pipeline.evaluation.statistics import LINEAR_BINS, LOG_BINS, Statistics

BLOCKS = 24


def measured(accuracy: float, *, hardness: float = 0.15, seed: int = 0, blocks: int = BLOCKS) -> Statistics:
    """Three classes in blocks that are hard or easy for every model alike; only confusions are filled."""
    shared = np.random.default_rng(1).normal(0, hardness, blocks)
    own = np.random.default_rng(seed).normal(0, 0.01, blocks)
    right = np.clip(accuracy + shared + own, 0.05, 0.98)
    confusion = np.stack([1000 * (np.eye(3) * r + (1 - np.eye(3)) * (1 - r) / 2) for r in right])
    return Statistics(
        bins={},
        pixels=confusion.sum(axis=(1, 2)),
        nll=np.zeros(blocks),
        brier=np.zeros(blocks),
        confusion=confusion,
        reliability=np.zeros((blocks, LINEAR_BINS, 3)),
        tail=np.zeros((blocks, LOG_BINS, 3)),
        class_reliability=np.zeros((blocks, 3, 5, 3)),
        errors=np.zeros((blocks, 0, 2, MEASURE_BINS)),
    )


def overlap(statistics: Statistics, *, first_id: int = 0) -> Overlap:
    count = len(statistics.pixels)
    return Overlap.of(
        statistics.confusion,
        image_ids=range(first_id, first_id + count),
        image_runs=list(range(count)),
        groups=[f"group {index}" for index in range(count)],
        least=1,
    )


def resampled(statistics: Statistics) -> BlockBootstrap:
    return BlockBootstrap(bootstrap_weights(len(statistics.pixels), resamples=500, seed=0), 0.95)


def decide(new: Statistics, current: Statistics, *, tolerance: float = 0.0) -> Verdict:
    config = EvaluationConfig(resamples=500, promote_tolerance=tolerance)
    return compare(overlap(new), overlap(current), config=config, seed=0)


def test_a_worse_model_is_refused_even_where_the_two_intervals_overlap() -> None:
    new, current = measured(0.60, seed=2), measured(0.64, seed=3)
    apart = [summarise(s, bins=5, bootstrap=resampled(s))[("miou", -1)] for s in (new, current)]
    assert apart[0].high > apart[1].value
    verdict = decide(new, current)
    assert not verdict.promoted
    assert verdict.difference.low < verdict.difference.value < verdict.difference.high < 0
    assert verdict.difference.value == pytest.approx(apart[0].value - apart[1].value, abs=1e-12)


def test_a_lower_model_is_promoted_where_a_loss_beyond_the_margin_is_excluded() -> None:
    new, best = measured(0.637, seed=2), measured(0.64, seed=3)
    verdict = decide(new, best, tolerance=0.02)
    assert verdict.difference.value < 0
    assert verdict.difference.low > -0.02
    assert verdict.promoted
    assert not decide(new, best).promoted


def test_the_unseen_loss_is_the_one_that_is_promoted_in_one_of_five_cases() -> None:
    for reach in (0.01, 0.05):
        verdict = Verdict(Estimate(0.0, -reach, reach), units=20, margin=0.02, confidence=0.95)
        error = reach / stats.t.ppf(0.975, 19)
        shift = error * np.random.default_rng(0).standard_t(19, 20000)
        promoted = [-verdict.unseen + shift, shift]
        least = min(0.0, reach - 0.02)
        assert (promoted[0] >= least).mean() == pytest.approx(0.2, abs=0.01)
        assert (promoted[1] < least).mean() == pytest.approx(verdict.refused_equal, abs=0.01)


def test_a_class_that_loses_is_named_even_where_the_mean_wins() -> None:
    new, best = measured(0.70, seed=2), measured(0.60, seed=3)
    moved = new.confusion.copy()
    moved[:, 2, 0] += moved[:, 2, 2] * 0.5
    moved[:, 2, 2] *= 0.5
    verdict = decide(replace(new, confusion=moved), best)
    assert list(verdict.worse) == [2]
    assert verdict.worse[2].high < 0
    iou = [
        summarise(s, bins=5, bootstrap=resampled(s))["iou", 2].value
        for s in (replace(new, confusion=moved), best)
    ]
    assert verdict.worse[2].value == pytest.approx(iou[0] - iou[1], abs=1e-12)


def test_a_class_that_one_unit_holds_is_not_named() -> None:
    new, best = measured(0.60, seed=2), measured(0.60, seed=3)
    confusion = [one.confusion.copy() for one in (new, best)]
    for one, right in zip(confusion, (0.2, 0.8), strict=True):
        one[1:, 2], one[1:, :, 2] = 0, 0
        one[0, 2] = 1000 * np.array([1 - right, 0, right])
    both = [replace(one, confusion=part) for one, part in zip((new, best), confusion, strict=True)]
    assert decide(both[0], both[1]).worse == {}


def test_a_better_model_is_not_refused_for_a_pixel_of_a_class_that_no_mask_holds() -> None:
    def right_in(share: float, *, strange: float) -> Statistics:
        confusion = np.diag([900 * share, 100 * share, 0.0])
        confusion[0, 1], confusion[1, 0] = 900 * (1 - share) - strange, 100 * (1 - share)
        confusion[0, 2] = strange
        return replace(measured(0.5, blocks=10), confusion=np.stack([confusion] * 10))

    current, new = right_in(0.9, strange=0.0), right_in(0.95, strange=1.0)
    verdict = decide(new, current)
    assert verdict.promoted
    assert verdict.difference.value > 0.05
    found = summarise(new, bins=5, bootstrap=resampled(new))
    assert found["miou", -1].value == pytest.approx((found["iou", 0].value + found["iou", 1].value) / 2)
    assert np.isnan(found["iou", 2].value)


def test_a_tolerance_forgives_a_known_loss() -> None:
    assert decide(measured(0.60, seed=2), measured(0.64, seed=3), tolerance=0.08).promoted


def test_the_units_are_those_of_the_difference() -> None:
    """Two drives of one kind: the new model loses in the second half of each, frame after frame."""
    new, current = (
        measured(0.60, hardness=0, seed=2, blocks=96),
        measured(0.60, hardness=0, seed=3, blocks=96),
    )
    loss = np.tile(np.repeat([0.06, -0.06], 24), 2)[:, None, None]
    changed = replace(new, confusion=new.confusion * (1 - loss * np.eye(3)))
    groups = ["first"] * 48 + ["second"] * 48

    def units(statistics: Statistics) -> int:
        both = (replace(overlap(one), groups=tuple(groups)) for one in (statistics, current))
        return compare(*both, config=EvaluationConfig(resamples=500), seed=0).units

    assert units(new) > 15
    assert units(changed) < 10


def test_one_block_is_decided_by_the_difference_itself() -> None:
    worse, better = measured(0.5, blocks=1), measured(0.6, blocks=1)
    assert not decide(worse, better, tolerance=0.5).promoted
    verdict = decide(better, worse)
    assert verdict.promoted
    assert np.isnan(verdict.difference.low)


def test_an_overlap_survives_the_store() -> None:
    before = overlap(measured(0.6))
    after = Overlap.from_document(json.loads(json.dumps(before.document())))
    assert (after.fingerprint, after.groups, after.least) == (before.fingerprint, before.groups, 1)
    for part in ("true_positive", "true", "predicted"):
        np.testing.assert_allclose(getattr(after, part), getattr(before, part), atol=1)


def test_models_measured_on_other_images_are_not_paired() -> None:
    statistics = measured(0.6)
    with pytest.raises(ValueError, match="same images"):
        compare(
            overlap(statistics),
            overlap(statistics, first_id=5),
            config=EvaluationConfig(),
            seed=0,
        )


@pytest.mark.parametrize("units", [10, 40])
def test_a_loss_of_the_margin_is_rarely_promoted_and_a_gain_rarely_refused(units: int) -> None:
    """The difference of two models varies by 0.03 from unit to unit; 150 models each."""
    rates, named = promoted(150, units, 0.03, np.random.default_rng(5))
    by_difference = dict(zip(DIFFERENCES, rates, strict=True))
    assert by_difference[-0.02] < 0.09
    assert by_difference[0.02] > 0.95
    assert by_difference[0.0] > (0.40 if units == 10 else 0.95)
    assert named < 0.05


def test_losses_do_not_add_up_over_rounds() -> None:
    """Each of 20 retrainings is worse by 0.005 than the one before; five units see no such step."""
    left = [
        np.mean([rounds(5, 0.03, -0.005, np.random.default_rng(seed), rule=rule) for seed in range(25)])
        for rule in (against_best, against_newest)
    ]
    assert left[0] > -0.01
    assert left[1] < -0.04
