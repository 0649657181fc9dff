"""Intervals of proportions keep their promise, also where trials depend on each other."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from pipeline.evaluation.proportions import Method, clustered_interval, laplace, proportion_interval

Array = npt.NDArray[np.float64]
METHODS: tuple[Method, ...] = ("laplace", "jeffreys", "wilson")


def covers(interval: Array, truth: Array | float) -> float:
    """Share of the intervals [2, trials] that hold the truth."""
    return float(((interval[0] <= truth) & (truth <= interval[1])).mean())


def test_the_rule_of_succession_tells_six_of_ten_from_six_hundred_of_a_thousand() -> None:
    assert float(laplace(6, 10)) == 7 / 12
    assert float(laplace(600, 1000)) == 601 / 1002
    assert f"{float(laplace(6, 10)):.1%} {float(laplace(600, 1000)):.2%}" == "58.3% 59.98%"
    assert laplace([0, 3], [0, 3]).tolist() == [0.5, 0.8]
    narrow, wide = (np.diff(proportion_interval(k, n), axis=0).item() for k, n in ((600, 1000), (6, 10)))
    assert wide > 8 * narrow


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("trials", [20, 60, 400])
def test_intervals_hold_the_truth_as_often_as_they_say(method: Method, trials: int) -> None:
    generator = np.random.default_rng(trials)
    truth = generator.uniform(size=20_000)
    successes = generator.binomial(trials, truth)
    for confidence in (0.8, 0.95):
        interval = proportion_interval(successes, trials, confidence=confidence, method=method)
        assert -0.01 < covers(interval, truth) - confidence < 0.015


@pytest.mark.parametrize("method", ["jeffreys", "wilson"])
@pytest.mark.parametrize("truth", [0.02, 0.1, 0.5, 0.85, 0.99])
def test_no_truth_is_left_badly_covered(method: Method, truth: float) -> None:
    successes = np.arange(201)
    interval = proportion_interval(successes, 200, method=method)
    held = (interval[0] <= truth) & (truth <= interval[1])
    exact = float(stats.binom.pmf(successes, 200, truth)[held].sum())
    assert 0.90 <= exact <= 0.99


def test_the_textbook_interval_fails_where_these_do_not() -> None:
    successes = np.random.default_rng(0).binomial(40, 0.03, 20_000)
    share = successes / 40
    reach = 1.96 * np.sqrt(share * (1 - share) / 40)
    assert covers(np.stack([share - reach, share + reach]), 0.03) < 0.75
    assert covers(proportion_interval(successes, 40), 0.03) > 0.92


def test_ends_are_those_of_scipy_s_distributions() -> None:
    k, n = np.arange(1, 12), 12
    ours = proportion_interval(k, n, confidence=0.9)
    assert np.allclose(ours[0], stats.beta(k + 0.5, n - k + 0.5).ppf(0.05))
    assert np.allclose(ours[1], stats.beta(k + 0.5, n - k + 0.5).ppf(0.95))
    for successes in range(13):
        wilson = stats.binomtest(successes, 12).proportion_ci(0.95, method="wilson")
        low, high = proportion_interval(successes, 12, method="wilson")
        assert (float(low), float(high)) == pytest.approx((wilson.low, wilson.high), abs=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_seen_is_never_certain(method: Method) -> None:
    low, high = proportion_interval([0, 7, 0], [7, 7, 0], method=method)
    assert low.tolist()[::2] == [0, 0]
    assert high.tolist()[1:] == [1, 1]
    assert 0.2 < high[0] < 0.5
    assert 0.5 < low[1] < 0.8


def dependent(blocks: int, *, mean: float, runs: int, seed: int = 0) -> tuple[Array, Array]:
    """Successes and trials [b, runs] of blocks of 50 to 150 trials that share a probability of their own."""
    generator = np.random.default_rng(seed)
    trials = generator.integers(50, 151, (blocks, runs))
    own = generator.beta(mean * 8, (1 - mean) * 8, (blocks, runs))
    return generator.binomial(trials, own).astype(float), trials.astype(float)


@pytest.mark.parametrize(("blocks", "mean"), [(8, 0.5), (20, 0.7), (20, 0.9), (40, 0.9)])
def test_blocks_are_covered_where_single_trials_are_not(blocks: int, mean: float) -> None:
    successes, trials = dependent(blocks, mean=mean, runs=4000)
    share, interval = clustered_interval(successes, trials)
    assert np.allclose(share, successes.sum(axis=0) / trials.sum(axis=0))
    assert 0.93 <= covers(interval, mean) <= 0.975
    alone = proportion_interval(successes.sum(axis=0), trials.sum(axis=0))
    assert covers(alone, mean) < 0.7


def test_independent_trials_lose_little_by_being_blocked() -> None:
    generator = np.random.default_rng(3)
    successes = generator.binomial(100, 0.8, (40, 4000)).astype(float)
    _, interval = clustered_interval(successes, np.full_like(successes, 100))
    alone = proportion_interval(successes.sum(axis=0), 4000)
    assert 0.93 <= covers(interval, 0.8) <= 0.975
    assert np.median(interval[1] - interval[0]) < 1.1 * np.median(alone[1] - alone[0])


def test_blocks_that_agree_entirely_still_leave_doubt() -> None:
    share, interval = clustered_interval([[900.0]] * 6, [[900.0]] * 6)
    assert share.tolist() == [1.0]
    assert interval[:, 0].tolist() == proportion_interval(6, 6).tolist()
    assert interval[0, 0] < 0.75


def test_a_share_without_two_blocks_has_no_interval() -> None:
    share, interval = clustered_interval(
        [[3.0, 0.0, 2.0], [0.0, 0.0, 1.0]], [[4.0, 0.0, 4.0], [0.0, 0.0, 4.0]]
    )
    assert share[0] == 0.75
    assert math.isnan(share[1])
    assert np.isnan(interval[:, :2]).all()
    assert interval[0, 2] < 3 / 8 < interval[1, 2]


@pytest.mark.parametrize("counts", [(-1, 3), (4, 3)])
def test_counts_that_cannot_be_are_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="between 0 and `trials`"):
        proportion_interval(*counts)
    with pytest.raises(ValueError, match="`confidence` to be between 0 and 1"):
        proportion_interval(1, 2, confidence=1.5)
