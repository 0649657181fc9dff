"""A new model against the current one, on the same resampled blocks."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from pipeline.evaluation.metrics import summarise
from pipeline.evaluation.promotion import Overlap, Verdict, compare
from pipeline.evaluation.statistics import Statistics, empty_statistics

BLOCKS = 24


def measured(accuracy: float, *, hardness: float = 0.15, seed: int = 0, blocks: int = BLOCKS) -> Statistics:
    """Three classes in blocks that are hard or easy for every model alike; only confusions are filled."""
    shared = np.random.default_rng(1).normal(0, hardness, blocks)
    own = np.random.default_rng(seed).normal(0, 0.01, blocks)
    right = np.clip(accuracy + shared + own, 0.05, 0.98)
    confusion = np.stack([1000 * (np.eye(3) * r + (1 - np.eye(3)) * (1 - r) / 2) for r in right])
    empty = empty_statistics(num_classes=3, measures=[], class_bins=5)
    arrays = {name: np.stack([array] * blocks) for name, array in empty.arrays().items()}
    arrays |= {"confusion": confusion, "pixels": confusion.sum(axis=(1, 2))}
    return dataclasses.replace(empty, **arrays)


def overlap(statistics: Statistics, *, first_id: int = 0) -> Overlap:
    count = len(statistics.pixels)
    return Overlap.of(
        statistics, image_ids=range(first_id, first_id + count), image_blocks=list(range(count))
    )


def judge(new: Statistics, current: Statistics, *, tolerance: float = 0.0) -> Verdict:
    return compare(
        overlap(new), overlap(current), tolerance=tolerance, resamples=500, confidence=0.95, seed=0
    )


def test_a_worse_model_is_refused_even_where_the_two_intervals_overlap() -> None:
    new, current = measured(0.60, seed=2), measured(0.64, seed=3)
    apart = [
        summarise(s, bins=5, resamples=500, confidence=0.95, seed=0)[("miou", -1)] for s in (new, current)
    ]
    assert apart[0].high > apart[1].value
    verdict = judge(new, current)
    assert not verdict.promoted
    assert verdict.difference.low < verdict.difference.value < verdict.difference.high < 0
    assert verdict.difference.value == pytest.approx(apart[0].value - apart[1].value, abs=1e-12)


def test_a_model_that_is_worse_within_the_interval_is_promoted() -> None:
    verdict = judge(measured(0.6395, seed=2), measured(0.64, seed=3))
    assert verdict.promoted
    assert verdict.difference.low < 0 < verdict.difference.high


def test_a_tolerance_forgives_a_known_loss() -> None:
    assert judge(measured(0.60, seed=2), measured(0.64, seed=3), tolerance=0.08).promoted


def test_one_block_is_judged_by_the_difference_itself() -> None:
    worse, better = measured(0.5, blocks=1), measured(0.6, blocks=1)
    assert not judge(worse, better).promoted
    verdict = judge(better, worse)
    assert verdict.promoted
    assert np.isnan(verdict.difference.low)


def test_an_overlap_survives_the_store() -> None:
    before = overlap(measured(0.6))
    after = Overlap.from_document(json.loads(json.dumps(before.document())))
    assert after.fingerprint == before.fingerprint
    ones = np.ones((1, BLOCKS))
    assert after.mean_iou(ones)[0] == pytest.approx(before.mean_iou(ones)[0], abs=1e-3)


def test_models_measured_on_other_images_are_not_paired() -> None:
    statistics = measured(0.6)
    with pytest.raises(ValueError, match="same images"):
        compare(
            overlap(statistics),
            overlap(statistics, first_id=5),
            tolerance=0,
            resamples=100,
            confidence=0.95,
            seed=0,
        )
