"""Two sets of images, compared measure by measure."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ks_2samp

from pipeline.evaluation.drift import DRIFT_MEASURES, Profile, differences, holm, shifted_images

CLASSES = 3


def profile(
    values: np.ndarray, *, first_id: int = 1, group: str = "a", shares: np.ndarray | None = None
) -> Profile:
    """The same values for every measure; one sequence, in order."""
    count = len(values)
    return Profile(
        ids=np.arange(first_id, first_id + count),
        measures=dict.fromkeys(DRIFT_MEASURES, values),
        shares=np.tile([0.5, 0.3, 0.2], (count, 1)) if shares is None else shares,
        groups=[group] * count,
        positions=list(range(count)),
    )


def autocorrelated(generator: np.random.Generator, count: int) -> np.ndarray:
    """A series whose neighbours are nearly equal, as the frames of a sequence."""
    noise = generator.normal(size=count)
    values = np.empty(count)
    values[0] = noise[0]
    for index in range(1, count):
        values[index] = 0.9 * values[index - 1] + np.sqrt(1 - 0.9**2) * noise[index]
    return values


def test_distances_are_those_of_kolmogorov_and_smirnov() -> None:
    generator = np.random.default_rng(0)
    known, strange = generator.normal(size=60).round(1), generator.normal(0.7, 1.3, 35).round(1)
    found = differences(profile(known), profile(strange, group="b"), block=1, seed=0)
    expected = ks_2samp(known, strange)
    for item in found[:4]:
        assert item.distance == pytest.approx(float(expected.statistic))  # pyright: ignore[reportAttributeAccessIssue]
    assert [item.measure for item in found] == [*DRIFT_MEASURES, "class_shares"]


def test_class_shares_are_compared_by_the_mass_that_has_moved() -> None:
    values = np.random.default_rng(0).normal(size=40)
    moved = np.tile([0.3, 0.3, 0.4], (40, 1))
    found = differences(profile(values), profile(values, group="b", shares=moved), block=1, seed=0)[-1]
    assert found.distance == pytest.approx(0.2)
    assert found.drifted


def test_corrected_p_values_are_those_of_the_step_down_procedure() -> None:
    p = np.array([0.2, 0.001, 0.012, 0.9, 0.02])
    expected = [min(1.0, max(5 * 0.001, 4 * 0.012, 3 * 0.02, 2 * 0.2)), 0.005, 0.048, 0.9, 0.06]
    np.testing.assert_allclose(holm(p), expected)


def test_a_shift_is_found_and_named_and_a_large_pool_without_one_is_not() -> None:
    generator = np.random.default_rng(3)
    known = generator.normal(size=300)
    shifted = generator.normal(1.5, 1, 80)
    found = differences(profile(known), profile(shifted, group="b", first_id=1000), block=5, seed=0)
    assert [item.drifted for item in found] == [True] * 4 + [False]
    assert all(item.p < 0.05 for item in found[:4])
    small = differences(profile(known), profile(known + 0.2, group="b"), block=1, seed=0)
    assert small[0].p < 0.5
    assert not any(item.drifted for item in small)  # however significant, it is not large


def test_sequences_without_drift_seldom_raise_an_alarm_where_single_images_often_would() -> None:
    generator = np.random.default_rng(5)
    alarms = {1: 0, 25: 0}
    for _ in range(30):
        known, new = autocorrelated(generator, 150), autocorrelated(generator, 75)
        for block in alarms:
            found = differences(profile(known), profile(new, group="b"), block=block, seed=0)
            alarms[block] += any(item.p <= 0.05 for item in found)
    assert alarms[25] <= 4
    assert alarms[1] >= 10


def test_the_images_that_cause_it_lie_farthest_out_in_the_direction_of_the_shift() -> None:
    known = np.linspace(0, 1, 101)
    falling = profile(np.array([0.5, -0.2, -3.0, 0.1, 2.0]), first_id=10)
    found = shifted_images(profile(known), falling, ["entropy"], limit=3)
    assert [item.image_id for item in found] == [12, 11, 13]
    assert [item.percentile for item in found] == pytest.approx([0.0, 0.0, 100 * 10 / 101])
    rising = profile(np.array([0.5, 5.0, 0.9]), first_id=10)
    first = shifted_images(profile(known), rising, ["entropy"])[0]
    assert (first.image_id, first.value, first.percentile) == (11, 5.0, 100.0)


def test_an_empty_side_is_refused() -> None:
    with pytest.raises(ValueError, match="both sides"):
        differences(profile(np.zeros(0)), profile(np.zeros(3)), block=1, seed=0)
