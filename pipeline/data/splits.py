"""Splits: which images are held out, as pure functions over groups and positions.

Legend: N images. `groups` int [N] index of the group; `positions` int [N] place in the group's sequence;
`splits` uint8 [N]: 0 pool, 1 calibration, 2 test, 3 guard. A guard image belongs to no split, because it
looks like a held-out one. The same input and seed give the same splits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.config import HeldOutSplit, SplitsConfig
from pipeline.errors import ConfigError

Codes = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.integer]

POOL, CALIBRATION, TEST, GUARD = range(4)
HeldOut = Literal["test", "calibration"]
ORDER: tuple[tuple[HeldOut, int], ...] = (("test", TEST), ("calibration", CALIBRATION))
"""Held-out splits in the order in which they choose."""


def assign_splits(
    config: SplitsConfig, *, groups: Integers, positions: Integers, has_mask: Flags, listed: dict[str, Flags]
) -> Codes:
    """Hold images out, the first time.

    A fraction is drawn among the groups or blocks that have a mask (all, where none has), because others
    could not be evaluated.

    Args:
        has_mask: bool [N].
        listed: for `test` and `calibration` with `list` or `folder`: bool [N], whether the image is named.

    Returns:
        uint8 [N].

    Raises:
        ConfigError: a split would be empty or would leave nothing to the pool, or two splits name one image.
    """
    splits = np.zeros(len(groups), dtype=np.uint8)
    for name, code in ORDER:
        spec = getattr(config, name)
        if spec.fraction is None:
            _hold_listed(splits, name=name, code=code, named=listed[name])
    for salt, (name, code) in enumerate(ORDER):
        spec = getattr(config, name)
        if spec.fraction is None:
            continue
        generator = np.random.default_rng([config.seed, salt])
        if spec.by == "group":
            drawn = _draw_groups(
                splits, spec, name=name, groups=groups, has_mask=has_mask, generator=generator
            )
            splits[drawn] = code
        else:
            _draw_blocks(
                splits,
                spec,
                name=name,
                code=code,
                groups=groups,
                positions=positions,
                has_mask=has_mask,
                generator=generator,
            )
    if len(splits) and not (splits == POOL).any():
        raise ConfigError(
            "`splits` holds every image out: nothing is left to select from.",
            "Lower `fraction`, use shorter blocks with `by: block`, or name fewer images.",
        )
    return splits


def join_splits(
    config: SplitsConfig,
    *,
    group_splits: Codes,
    group_positions: Integers,
    positions: npt.NDArray[np.integer | np.floating],
) -> Codes:
    """Where new images of a known group belong, after the splits were locked: the pool, unless they look
    like a held-out image.

    With `by: group`, they join the split of their group. With `by: block`, they are guard images when they
    lie between two images that are held out or guards, or within `guard` images of a held-out one.

    Args:
        group_splits, group_positions: [G], every known image of the group.
        positions: [N], of the new images; half numbers lie between known ones.

    Returns:
        uint8 [N].
    """
    joined = np.zeros(len(positions), dtype=np.uint8)
    order = np.argsort(group_positions, kind="stable")
    known_splits, known_positions = group_splits[order], group_positions[order]
    for name, code in ORDER:
        spec: HeldOutSplit = getattr(config, name)
        held = known_splits == code
        if spec.fraction is None or not held.any():
            continue
        if spec.by == "group":
            joined[joined == POOL] = code
            continue
        left = np.searchsorted(known_positions, positions, side="left")
        right = np.searchsorted(known_positions, positions, side="right")
        counted = np.concatenate([[0], np.cumsum(held)])
        first = np.clip(left - spec.guard, 0, len(held))
        last = np.clip(right + spec.guard, 0, len(held))
        near = counted[last] > counted[first]
        before, after = np.clip(left - 1, 0, None), np.clip(right, None, len(held) - 1)
        set_apart = known_splits != POOL
        inside = (left > 0) & (right < len(held)) & set_apart[before] & set_apart[after]
        joined[(near | inside) & (joined == POOL)] = GUARD
    return joined


def blocks(*, groups: Integers, positions: Integers, size: int) -> npt.NDArray[np.int64]:
    """Number the blocks of neighbours: `size` images in a row of one group, in the order of positions.

    >>> blocks(groups=np.array([0, 0, 0, 1]), positions=np.array([5, 1, 3, 0]), size=2).tolist()
    [1, 0, 0, 2]
    """
    order = np.lexsort((positions, groups))
    rank = _rank_in_group(groups[order])
    starts = (rank % size == 0) if len(rank) else np.zeros(0, dtype=np.bool_)
    numbers = np.empty(len(groups), dtype=np.int64)
    numbers[order] = np.cumsum(starts) - 1
    return numbers


def _hold_listed(splits: Codes, *, name: str, code: int, named: Flags) -> None:
    if not named.any():
        raise ConfigError(
            f"`splits.{name}` names no image of the project.", "Correct its `list` or its `folder`."
        )
    both = int((named & (splits != POOL)).sum())
    if both:
        raise ConfigError(
            f"`splits.test` and `splits.calibration` both name {both} of the images.",
            "Name each image in one of them.",
        )
    splits[named] = code


def _draw_groups(
    splits: Codes,
    spec: HeldOutSplit,
    *,
    name: str,
    groups: Integers,
    has_mask: Flags,
    generator: np.random.Generator,
) -> Flags:
    """The images of the drawn groups. A group that another split has a part of is not drawn."""
    count = int(groups.max()) + 1
    whole = np.bincount(groups, weights=splits != POOL, minlength=count) == 0
    candidates = np.flatnonzero(whole & _has_any(groups, has_mask, count))
    wanted = max(1, round((spec.fraction or 0.0) * _countable(groups, has_mask, count)))
    free = int(whole.sum())
    if wanted > len(candidates) or wanted >= free:
        raise ConfigError(
            f"`splits.{name}` takes {wanted} of the groups, but only {len(candidates)} are free for it, and "
            f"one must stay in the pool ({count} groups in all).",
            "Set `by: block` to hold out blocks of neighbours, or name groups with `data.group_regex`.",
        )
    chosen = generator.permutation(candidates)[:wanted]
    return np.isin(groups, chosen)


def _draw_blocks(
    splits: Codes,
    spec: HeldOutSplit,
    *,
    name: str,
    code: int,
    groups: Integers,
    positions: Integers,
    has_mask: Flags,
    generator: np.random.Generator,
) -> None:
    """Hold drawn blocks out, and put guard images on both sides of each run of them."""
    numbers = blocks(groups=groups, positions=positions, size=spec.block)
    count = int(numbers.max()) + 1
    held_elsewhere = np.bincount(numbers, weights=(splits == TEST) | (splits == CALIBRATION), minlength=count)
    free = np.bincount(numbers, weights=splits == POOL, minlength=count)
    sizes = np.bincount(numbers, minlength=count)
    usable = (held_elsewhere == 0) & (free * 2 >= sizes)
    candidates = np.flatnonzero(usable & _has_any(numbers, has_mask & (splits == POOL), count))
    wanted = max(1, round((spec.fraction or 0.0) * _countable(numbers, has_mask, count)))
    if wanted > len(candidates) or wanted >= int(usable.sum()):
        raise ConfigError(
            f"`splits.{name}` takes {wanted} of the blocks, but only {len(candidates)} are free for it, and "
            f"one must stay in the pool ({count} blocks of {spec.block} in all).",
            f"Lower `splits.{name}.block` or `splits.{name}.fraction`.",
        )
    chosen = np.isin(numbers, generator.permutation(candidates)[:wanted]) & (splits == POOL)
    splits[chosen] = code
    order = np.lexsort((positions, groups))
    for rows in _neighbours(groups[order], distance=spec.guard):
        here, there = order[rows[0]], order[rows[1]]
        splits[here[chosen[there] & (splits[here] == POOL)]] = GUARD


def _neighbours(groups: Integers, *, distance: int) -> Iterator[tuple[Integers, Integers]]:
    """Pairs of rows of one group, 1 to `distance` apart, both ways; `groups` is sorted."""
    rows = np.arange(len(groups))
    for step in range(1, min(distance, len(groups) - 1) + 1):
        same = groups[:-step] == groups[step:]
        yield rows[:-step][same], rows[step:][same]
        yield rows[step:][same], rows[:-step][same]


def _rank_in_group(groups: Integers) -> npt.NDArray[np.int64]:
    """The place of each row among the rows of its group; `groups` is sorted."""
    rows = np.arange(len(groups))
    starts = np.r_[True, groups[1:] != groups[:-1]] if len(groups) else np.zeros(0, dtype=np.bool_)
    return rows - np.maximum.accumulate(np.where(starts, rows, 0))


def _has_any(units: Integers, has_mask: Flags, count: int) -> Flags:
    """Whether each group or block has a mask; all of them, where no image has one."""
    if not has_mask.any():
        return np.ones(count, dtype=np.bool_)
    return np.bincount(units, weights=has_mask, minlength=count) > 0


def _countable(units: Integers, has_mask: Flags, count: int) -> int:
    return int(_has_any(units, has_mask, count).sum())
