from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.config import SplitsConfig
from pipeline.data.splits import CALIBRATION, GUARD, POOL, TEST, assign_splits, blocks, join_splits
from pipeline.errors import ConfigError


def assign(config: dict[str, Any], groups: list[int] | np.ndarray, **given: Any) -> np.ndarray:
    groups = np.asarray(groups)
    positions = given.pop("positions", np.arange(len(groups)))
    has_mask = given.pop("has_mask", np.ones(len(groups), dtype=np.bool_))
    listed = {"test": np.zeros(len(groups), bool), "calibration": np.zeros(len(groups), bool)}
    listed.update({name: np.isin(np.arange(len(groups)), rows) for name, rows in given.items()})
    return assign_splits(
        SplitsConfig.model_validate(config),
        groups=groups,
        positions=positions,
        has_mask=has_mask,
        listed=listed,
    )


def test_fractions_of_groups_keep_groups_whole() -> None:
    groups = np.repeat(np.arange(20), 7)
    splits = assign({"test": {"fraction": 0.2}, "calibration": {"fraction": 0.1}}, groups)
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
    first = assign(config, groups, positions=positions)
    np.testing.assert_array_equal(first, assign(config, groups, positions=positions))
    shuffle = np.random.default_rng(0).permutation(len(groups))
    shuffled = assign(config, groups[shuffle], positions=positions[shuffle])
    np.testing.assert_array_equal(first[shuffle], shuffled)
    assert (first != assign({**config, "seed": 4}, groups, positions=positions)).any()


@pytest.mark.parametrize("guard", [0, 1, 3])
def test_no_pool_image_is_within_the_guard_of_a_held_out_block(guard: int) -> None:
    groups = np.repeat([0, 1], [61, 83])
    positions = np.concatenate([np.arange(61) * 30 + 7, np.arange(83)])
    shuffle = np.random.default_rng(1).permutation(len(groups))
    groups, positions = groups[shuffle], positions[shuffle]
    spec = {"fraction": 0.2, "by": "block", "block": 8, "guard": guard}
    splits = assign({"test": spec, "calibration": spec}, groups, positions=positions)
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
    splits = assign({"test": spec, "calibration": spec}, groups, has_mask=has_mask)
    assert (splits[:150] == POOL).all()
    assert (splits == TEST).sum() == 20
    assert (splits == CALIBRATION).sum() == 20


def test_without_any_mask_all_groups_may_be_drawn() -> None:
    splits = assign({}, np.repeat(np.arange(10), 2), has_mask=np.zeros(20, dtype=np.bool_))
    assert (splits == TEST).sum() == 4


def test_listed_images_are_held_out_and_the_rest_is_drawn_elsewhere() -> None:
    groups = np.repeat(np.arange(6), 4)
    config = {"test": {"list": "test.txt"}, "calibration": {"fraction": 0.34}}
    splits = assign(config, groups, test=[0, 5])
    assert np.flatnonzero(splits == TEST).tolist() == [0, 5]
    assert (splits == CALIBRATION).sum() == 8
    assert not (splits[:8] == CALIBRATION).any()


def test_an_image_in_both_lists_and_an_empty_list_are_refused() -> None:
    config = {"test": {"list": "a"}, "calibration": {"list": "b"}}
    with pytest.raises(ConfigError, match="both name 1"):
        assign(config, [0, 1, 2], test=[0], calibration=[0, 1])
    with pytest.raises(ConfigError, match=r"`splits.calibration` names no image"):
        assign(config, [0, 1, 2], test=[0])
    with pytest.raises(ConfigError, match="nothing is left"):
        assign(config, [0, 1, 2], test=[0], calibration=[1, 2])


def test_one_group_cannot_be_split_by_group_and_the_remedy_says_so() -> None:
    with pytest.raises(ConfigError, match="1 groups in all") as caught:
        assign({}, [0] * 30)
    assert "by: block" in caught.value.remedy


def test_too_few_blocks_name_the_key_to_lower() -> None:
    spec = {"fraction": 0.2, "by": "block", "block": 10}
    with pytest.raises(ConfigError) as caught:
        assign({"test": spec, "calibration": spec}, [0] * 20)
    assert "splits.calibration.block" in caught.value.remedy


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
