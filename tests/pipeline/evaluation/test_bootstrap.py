"""Blocks of neighbours, and intervals over units that were drawn again or left out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats

from pipeline.evaluation.bootstrap import (
    BlockBootstrap,
    blocks,
    bootstrap_weights,
    jackknife_interval,
    percentile_interval,
    student_quantile,
)


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


def ratio(sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return sums[..., 0] / sums[..., 1]


@pytest.mark.parametrize("units", [2, 3, 5])
def test_few_units_have_the_interval_of_student_and_cover_what_they_promise(units: int) -> None:
    values = np.random.default_rng(0).standard_normal((1000, units))
    bootstrap = BlockBootstrap(bootstrap_weights(units, resamples=100, seed=0), 0.95)
    ends = np.array([bootstrap.interval(ratio, np.stack([one, np.ones(units)], axis=1)) for one in values])
    reach = scipy.stats.t.ppf(0.975, units - 1) * values.std(axis=1, ddof=1) / np.sqrt(units)
    np.testing.assert_allclose(ends[:, 1] - ends[:, 0], 2 * reach, rtol=5e-3)
    assert 0.93 <= ((ends[:, 0] <= 0) & (ends[:, 1] >= 0)).mean() <= 0.97


def test_a_share_of_few_units_stays_between_0_and_1() -> None:
    bootstrap = BlockBootstrap(bootstrap_weights(3, resamples=100, seed=0), 0.95)
    sums = np.array([[0.0, 10.0], [9.0, 10.0], [10.0, 10.0]])
    assert bootstrap.interval(ratio, sums, within=(0.0, 1.0)).tolist() == [0.0, 1.0]


def test_one_unit_has_no_interval() -> None:
    bootstrap = BlockBootstrap(bootstrap_weights(1, resamples=100, seed=0), 0.95)
    assert np.isnan(bootstrap.interval(ratio, np.array([[1.0, 2.0]]))).all()


def test_a_number_that_half_of_the_units_decide_alone_has_no_interval() -> None:
    low, high = jackknife_interval(np.array([[1.0, 1.0], [np.nan, 2.0], [np.nan, 3.0]]), 0.95)
    assert np.isnan(low[0])
    assert low[1] < 2 < high[1]


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
