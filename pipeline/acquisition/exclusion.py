"""Which candidates are queued or labeled already, by the share of their area that is taken.

Legend: N candidates, K taken regions, P pairs of a candidate and a taken region of the same image.
The geometry decides, not the region's index, so that a new cell size, unit or model finds the old labels.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pipeline.regions.outlines import decode_outline, paint_regions

PAIRS_AT_ONCE = 200_000


def taken(
    image: npt.NDArray[np.int64],
    box: npt.NDArray[np.int32],
    taken_image: npt.NDArray[np.int64],
    taken_box: npt.NDArray[np.int64],
    *,
    pixels: npt.NDArray[np.int64] | None = None,
    outline: npt.NDArray[np.object_] | None = None,
    taken_outline: npt.NDArray[np.object_] | None = None,
    share: float = 0.5,
) -> npt.NDArray[np.bool_]:
    """Whether at least `share` of each candidate's area lies under taken regions.

    Boxes decide most cases, as their intersection bounds that of the regions. Outlines are decoded only where
    the boxes do not decide.

    Args:
        image: [N] the image of each candidate, ascending.
        box: [N, 4] candidate boxes.
        taken_image: [K] the image of each taken box, in the same numbering.
        taken_box: [K, 4] taken boxes; where they overlap, a pixel counts once.
        pixels: [N] the candidates' areas; None for the areas of their boxes.
        outline: [N] the candidates' outlines; None, as each of them may be, for whole boxes.
        taken_outline: [K] those of the taken regions.
        share: from 0 (exclusive) to 1.

    Returns:
        [N] booleans.

    >>> cells = np.array([[0, 0, 10, 10], [10, 0, 10, 10]], dtype=np.int32)
    >>> taken(np.zeros(2, np.int64), cells, np.zeros(1, np.int64), np.array([[4, 0, 9, 10]])).tolist()
    [True, False]
    """
    whole = box[:, 2].astype(np.int64) * box[:, 3]
    solid = np.full(len(taken_image), True) if taken_outline is None else taken_outline == None  # noqa: E711
    covered = np.zeros(len(image), dtype=np.int64)
    largest = np.zeros(len(image), dtype=np.int64)
    first = np.searchsorted(image, taken_image, side="left")
    pairs = np.searchsorted(image, taken_image, side="right") - first
    bounds = _chunks(pairs)
    for start, stop in pairwise(bounds):
        candidate, other = _pair_up(first, pairs, start, stop)
        area = _intersection(box[candidate].astype(np.int64), taken_box[other])
        np.add.at(covered, candidate, area)
        np.maximum.at(largest, candidate, np.where(solid[other], area, 0))
    enough = share * (whole if pixels is None else pixels)
    result = largest >= (enough if outline is None else np.where(outline == None, enough, whole))  # noqa: E711
    unsure = np.flatnonzero(~result & (covered >= enough))
    if outline is None and taken_outline is None:
        # the sum may count an overlap of taken boxes twice: only these few need the exact union
        for index in unsure.tolist():
            result[index] = _union(box[index], taken_box[taken_image == image[index]]) >= enough[index]
        return result
    outlines = np.full(len(image), None) if outline is None else outline
    taken_outlines = np.full(len(taken_image), None) if taken_outline is None else taken_outline
    for owner in np.unique(image[unsure]).tolist():
        mine, theirs = unsure[image[unsure] == owner], taken_image == owner
        shared = _shared_pixels(box[mine], outlines[mine], taken_box[theirs], taken_outlines[theirs])
        result[mine] = shared >= enough[mine]
    return result


def _shared_pixels(
    box: npt.NDArray[np.int32],
    outline: npt.NDArray[np.object_],
    taken_box: npt.NDArray[np.int64],
    taken_outline: npt.NDArray[np.object_],
) -> npt.NDArray[np.int64]:
    """Pixels of each region of an image [N] that lie under taken ones."""
    ends = np.concatenate([box[:, :2] + box[:, 2:], taken_box[:, :2] + taken_box[:, 2:]]).max(axis=0)
    under = np.zeros((int(ends[1]), int(ends[0])), dtype=bool)
    paint_regions(under, taken_box, taken_outline.tolist())
    shared = [
        np.count_nonzero(under[y : y + h, x : x + w] & decode_outline(text, width=w, height=h))
        for (x, y, w, h), text in zip(box.tolist(), outline.tolist(), strict=True)
    ]
    return np.array(shared, dtype=np.int64)


def _chunks(pairs: npt.NDArray[np.int64]) -> list[int]:
    """Bounds of runs of taken boxes with about `PAIRS_AT_ONCE` pairs each."""
    if len(pairs) == 0:
        return [0]
    chunk = np.cumsum(pairs) // PAIRS_AT_ONCE
    return [0, *(np.flatnonzero(np.diff(chunk)) + 1).tolist(), len(pairs)]


def _pair_up(
    first: npt.NDArray[np.int64], pairs: npt.NDArray[np.int64], start: int, stop: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Every pair of a taken box from `start` to `stop` and a candidate of its image: two index arrays [P]."""
    count = pairs[start:stop]
    other = np.repeat(np.arange(start, stop), count)
    before = np.cumsum(count) - count
    within = np.arange(len(other)) - np.repeat(before, count)
    return first[other] + within, other


def _intersection(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Area that two arrays of boxes [P, 4] share, pair by pair."""
    low = np.maximum(a[:, :2], b[:, :2])
    high = np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:])
    return np.clip(high - low, 0, None).prod(axis=1)


def _union(box: npt.NDArray[np.int32], others: npt.NDArray[np.int64]) -> int:
    """Area of one box [4] under the union of others [K, 4]."""
    corner, size = box[:2].astype(np.int64), box[2:].astype(np.int64)
    low = np.clip(others[:, :2], corner, corner + size)
    high = np.clip(others[:, :2] + others[:, 2:], corner, corner + size)
    xs = np.unique(np.concatenate([low[:, 0], high[:, 0]]))
    ys = np.unique(np.concatenate([low[:, 1], high[:, 1]]))
    under = np.zeros((len(ys) - 1, len(xs) - 1), dtype=bool)
    for (x0, y0), (x1, y1) in zip(low.tolist(), high.tolist(), strict=True):
        columns = slice(*np.searchsorted(xs, (x0, x1)))
        under[slice(*np.searchsorted(ys, (y0, y1))), columns] = True
    return int((np.diff(ys)[:, None] * np.diff(xs)[None, :])[under].sum())
