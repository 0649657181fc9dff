"""Blocks of neighbours, and intervals that keep their promise on dependent images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats

from pipeline.evaluation.bootstrap import blocks, bootstrap_weights, percentile_interval, student_quantile


def autoregressive(trials: int, length: int, coefficient: float) -> npt.NDArray[np.float64]:
    """Stationary AR(1) series [length, trials] with mean 0 and variance 1."""
    generator = np.random.default_rng(1)
    noise = generator.standard_normal((length, trials)) * np.sqrt(1 - coefficient**2)
    series = np.empty((length, trials))
    series[0] = generator.standard_normal(trials)
    for index in range(1, length):
        series[index] = coefficient * series[index - 1] + noise[index]
    return series


def coverage(block: int, *, coefficient: float, length: int = 800, trials: int = 2000) -> float:
    """How often the 95 % interval of the mean holds the true mean, 0; its standard error is 0.5 %."""
    index = blocks(["a"] * length, list(range(length)), block, most=length)
    series = autoregressive(trials, length, coefficient)
    sums = np.stack([np.bincount(index, weights=one) for one in series.T], axis=1)
    weights = bootstrap_weights(len(sums), resamples=600, seed=0)
    means = weights @ sums / (weights @ np.bincount(index))[:, None]
    low, high = percentile_interval(means, 0.95, count=len(sums))
    return float(((low <= 0) & (high >= 0)).mean())


@pytest.mark.parametrize(("coefficient", "block"), [(0.5, 20), (0.5, 40), (0.8, 80), (0.8, 100)])
def test_blocks_cover_the_truth_of_a_dependent_series(coefficient: float, block: int) -> None:
    assert 0.93 <= coverage(block, coefficient=coefficient) <= 0.97


@pytest.mark.parametrize(("coefficient", "most"), [(0.5, 0.8), (0.8, 0.6)])
def test_single_frames_pretend_to_evidence_that_is_not_there(coefficient: float, most: float) -> None:
    assert coverage(1, coefficient=coefficient) < most


def test_single_frames_will_do_where_they_are_independent() -> None:
    assert 0.93 <= coverage(1, coefficient=0.0) <= 0.97


def test_blocks_follow_position_not_order_of_ingest() -> None:
    generator = np.random.default_rng(0)
    positions = generator.permutation(40)
    index = blocks(["a"] * 40, positions.tolist(), 10)
    assert index.max() == 3
    assert np.array_equal(index, positions // 10)


def test_groups_are_never_mixed_and_blocks_are_nearly_equal() -> None:
    groups = ["a"] * 23 + ["b"] * 4 + ["c"] * 16
    index = blocks(groups, list(range(43)), 10)
    for block in range(index.max() + 1):
        assert len({groups[i] for i in np.flatnonzero(index == block)}) == 1
    assert np.bincount(index).tolist() == [12, 11, 4, 8, 8]


def test_too_many_blocks_are_merged_evenly() -> None:
    index = blocks([str(i) for i in range(1000)], [0] * 1000, 10, most=100)
    assert np.bincount(index).tolist() == [10] * 100


def test_no_images_have_no_blocks() -> None:
    assert blocks([], [], 10).tolist() == []


def test_the_same_seed_draws_the_same_resamples() -> None:
    first, again, other = (bootstrap_weights(30, resamples=50, seed=seed) for seed in (4, 4, 5))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert (first.sum(axis=1) == 30).all()


def test_an_interval_leaves_undefined_resamples_out() -> None:
    ramp = np.arange(1000.0)
    values = np.stack([ramp, ramp, ramp], axis=1)
    values[:300, 1] = np.nan
    values[:600, 2] = np.nan
    low, high = percentile_interval(values, 0.9, count=10_000)
    assert low[0] == pytest.approx(np.quantile(ramp, 0.05), abs=0.2)
    assert low[1] == pytest.approx(np.quantile(ramp[300:], 0.05), abs=0.2)
    assert high[1] == pytest.approx(np.quantile(ramp[300:], 0.95), abs=0.2)
    assert np.isnan(low[2])


def test_the_fewer_the_blocks_the_wider_the_interval() -> None:
    values = np.random.default_rng(0).standard_normal(4000)
    widths = [np.diff(percentile_interval(values, 0.95, count=count))[0] for count in (3, 8, 30, 1000)]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == pytest.approx(2 * 1.96, rel=0.05)
    assert widths[1] == pytest.approx(2 * scipy.stats.t.ppf(0.975, 7) * np.sqrt(8 / 7), rel=0.1)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 9, 19, 100])
@pytest.mark.parametrize("probability", [0.9, 0.95, 0.975])
def test_quantiles_of_student_are_those_of_scipy(degrees: int, probability: float) -> None:
    expected = scipy.stats.t.ppf(probability, degrees)
    assert student_quantile(probability, degrees) == pytest.approx(expected, rel=5e-3)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="`block` to be positive"):
        blocks(["a"], [0], 0)
    with pytest.raises(ValueError, match="as many positions"):
        blocks(["a"], [], 5)
    with pytest.raises(ValueError, match="at least two blocks"):
        percentile_interval(np.zeros(5), 0.95, count=1)
