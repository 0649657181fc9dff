from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from pipeline.config import SplitsConfig
from pipeline.data.splits import (
    CALIBRATION,
    GUARD,
    POOL,
    TEST,
    HeldOut,
    Images,
    blocks,
    join_splits,
    plan_splits,
)
from pipeline.errors import ConfigError


def plan(
    config: dict[str, Any],
    groups: list[int] | np.ndarray,
    *,
    enough: Callable[[np.ndarray], bool] = lambda wanted: bool(wanted.any()),
    versions: dict[HeldOut, int] | None = None,
    test: Sequence[int] = (),
    calibration: Sequence[int] = (),
    **given: Any,
) -> np.ndarray:
    """The splits of images in groups, of which `test` and `calibration` list some rows."""
    groups = np.asarray(groups)
    nothing = np.zeros(len(groups), dtype=np.bool_)
    splits = np.zeros(len(groups), dtype=np.uint8)
    for code, rows in ((TEST, test), (CALIBRATION, calibration)):
        splits[list(rows)] = code
    labeled = given.pop("labeled", nothing)
    images = Images(
        groups=groups,
        positions=given.pop("positions", np.arange(len(groups))),
        splits=given.pop("splits", splits),
        has_mask=given.pop("has_mask", ~nothing),
        labeled=labeled,
        taken=given.pop("taken", labeled),
    )
    none: dict[HeldOut, int] = {"test": 0, "calibration": 0}
    return plan_splits(SplitsConfig.model_validate(config), images, versions=versions or none, enough=enough)


def test_fractions_of_groups_keep_groups_whole() -> None:
    groups = np.repeat(np.arange(20), 7)
    splits = plan({"test": {"fraction": 0.2}, "calibration": {"fraction": 0.1}}, groups)
    for group in range(20):
        assert len(set(splits[groups == group].tolist())) == 1
    assert (splits == TEST).sum() == 4 * 7
    assert (splits == CALIBRATION).sum() == 2 * 7
    assert (splits == GUARD).sum() == 0


@pytest.mark.parametrize("by", ["group", "block"])
def test_the_seed_decides_and_the_order_of_rows_does_not(by: str) -> None:
    groups = np.repeat(np.arange(12), 10)
    positions = np.tile(np.arange(10), 12)
    spec = {"fraction": 0.25, "by": by, "block": 5}
    config = {"test": spec, "calibration": spec, "seed": 3}
    first = plan(config, groups, positions=positions)
    np.testing.assert_array_equal(first, plan(config, groups, positions=positions))
    shuffle = np.random.default_rng(0).permutation(len(groups))
    shuffled = plan(config, groups[shuffle], positions=positions[shuffle])
    np.testing.assert_array_equal(first[shuffle], shuffled)
    assert (first != plan({**config, "seed": 4}, groups, positions=positions)).any()


@pytest.mark.parametrize("guard", [0, 1, 3])
def test_no_pool_image_is_within_the_guard_of_a_held_out_block(guard: int) -> None:
    groups = np.repeat([0, 1], [61, 83])
    positions = np.concatenate([np.arange(61) * 30 + 7, np.arange(83)])
    shuffle = np.random.default_rng(1).permutation(len(groups))
    groups, positions = groups[shuffle], positions[shuffle]
    spec = {"fraction": 0.2, "by": "block", "block": 8, "guard": guard}
    splits = plan({"test": spec, "calibration": spec}, groups, positions=positions)
    for group in (0, 1):
        rows = np.flatnonzero(groups == group)
        ordered = splits[rows[np.argsort(positions[rows])]]
        for place in np.flatnonzero(ordered == POOL):
            near = ordered[max(0, place - guard) : place + guard + 1]
            assert not np.isin(near, [TEST, CALIBRATION]).any()
    assert {TEST, CALIBRATION, POOL} <= set(splits.tolist())
    assert (GUARD in splits) == (guard > 0)


def test_blocks_are_drawn_among_those_with_a_mask() -> None:
    groups = np.zeros(200, dtype=int)
    has_mask = np.arange(200) >= 150
    spec = {"fraction": 0.4, "by": "block", "block": 10, "guard": 0}
    splits = plan({"test": spec, "calibration": spec}, groups, has_mask=has_mask)
    assert (splits[:150] == POOL).all()
    assert (splits == TEST).sum() == 20
    assert (splits == CALIBRATION).sum() == 20


def test_listed_images_are_held_out_and_the_rest_is_drawn_elsewhere() -> None:
    groups = np.repeat(np.arange(6), 4)
    config = {"test": {"list": "test.txt"}, "calibration": {"fraction": 0.34}}
    splits = plan(config, groups, test=[0, 5])
    assert np.flatnonzero(splits == TEST).tolist() == [0, 5]
    assert (splits == CALIBRATION).sum() == 8
    assert not (splits[:8] == CALIBRATION).any()


def test_an_empty_list_and_lists_of_every_image_are_refused() -> None:
    config = {"test": {"list": "a"}, "calibration": {"list": "b"}}
    with pytest.raises(ConfigError, match=r"`splits.calibration` names no image"):
        plan(config, [0, 1, 2], test=[0])
    with pytest.raises(ConfigError, match="nothing is left"):
        plan(config, [0, 1, 2], test=[0], calibration=[1, 2])


def test_one_group_cannot_be_split_by_group_and_the_remedy_says_so() -> None:
    with pytest.raises(ConfigError, match="all images are in one group") as caught:
        plan({}, [0] * 30)
    assert "by: block" in caught.value.remedy


def test_a_split_that_its_fraction_leaves_too_small_takes_more_and_leaves_as_many_for_training() -> None:
    def ten(wanted: np.ndarray) -> bool:
        return int(wanted.sum()) >= 10

    for count, held in ((19, (0, 0)), (20, (10, 0)), (39, (10, 0)), (40, (10, 10)), (100, (20, 15))):
        splits = plan({}, np.arange(count), enough=ten)
        assert ((splits == TEST).sum(), (splits == CALIBRATION).sum()) == held


def test_what_a_model_may_have_learned_from_is_never_held_out_nor_a_neighbour_of_it() -> None:
    spec = {"fraction": 0.15, "by": "block", "block": 2, "guard": 1}
    labeled = np.isin(np.arange(60), [9, 10, 31])
    splits = plan({"test": spec, "calibration": spec}, [0] * 60, labeled=labeled)
    assert (splits[labeled] == POOL).all()
    assert not np.isin(splits[[8, 9, 10, 11, 30, 31, 32]], [TEST, CALIBRATION]).any()
    assert {TEST, CALIBRATION} <= set(splits.tolist())
    by_group = plan({"test": {"fraction": 0.5}}, np.repeat(np.arange(30), 2), labeled=labeled)
    assert (by_group[[8, 9, 10, 11, 30, 31]] == POOL).all()


def test_a_split_grows_by_a_quarter_or_more_and_keeps_what_it_holds() -> None:
    config = {"test": {"fraction": 0.2}, "calibration": {"list": "c"}}
    known = np.r_[np.full(20, TEST), [CALIBRATION], np.full(79, POOL)].astype(np.uint8)
    labeled = np.arange(100) >= 21
    for new, grown in ((0, 20), (20, 20), (25, 25)):
        splits = plan(
            config,
            np.arange(100 + new),
            splits=np.r_[known, np.zeros(new, dtype=np.uint8)],
            labeled=np.r_[labeled, np.zeros(new, dtype=np.bool_)],
            versions={"test": 1, "calibration": 1},
        )
        assert (splits == TEST).sum() == grown
        np.testing.assert_array_equal(splits[:100], known)


def test_blocks_never_cross_groups() -> None:
    numbers = blocks(groups=np.array([0, 1, 0, 1, 0]), positions=np.array([2, 0, 0, 1, 1]), size=2)
    assert numbers.tolist() == [1, 2, 0, 2, 0]


def join(config: dict[str, Any], known: list[tuple[int, int]], positions: list[int]) -> list[int]:
    splits = np.array([split for _, split in known], dtype=np.uint8)
    places = np.array([place for place, _ in known])
    return join_splits(
        SplitsConfig.model_validate(config),
        group_splits=splits,
        group_positions=places,
        positions=np.array(positions),
    ).tolist()


def test_a_new_image_of_a_held_out_group_joins_its_split() -> None:
    assert join({}, [(0, CALIBRATION), (1, CALIBRATION)], [5]) == [CALIBRATION]
    assert join({}, [(0, TEST)], [5, 6]) == [TEST, TEST]
    assert join({}, [(0, POOL), (1, POOL)], [0, 5]) == [POOL, POOL]


def test_a_new_image_near_a_held_out_block_is_a_guard() -> None:
    spec = {"fraction": 0.2, "by": "block", "guard": 1}
    config = {"test": spec, "calibration": spec}
    known = [(0, POOL), (10, POOL), (20, GUARD), (30, TEST), (40, TEST), (50, GUARD), (60, POOL), (70, POOL)]
    assert join(config, known, [5, 15, 25, 35, 45, 55, 65, 99]) == [
        POOL,
        POOL,
        GUARD,
        GUARD,
        GUARD,
        POOL,
        POOL,
        POOL,
    ]


def test_a_new_image_inside_a_block_is_a_guard_even_without_guard_frames() -> None:
    config = {"test": {"fraction": 0.2, "by": "block", "guard": 0}}
    known = [(0, POOL), (10, TEST), (20, TEST), (30, POOL)]
    assert join(config, known, [15, 5, 25, 10]) == [GUARD, POOL, POOL, GUARD]
