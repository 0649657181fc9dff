"""Independent units keep the promise of 95 % on images that resemble each other, at the default settings."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.bench_coverage import autoregressive, coverage, estimated, former_blocks, proportions, sites
from pipeline.evaluation.proportions import clustered_interval
from pipeline.evaluation.units import Runs, block_length, units

Array = npt.NDArray[np.float64]
TRIALS = 200
"""The share of them that holds the truth has a standard error of 1.5 %."""


def generator(seed: int = 31) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("coefficient", "length"), [(0.0, 400), (0.5, 400), (0.8, 400), (0.95, 400)])
def test_a_sequence_is_covered_however_long_its_memory(coefficient: float, length: int) -> None:
    series = autoregressive(TRIALS, length, coefficient, generator())
    assert 0.9 <= coverage(series, estimated(["a"] * length, independent=False))[0] <= 0.985


@pytest.mark.parametrize(("length", "least", "most"), [(60, 0.76, 0.91), (100, 0.82, 0.95)])
def test_few_frames_of_a_long_memory_are_covered_less(length: int, least: float, most: float) -> None:
    """They hold hardly one independent unit; the documentation says so."""
    series = autoregressive(TRIALS, length, 0.95, generator())
    held, counts, _ = coverage(series, estimated(["a"] * length, independent=False))
    assert least <= held <= most
    assert np.median(counts) == 3


@pytest.mark.parametrize(("coefficient", "most"), [(0.8, 0.92), (0.95, 0.75)])
def test_blocks_of_ten_frames_do_not_cover_it(coefficient: float, most: float) -> None:
    series = autoregressive(TRIALS, 400, coefficient, generator())
    assert coverage(series, former_blocks(["a"] * 400))[0] < most


@pytest.mark.parametrize("icc", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("groups", [8, 12])
def test_sites_are_covered_from_eight_on(groups: int, icc: float) -> None:
    series = sites(TRIALS, groups, 40, icc, generator())
    names = [f"site {index // 40}" for index in range(groups * 40)]
    assert 0.91 <= coverage(series, estimated(names, independent=False))[0] <= 0.985
    assert coverage(series, former_blocks(names))[0] < 0.8


def test_fewer_sites_have_wider_intervals_than_their_images_would_give() -> None:
    names = [f"site {index // 40}" for index in range(200)]
    alike, unlike = (sites(TRIALS, 5, 40, icc, generator()) for icc in (0.0, 0.5))
    held, counts, width = coverage(unlike, estimated(names, independent=False))
    assert held > 0.9
    assert np.median(counts) == 5
    _, many, narrow = coverage(alike, estimated(names, independent=False))
    assert np.median(many) == 20
    assert width > 3 * narrow


def test_images_that_the_user_calls_independent_are_units_of_their_own() -> None:
    runs = Runs.of(["folder"] * 14, range(14), block=10, independent=True)
    assert runs.units(np.zeros((14, 1))).tolist() == list(range(14))
    assert Runs.of(["folder"] * 14, range(14), block=10).units(np.zeros((14, 1))).tolist() == [0] * 14


@pytest.mark.parametrize("share", [0.02, 0.9, 0.97, 0.99])
@pytest.mark.parametrize("count", [10, 20, 50])
def test_rare_classes_and_shares_near_1_are_covered(count: int, share: float) -> None:
    right, pixels = proportions(3000, count, share, generator())
    _, (low, high) = clustered_interval(right, pixels)
    assert 0.925 <= ((low <= share) & (share <= high)).mean() <= 0.972


def test_the_longest_memory_of_several_numbers_counts() -> None:
    quick, slow = (autoregressive(1, 400, value, generator())[:, 0] for value in (0.0, 0.9))
    places = ["a"] * 400, range(400)
    alone = [block_length(*places, one[:, None]) for one in (quick, slow)]
    assert alone[0] < 10 < alone[1]
    assert block_length(*places, np.stack([quick, slow], axis=1)) == alone[1]


def test_blocks_follow_positions_and_never_cross_a_group() -> None:
    order = generator().permutation(60)
    groups = np.array(["first", "second"])[order // 30]
    found = units(groups.tolist(), order.tolist(), np.zeros((60, 1)), least=10)
    assert sorted(np.bincount(found).tolist()) == [10] * 6
    for unit in range(6):
        members = np.sort(order[found == unit])
        assert np.ptp(members) == 9
        assert len(set((members // 30).tolist())) == 1


def test_many_images_are_read_in_runs_of_neighbours_and_many_groups_whole() -> None:
    long = Runs.of(["a"] * 2000, range(2000), block=10, most=500)
    assert len(long) == 500
    assert long.least == 2
    assert np.bincount(long.of_image).tolist() == [4] * 500
    sites = Runs.of([f"site {index // 10}" for index in range(200)], range(200), block=10)
    assert np.array_equal(sites.of_image, np.arange(200) // 10)
    assert sites.units(np.zeros((20, 1))).tolist() == list(range(20))


def test_one_large_group_beside_small_ones_is_cut_into_blocks() -> None:
    groups = ["large"] * 300 + [f"small {index}" for index in range(8)]
    found = units(groups, range(308), np.zeros((308, 1)), least=10)
    assert len(set(found[:300].tolist())) == 30


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="`block` to be positive"):
        Runs.of(["a"], [0], block=0)
    with pytest.raises(ValueError, match="residuals of 2 images, but got 3"):
        units(["a", "a"], [0, 1], np.zeros((3, 1)))
