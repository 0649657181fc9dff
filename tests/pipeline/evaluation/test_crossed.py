"""Intervals over seeds and test units."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation.crossed import Crossed, crossed, mean_over_seeds
from pipeline.evaluation.estimate import Estimate


def ratio(sums):
    """The mean over units, as a ratio of two sums."""
    return sums[:, 0] / sums[:, 1]


def trials(generator, *, seeds: int, units: int, of_seed: float, of_unit: float, rest: float):
    """[s, u, 2]: numbers of mean 0 with a part of each seed and of each unit, and their weights."""
    numbers = (
        generator.normal(0, of_seed, (seeds, 1))
        + generator.normal(0, of_unit, (1, units))
        + generator.normal(0, rest, (seeds, units))
    )
    return np.stack([numbers, np.ones_like(numbers)], axis=-1)


def coverage(repeats: int = 300, **parts) -> tuple[float, float]:
    """How often the intervals over seeds, and over both, hold the true mean, 0."""
    generator = np.random.default_rng(0)
    held = np.zeros(2)
    for _ in range(repeats):
        found = crossed(ratio, trials(generator, **parts), confidence=0.95)
        held += [one.low <= 0 <= one.high for one in (found.over_seeds, found.over_both)]
    return tuple(held / repeats)


@pytest.mark.parametrize(
    ("seeds", "of_seed", "of_unit", "rest"), [(3, 1, 0, 1), (3, 1, 3, 2), (10, 0.1, 2, 4)]
)
def test_the_interval_over_both_covers_what_it_promises_also_with_three_seeds(
    seeds: int, of_seed: float, of_unit: float, rest: float
) -> None:
    _, both = coverage(seeds=seeds, units=12, of_seed=of_seed, of_unit=of_unit, rest=rest)
    assert 0.92 <= both <= 0.99


def test_the_interval_over_seeds_alone_says_nothing_about_other_test_images() -> None:
    over_seeds, both = coverage(seeds=5, units=12, of_seed=0.2, of_unit=3, rest=1)
    assert over_seeds < 0.6
    assert both >= 0.92


def test_the_interval_over_seeds_is_that_of_a_paired_t_test() -> None:
    before, after = np.array([0.31, 0.35, 0.33, 0.40]), np.array([0.36, 0.37, 0.39, 0.41])
    found, variance = mean_over_seeds(after - before, confidence=0.95)
    expected = stats.ttest_rel(after, before).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert variance == pytest.approx(np.var(after - before, ddof=1))


def test_one_seed_or_one_unit_has_no_interval_over_both() -> None:
    one_seed = crossed(ratio, np.ones((1, 5, 2)), confidence=0.95)
    one_unit = crossed(ratio, np.arange(6.0).reshape(3, 1, 2) + 1, confidence=0.95)
    assert one_seed.value == 1.0
    assert math.isnan(one_seed.over_seeds.low)
    assert math.isnan(one_unit.over_both.low)
    assert not math.isnan(one_unit.over_seeds.low)
    assert one_seed.seeds_needed() is one_unit.seeds_needed() is None


def test_so_many_seeds_as_planned_show_the_difference_in_eighty_per_cent_of_cases() -> None:
    generator = np.random.default_rng(1)
    difference, spread = 0.02, 0.02
    planned = Crossed(Estimate(difference), Estimate(difference), 3, 40, spread**2, 0.0, 0.95).seeds_needed()
    assert planned is not None
    drawn = generator.normal(difference, spread, (500, planned))
    shown = np.mean([mean_over_seeds(row, confidence=0.95)[0].low > 0 for row in drawn])
    assert 0.75 <= shown <= 0.90


def test_no_number_of_seeds_makes_up_for_too_few_test_images() -> None:
    assert Crossed(Estimate(0.01), Estimate(0.01), 3, 6, 1e-4, 1e-4, 0.95).seeds_needed() is None
    assert Crossed(Estimate(0.01), Estimate(0.01), 3, 60, 1e-4, 1e-7, 0.95).seeds_needed() is not None
