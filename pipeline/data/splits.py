"""Splits: which images are held out, as pure functions over groups and positions.

Legend: N images. `groups` int [N] index of the group; `positions` int [N] place in the group's sequence;
`splits` uint8 [N]: 0 pool, 1 calibration, 2 test, 3 guard. A guard image belongs to no split, because it
looks like a held-out one. The same input and seed give the same splits.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
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
DRAWS = 20
"""Orders of the groups or blocks, of which the one that is enough with the fewest of them is taken."""


@dataclass(frozen=True)
class Images:
    """What splits are drawn from, a row an image.

    Attributes:
        groups, positions, splits: see the legend.
        has_mask: bool [N].
        labeled: bool [N], by an annotator or by a mask that counts as a label.
        taken: bool [N], labeled or in a queue: never held out any more, as models may learn from it.
    """

    groups: Integers
    positions: Integers
    splits: Codes
    has_mask: Flags
    labeled: Flags
    taken: Flags


@dataclass(frozen=True)
class ToLabel:
    """Held-out images that are to be labeled.

    Attributes:
        splits: uint8 [N], afterwards.
        rows: the images to label, in order.
        units: groups or blocks that were drawn.
    """

    splits: Codes
    rows: npt.NDArray[np.int64]
    units: int


def plan_splits(
    config: SplitsConfig,
    images: Images,
    *,
    versions: Mapping[HeldOut, int],
    enough: Callable[[Flags], bool],
) -> Codes:
    """Draw the images of the next version of each split that is a `fraction`.

    Whole groups or blocks are drawn, among those that have a mask and that no model may have learned from: as
    many as the fraction says, and more where so many are not enough. At least as many with a mask or a label
    stay for training as are held out in all, unless the fraction itself leaves fewer. A split that would
    not be enough is not drawn; one that is enough grows by a quarter or more, so that versions stay few.

    Args:
        versions: of each split so far; 0 before the first.
        enough: whether these images with masks, bool [N], are enough for a split.

    Returns:
        uint8 [N], the splits afterwards.

    Raises:
        ConfigError: a list or folder names no image, groups are to be drawn and there is only one, or nothing
            would be left to the pool.
    """
    for name, code in ORDER:
        spec = getattr(config, name)
        if spec.fraction is None and not (images.splits == code).any():
            raise ConfigError(
                f"`splits.{name}` names no image of the project.", "Correct its `list` or its `folder`."
            )
    for name, _ in ORDER:
        if getattr(config, name).fraction is not None:
            splits = _draw(config, name, images, version=versions[name], enough=enough)
            images = replace(images, splits=splits)
    if len(images.splits) and not (images.splits == POOL).any():
        raise ConfigError(
            "`splits` holds every image out: nothing is left to select from.",
            "Lower `fraction`, use shorter blocks with `by: block`, or name fewer images.",
        )
    return images.splits


def _draw(
    config: SplitsConfig, name: HeldOut, images: Images, *, version: int, enough: Callable[[Flags], bool]
) -> Codes:
    """The splits [N] after one of them was drawn; unchanged where nothing is drawn."""
    spec: HeldOutSplit = getattr(config, name)
    code = dict(ORDER)[name]
    unit, usable = _usable(spec, images)
    count = len(usable)
    if spec.by == "group" and count == 1:
        raise _one_group(name)
    with_mask = _any(unit, images.has_mask, count)
    mine = int(_any(unit, images.has_mask & (images.splits == code), count).sum())
    held = int(_any(unit, images.has_mask & np.isin(images.splits, (TEST, CALIBRATION)), count).sum())
    known = int((with_mask | _any(unit, images.labeled, count)).sum())
    candidates = np.flatnonzero(usable & _any(unit, images.has_mask & (images.splits == POOL), count))
    least = max(1, round((spec.fraction or 0.0) * int(with_mask.sum()))) - mine
    most = min(max(least, known // 2 - held), len(candidates), int(usable.sum()) - 1)
    salt = [config.seed, ORDER.index((name, code)), *([version] if version else [])]
    generator = np.random.default_rng(salt)
    orders = [generator.permutation(candidates) for _ in range(DRAWS)]
    already = images.has_mask & (images.splits == code)

    def drawn(order: Integers, size: int) -> Flags:
        return np.isin(unit, order[:size]) & (images.splits == POOL)

    def satisfied(order: Integers, size: int) -> bool:
        return enough(already | (drawn(order, size) & images.has_mask))

    if version and enough(already) and 4 * least < max(4, mine):
        return images.splits
    least, best = max(1, least), None
    for order in orders if least <= most else []:
        if satisfied(order, most):
            size = _smallest(lambda size, order=order: satisfied(order, size), least, most)
            if best is None or size < best[0]:
                best = size, order
            if size == least:
                break
    return images.splits if best is None else _hold(spec, images, drawn(best[1], best[0]), code=code)


def draw_to_label(
    config: SplitsConfig, name: HeldOut, images: Images, *, lacking: Flags, wanted: int, turn: int
) -> ToLabel:
    """Hold out images that have no mask yet, and choose those to be labeled, at random.

    Whole groups or blocks are drawn, among those that no model may have learned from: one for each image that
    is wanted, but no more than half of all. One image of each is chosen, then a second one, and so on. Images
    of the split that still lack a mask follow. Where a list or a folder names the split, only these.

    Args:
        lacking: bool [N], the images that may be labeled: they have no mask, and are in no queue.
        wanted: images to label.
        turn: of this draw for the split, from 0 on.

    Raises:
        ConfigError: groups are to be drawn, and there is only one.
    """
    spec: HeldOutSplit = getattr(config, name)
    code = dict(ORDER)[name]
    generator = np.random.default_rng([config.seed, len(ORDER) + ORDER.index((name, code)), turn])
    splits, unit = images.splits, images.groups
    units = 0
    if spec.fraction is not None:
        unit, usable = _usable(spec, images)
        if spec.by == "group" and len(usable) == 1:
            raise _one_group(name)
        candidates = np.flatnonzero(usable & _any(unit, lacking & (images.splits == POOL), len(usable)))
        held = int(_any(unit, np.isin(images.splits, (TEST, CALIBRATION)), len(usable)).sum())
        units = max(0, min(wanted, len(usable) // 2 - held, len(candidates), int(usable.sum()) - 1))
        drawn = np.isin(unit, generator.permutation(candidates)[:units]) & (images.splits == POOL)
        splits = _hold(spec, images, drawn, code=code)
    rows = generator.permutation(np.flatnonzero(lacking & (splits == code)))
    new = images.splits[rows] != code
    turns = np.empty(len(rows), dtype=np.int64)
    order = np.argsort(unit[rows], kind="stable")
    turns[order] = _rank_in_group(unit[rows][order])
    return ToLabel(splits, rows[np.lexsort((turns, ~new))][:wanted], units)


def _one_group(name: str) -> ConfigError:
    return ConfigError(
        f"`splits.{name}` draws whole groups, but all images are in one group.",
        "Set `by: block` to hold out blocks of neighbours, or name groups with `data.group_regex`.",
    )


def _smallest(satisfied: Callable[[int], bool], least: int, most: int) -> int:
    """The smallest size that is satisfied, or `most`, if larger ones are satisfied too."""
    if satisfied(least):
        return least
    return bisect_left(range(least, most), True, key=satisfied) + least


def _usable(spec: HeldOutSplit, images: Images) -> tuple[Integers, Flags]:
    """The group or block [N] of each image, and which of them may be held out: none of its images, nor of
    the images that would guard it, is taken, and no part of it is held out."""
    if spec.by == "group":
        count = int(images.groups.max()) + 1
        return images.groups, ~_any(images.groups, images.taken | (images.splits != POOL), count)
    numbers = blocks(groups=images.groups, positions=images.positions, size=spec.block)
    count = int(numbers.max()) + 1
    held = _any(numbers, np.isin(images.splits, (TEST, CALIBRATION)), count)
    free = np.bincount(numbers, weights=images.splits == POOL, minlength=count)
    near = images.taken.copy()
    order = np.lexsort((images.positions, images.groups))
    for here, there in _neighbours(images.groups[order], distance=spec.guard):
        near[order[here[images.taken[order[there]]]]] = True
    return numbers, ~held & (free * 2 >= np.bincount(numbers, minlength=count)) & ~_any(numbers, near, count)


def _hold(spec: HeldOutSplit, images: Images, drawn: Flags, *, code: int) -> Codes:
    """The splits with the drawn images held out, and guard images on both sides of each run of blocks."""
    splits = images.splits.copy()
    splits[drawn] = code
    if spec.by == "block":
        order = np.lexsort((images.positions, images.groups))
        for rows in _neighbours(images.groups[order], distance=spec.guard):
            here, there = order[rows[0]], order[rows[1]]
            splits[here[drawn[there] & (splits[here] == POOL)]] = GUARD
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


def _any(units: Integers, flags: Flags, count: int) -> Flags:
    """Whether any image of each group or block is flagged: [count]."""
    return np.bincount(units, weights=flags, minlength=count) > 0
