"""Blocks of neighbours, and intervals that keep their promise on dependent images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats

from pipeline.evaluation.bootstrap import blocks, bootstrap_weights, percentile_interval, student_quantile


def autoregressive(trials: int, length: int, coefficient: float) -> npt.NDArray[np.float64]:
    """Stationary AR(1) series [trials, length] with mean 0 and variance 1."""
    generator = np.random.default_rng(1)
    noise = generator.standard_normal((length, trials)) * np.sqrt(1 - coefficient**2)
    series = np.empty((length, trials))
    series[0] = generator.standard_normal(trials)
    for index in range(1, length):
        series[index] = coefficient * series[index - 1] + noise[index]
    return series.T


def coverage(block: int, *, trials: int = 250, length: int = 400) -> float:
    """How often the 95 % interval of the mean holds the true mean, 0."""
    index = blocks(["a"] * length, list(range(length)), block)
    sizes = np.bincount(index)
    hits = 0
    for trial, series in enumerate(autoregressive(trials, length, coefficient=0.5)):
        weights = bootstrap_weights(len(sizes), resamples=200, seed=trial)
        means = weights @ np.bincount(index, weights=series) / (weights @ sizes)
        low, high = percentile_interval(means, 0.95, count=len(sizes))
        hits += bool(low <= 0 <= high)
    return hits / trials


def test_blocks_cover_the_truth_and_single_frames_do_not() -> None:
    assert 0.92 <= coverage(20) <= 0.98  # 20 blocks
    assert 0.92 <= coverage(40) <= 0.98  # 10 blocks
    assert coverage(1) < 0.85


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
