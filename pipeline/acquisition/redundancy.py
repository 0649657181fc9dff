"""Redundancy control: the candidates that an accepted one excludes.

Legend: N candidates, M images, F features. In this order: the cap of an image, regions that share an edge,
images of one sequence that are too close, regions that look nearly the same. The last are not excluded: they
come after all others. Only accepted candidates are looped over, and where regions have outlines, the regions
whose boxes touch theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.acquisition.candidates import Candidates
from pipeline.config import SelectionConfig
from pipeline.regions.outlines import decode_outline

CHUNK = 1024


@dataclass(frozen=True)
class Similarity:
    """What candidates look like.

    Attributes:
        features: [N, F] rows of length 1; a row of zeros is unknown, and comes last.
        limit: the cosine similarity from which on two candidates count as nearly the same.
    """

    features: npt.NDArray[np.float16]
    limit: float


class Occupancy:
    """Which candidates are still open while a queue fills.

    Args:
        candidates: what may be accepted.
        config: `per_image_cap`, `no_touching` and `min_gap` are read.
        similarity: of the candidates; None where they are not compared.
    """

    def __init__(
        self, candidates: Candidates, config: SelectionConfig, similarity: Similarity | None = None
    ) -> None:
        self._candidates = candidates
        self._no_touching = config.no_touching
        self._min_gap = config.min_gap
        self._caps = image_caps(candidates.regions, config.per_image_cap)
        self._accepted = np.zeros(len(candidates.image_id), dtype=np.int64)
        self._walk = np.lexsort((candidates.position, candidates.group))
        self._groups = candidates.group[self._walk]
        self._positions = candidates.position[self._walk]
        self._closed = np.zeros(len(candidates), dtype=bool)
        self._features = None if similarity is None else similarity.features.astype(np.float32)
        self._limit = 1.0 if similarity is None else similarity.limit
        self._similar = np.zeros(len(candidates), dtype=bool)
        if self._features is not None:
            self._similar = ~self._features.any(axis=1)

    def accept(self, index: int) -> None:
        """Accept a candidate, and close those that it excludes. The audit may accept a closed one."""
        candidates = self._candidates
        image = int(candidates.image[index])
        own = slice(int(candidates.starts[image]), int(candidates.starts[image + 1]))
        self._closed[index] = True
        if self._features is not None:
            self._similar |= self._features @ self._features[index] >= self._limit
        if self._accepted[image] == 0 and self._min_gap > 0:
            for other in self._neighbours(image):
                self._closed[candidates.starts[other] : candidates.starts[other + 1]] = True
        self._accepted[image] += 1
        if self._accepted[image] >= self._caps[image]:
            self._closed[own] = True
        elif self._no_touching:
            self._closed[own] |= self._touched(index, own)

    def open_candidates(self, order: npt.NDArray[np.int64]) -> Iterator[int]:
        """The candidates of an order, each only if it is still open when it is requested. Those that look
        nearly the same as an accepted one come after the others."""
        for avoided in [[self._closed, self._similar], [self._closed]][self._features is None :]:
            for start in range(0, len(order), CHUNK):
                chunk = order[start : start + CHUNK]
                left = ~np.logical_or.reduce([of[chunk] for of in avoided])
                for index in chunk[left].tolist():
                    if not any(of[index] for of in avoided):
                        yield index

    def _touched(self, index: int, own: slice) -> npt.NDArray[np.bool_]:
        """Which candidates of an image touch the given one: [candidates of the image]."""
        candidates = self._candidates
        box, boxes = candidates.box[index], candidates.box[own]
        near = touching(box, boxes)
        if candidates.outline is not None:
            outlines = candidates.outline[own]
            near[near] = touching_shapes(box, candidates.outline[index], boxes[near], outlines[near])
        return near

    def _neighbours(self, image: int) -> list[int]:
        """Other images of the same sequence, less than `min_gap` positions away."""
        group, here = self._candidates.group[image], int(self._candidates.position[image])
        first, last = np.searchsorted(self._groups, [group, group + 1])
        positions = self._positions[first:last]
        start = first + np.searchsorted(positions, here - self._min_gap, side="right")
        stop = first + np.searchsorted(positions, here + self._min_gap, side="left")
        return [other for other in self._walk[start:stop].tolist() if other != image]


def image_caps(regions: npt.NDArray[np.int32], cap: float | None) -> npt.NDArray[np.int64]:
    """How many regions each image [M] may have in a queue; at least 1.

    Args:
        regions: [M] regions of each image.
        cap: a share below 1, a number from 1 on, or None for no cap.

    >>> image_caps(np.array([48, 2], dtype=np.int32), 0.25).tolist()
    [12, 1]
    """
    if cap is None:
        return np.full(len(regions), np.iinfo(np.int64).max)
    if cap >= 1:
        return np.full(len(regions), math.floor(cap), dtype=np.int64)
    return np.maximum(1, np.floor(cap * regions + 1e-9).astype(np.int64))


def touching(box: npt.NDArray[np.int32], boxes: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Whether a box [4] shares an edge, or area, with each of others [R, 4]. A common corner is no edge.

    >>> cells = np.array([[10, 0, 10, 10], [10, 10, 10, 10], [30, 0, 10, 10]], dtype=np.int32)
    >>> touching(np.array([0, 0, 10, 10], dtype=np.int32), cells).tolist()
    [True, False, False]
    """
    shared = np.minimum(boxes[:, :2] + boxes[:, 2:], box[:2] + box[2:]) - np.maximum(boxes[:, :2], box[:2])
    return np.all(shared >= 0, axis=1) & np.any(shared > 0, axis=1)


def touching_shapes(
    box: npt.NDArray[np.int32],
    outline: str | None,
    boxes: npt.NDArray[np.int32],
    outlines: npt.NDArray[np.object_],
) -> npt.NDArray[np.bool_]:
    """As `touching`, for regions [R] with outlines whose boxes touch: whether two pixels share an edge, or
    are the same.

    >>> corner = np.array(["021O"], dtype=object)  # all but the upper right pixel of 2 × 2
    >>> touching_shapes(np.array([0, 0, 2, 2]), "021O", np.array([[1, -1, 2, 2]]), corner).tolist()
    [True]
    >>> touching_shapes(np.array([0, 0, 2, 2]), "021O", np.array([[2, -1, 2, 2]]), corner).tolist()
    [False]
    """
    x, y, w, h = box.tolist()
    mask = np.pad(decode_outline(outline, width=w, height=h), 1)
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    found = np.zeros(len(boxes), dtype=bool)
    for index, ((ox, oy, ow, oh), other) in enumerate(zip(boxes.tolist(), outlines.tolist(), strict=True)):
        left, right = max(x - 1, ox), min(x + w + 1, ox + ow)
        top, bottom = max(y - 1, oy), min(y + h + 1, oy + oh)
        theirs = decode_outline(other, width=ow, height=oh)[top - oy : bottom - oy, left - ox : right - ox]
        found[index] = (grown[top - y + 1 : bottom - y + 1, left - x + 1 : right - x + 1] & theirs).any()
    return found
