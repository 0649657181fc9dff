"""Two sets of images, compared measure by measure."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ks_2samp

from pipeline.data.input_range import LIGHT
from pipeline.evaluation.drift import (
    DRIFT_MEASURES,
    Difference,
    Profile,
    deal,
    differences,
    largest_of_all,
    shifted_images,
)

CLASSES = 3
MEASURES = (*DRIFT_MEASURES, *LIGHT)


def profile(
    values: np.ndarray, *, first_id: int = 1, group: str = "a", shares: np.ndarray | None = None
) -> Profile:
    """The same values for every measure; one sequence, in order."""
    count = len(values)
    return Profile(
        ids=np.arange(first_id, first_id + count),
        measures=dict.fromkeys(MEASURES, values),
        shares=np.tile([0.5, 0.3, 0.2], (count, 1)) if shares is None else shares,
        groups=[group] * count,
        positions=list(range(count)),
    )


def compared(
    reference: Profile, new: Profile, *, block: int = 1, level: float | None = 0.05
) -> list[Difference]:
    return differences(reference, new, deal(reference, new, block=block), level=level, seed=0)


def drives(
    generator: np.random.Generator, count: int, *, frames: int, first: int = 0, shift: float = 0.0
) -> Profile:
    """Frames of drives that differ from each other as much as frames of one drive do."""
    site = np.repeat(generator.normal(size=count), frames)
    values = np.concatenate([autocorrelated(generator, frames) for _ in range(count)]) + site + shift
    noise = generator.normal(size=(len(MEASURES), count * frames)) / 2
    return Profile(
        ids=np.arange(count * frames),
        measures={name: values + own for name, own in zip(MEASURES, noise, strict=True)},
        shares=np.tile([0.5, 0.3, 0.2], (count * frames, 1)),
        groups=[f"drive {first + index // frames}" for index in range(count * frames)],
        positions=[index % frames for index in range(count * frames)],
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
    found = compared(profile(known), profile(strange, group="b"))
    expected = ks_2samp(known, strange)
    for item in found[:-1]:
        assert item.distance == pytest.approx(float(expected.statistic))  # pyright: ignore[reportAttributeAccessIssue]
    assert [item.measure for item in found] == [*MEASURES, "class_shares"]


def test_a_night_that_is_only_darker_is_seen_and_images_without_brightness_are_compared_without_it() -> None:
    generator = np.random.default_rng(2)
    known, dark = profile(generator.normal(size=60)), profile(generator.normal(size=40), group="b")
    dark.measures["brightness"] = dark.measures["brightness"] - 4
    found = {item.measure: item for item in compared(known, dark)}
    assert [name for name, item in found.items() if item.drifted] == ["brightness"]
    known.measures["brightness"] = np.r_[np.nan, known.measures["brightness"][1:]]
    rest = compared(known, dark)
    assert [item.measure for item in rest] == [name for name in found if name != "brightness"]
    assert not any(item.drifted for item in rest)


def test_class_shares_are_compared_by_the_mass_that_has_moved() -> None:
    values = np.random.default_rng(0).normal(size=40)
    moved = np.tile([0.3, 0.3, 0.4], (40, 1))
    found = compared(profile(values), profile(values, group="b", shares=moved))[-1]
    assert found.distance == pytest.approx(0.2)
    assert found.drifted


def test_one_measure_has_the_p_value_of_its_permutations_and_several_have_larger_ones() -> None:
    generator = np.random.default_rng(1)
    alone = generator.normal(size=(1000, 1))
    assert largest_of_all(alone)[0] == pytest.approx((alone >= alone[0]).mean())
    for distances in generator.normal(size=(20, 200, 5)):
        corrected = largest_of_all(distances)
        assert (corrected >= (distances >= distances[0]).mean(axis=0) - 1e-12).all()
        for measure, p in enumerate(corrected):
            exceeded = [max(row) >= distances[0, measure] for row in distances.tolist()]
            assert p == pytest.approx(sum(exceeded) / len(exceeded))


def test_a_shift_is_found_and_named_and_a_large_pool_without_one_is_not() -> None:
    generator = np.random.default_rng(3)
    known = generator.normal(size=300)
    shifted = generator.normal(1.5, 1, 80)
    found = compared(profile(known), profile(shifted, first_id=1000), block=5)
    assert [item.drifted for item in found] == [True] * 6 + [False]
    assert all(item.p is not None and item.p < 0.05 for item in found[:-1])
    small = compared(profile(known), profile(known + 0.2, group="b"))
    assert small[0].p is not None
    assert small[0].p < 0.5
    assert not any(item.drifted for item in small)  # however significant, it is not large


def test_new_drives_of_one_population_seldom_raise_an_alarm_where_single_frames_often_would() -> None:
    generator = np.random.default_rng(5)
    alarms = {1: 0, 10: 0}
    seen = 0
    for _ in range(40):
        known, new, strange = (
            drives(generator, 10, frames=15),
            drives(generator, 4, frames=15, first=10),
            drives(generator, 4, frames=15, first=10, shift=4.0),
        )
        for block in alarms:
            alarms[block] += any(item.drifted for item in compared(known, new, block=block))
        seen += any(item.drifted for item in compared(known, strange, block=10))
    assert alarms[10] <= 5  # 40 × 5 % = 2
    assert alarms[1] >= 12
    assert seen >= 35


@pytest.mark.parametrize(
    ("before", "new", "smallest"), [(1, 1, 1.0), (4, 3, 1.0), (7, 1, 1 / 8), (5, 3, 1 / 56)]
)
def test_few_sequences_have_distances_and_no_p_value(before: int, new: int, smallest: float) -> None:
    generator = np.random.default_rng(0)
    known, strange = (
        drives(generator, before, frames=12),
        drives(generator, new, frames=12, first=9, shift=50.0),
    )
    dealt = deal(known, strange, block=10)
    assert (dealt.reference, dealt.new, dealt.smallest_p) == (before, new, pytest.approx(smallest))
    if dealt.smallest_p > 0.05:
        with pytest.raises(ValueError, match="Expected a level of at least"):
            compared(known, strange, block=10)
        found = compared(known, strange, block=10, level=None)
        assert [(item.p, item.drifted) for item in found] == [(None, False)] * (len(MEASURES) + 1)
    else:
        found = compared(known, strange, block=10)
        assert found[0].p == pytest.approx(smallest)
    assert found[0].distance == pytest.approx(1.0)


def test_every_way_to_choose_the_new_sequences_is_tried_once_where_they_are_few() -> None:
    generator = np.random.default_rng(2)
    known, new = drives(generator, 6, frames=2), drives(generator, 3, frames=2, first=6)
    for item in compared(known, new, block=10):
        assert item.p is not None
        assert 84 * item.p == pytest.approx(round(84 * item.p))


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
        compared(profile(np.zeros(0)), profile(np.zeros(3)), level=None)
