"""Candidates: the regions, or whole images, that a queue is chosen from.

Legend: N candidates (regions, or whole images), M images; a box is (x, y, w, h) in image pixels, and an
outline says which pixels of the box belong to the region.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

NOT_PREDICTED = -1
"""The predicted class of a candidate that no model has scored, and its stratum."""


@dataclass(frozen=True)
class Candidates:
    """Columns of candidates, ordered by image, and of their images: the pool, or a block of it.

    `image` [N] is the row of the candidate's image, ascending. `score` [N] is the measure that the strategy
    ranks by, not negative and larger for more uncertain; None for a strategy that looks at no measure.
    """

    image_id: npt.NDArray[np.int64]
    """[M]"""
    group: npt.NDArray[np.int32]
    """[M]: the image's sequence, as an index."""
    position: npt.NDArray[np.int64]
    """[M]: the image's position in its sequence."""
    regions: npt.NDArray[np.int32]
    """[M]: regions of the image, candidates or not."""
    image: npt.NDArray[np.int64]
    region_index: npt.NDArray[np.int32]
    box: npt.NDArray[np.int32]
    """[N, 4]"""
    predicted_class: npt.NDArray[np.int16]
    """[N]: an index, or `NOT_PREDICTED`: then the shares and the impurity are 0."""
    class_share: npt.NDArray[np.float32]
    """[N]: share of the predicted class in the box, 0 to 1."""
    stratum: npt.NDArray[np.int16]
    """[N]: the class that the candidate counts for where a budget is split over classes; see
    `pipeline.uncertainty.reduction.salient_class`."""
    stratum_share: npt.NDArray[np.float32]
    """[N]: the share of this class in the box."""
    impurity: npt.NDArray[np.float32]
    """[N]: entropy of the predicted-class histogram / ln C."""
    score: npt.NDArray[np.float32] | None = None
    expected_entropy: npt.NDArray[np.float32] | None = None
    """[N]; None, as `mutual_information`, for scores without samples."""
    mutual_information: npt.NDArray[np.float32] | None = None
    border: npt.NDArray[np.float32] | None = None
    """[N]: length of the predicted borders, in image pixels; NaN where it was not measured, None without
    scores."""
    pixels: npt.NDArray[np.int64] | None = None
    """[N]; None, as `outline`, where every candidate fills its box."""
    outline: npt.NDArray[np.object_] | None = None
    """[N]: outlines, each a text, or None where a candidate fills its box."""

    @property
    def owner(self) -> npt.NDArray[np.int64]:
        """[N]: the id of each candidate's image."""
        return self.image_id[self.image]

    def __len__(self) -> int:
        return len(self.image)

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """[M+1]: image m owns the candidates from `starts[m]` up to `starts[m + 1]`."""
        return np.searchsorted(self.image, np.arange(len(self.image_id) + 1))

    def where(self, keep: npt.NDArray[np.bool_]) -> Candidates:
        """The candidates that a mask [N] selects; every image stays."""
        return replace(self, **{name: column[keep] for name, column in self._columns(_OF_CANDIDATES)})

    def only(self, rows: npt.NDArray[np.int64]) -> Candidates:
        """The candidates `rows`, in this order, and their images. `starts` needs rising rows."""
        images, image = np.unique(self.image[rows], return_inverse=True)
        columns = {name: column[rows] for name, column in self._columns(_OF_CANDIDATES)}
        columns |= {name: column[images] for name, column in self._columns(_OF_IMAGES)}
        return replace(self, **(columns | {"image": image}))

    @staticmethod
    def joined(blocks: Sequence[Candidates]) -> Candidates:
        """Blocks, one after the other, as one; no two of them share an image."""
        first = blocks[0]
        columns = {
            name: np.concatenate([getattr(block, name) for block in blocks])
            for name, _ in first._columns(_OF_CANDIDATES + _OF_IMAGES)
        }
        offsets = np.cumsum([0, *(len(block.image_id) for block in blocks[:-1])])
        images = [block.image + offset for block, offset in zip(blocks, offsets.tolist(), strict=True)]
        return replace(first, **(columns | {"image": np.concatenate(images)}))

    def _columns(self, names: Sequence[str]) -> list[tuple[str, npt.NDArray[Any]]]:
        return [(name, column) for name in names if (column := getattr(self, name)) is not None]


_OF_IMAGES = ("image_id", "group", "position", "regions")
_OF_CANDIDATES = tuple(field.name for field in fields(Candidates) if field.name not in _OF_IMAGES)

Reading = Callable[[], Iterable[Candidates]]
"""Reads the pool from its start: blocks by ascending image id, each image whole in one block, and the same
candidates every time."""
