"""What a queue is chosen from.

Legend: N candidates (regions, or whole images), M images; a box is (x, y, w, h) in image pixels, and an
outline says which of its pixels a region holds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Candidates:
    """Columns of candidates, ordered by image, and of their images.

    `image` [N] is the row of the candidate's image, ascending. `score` [N] is the measure that the strategy
    ranks by, not negative and larger for more uncertain; None for a strategy that looks at no measure.
    """

    image_id: npt.NDArray[np.int64]
    """[M]"""
    group: npt.NDArray[np.int32]
    """[M]: the image's sequence, as an index."""
    position: npt.NDArray[np.int64]
    """[M]: the image's place in its sequence."""
    regions: npt.NDArray[np.int32]
    """[M]: regions of the image, candidates or not."""
    image: npt.NDArray[np.int64]
    region_index: npt.NDArray[np.int32]
    box: npt.NDArray[np.int32]
    """[N, 4]"""
    predicted_class: npt.NDArray[np.int16]
    class_share: npt.NDArray[np.float32]
    """[N]: share of the predicted class in the box, 0 to 1."""
    impurity: npt.NDArray[np.float32]
    """[N]: entropy of the predicted-class histogram / ln C."""
    score: npt.NDArray[np.float32] | None
    expected_entropy: npt.NDArray[np.float32] | None = None
    """[N]; None, as `mutual_information`, for scores without samples."""
    mutual_information: npt.NDArray[np.float32] | None = None
    pixels: npt.NDArray[np.int64] | None = None
    """[N]; None, as `outline`, where every candidate fills its box."""
    outline: npt.NDArray[np.object_] | None = None
    """[N]: outlines, each a text, or None where a candidate fills its box."""

    def __len__(self) -> int:
        return len(self.image)

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """[M+1]: image m owns the candidates from `starts[m]` up to `starts[m + 1]`."""
        return np.searchsorted(self.image, np.arange(len(self.image_id) + 1))

    def where(self, keep: npt.NDArray[np.bool_]) -> Candidates:
        """The candidates of a mask [N]; every image stays."""
        return replace(
            self,
            image=self.image[keep],
            region_index=self.region_index[keep],
            box=self.box[keep],
            predicted_class=self.predicted_class[keep],
            class_share=self.class_share[keep],
            impurity=self.impurity[keep],
            score=None if self.score is None else self.score[keep],
            expected_entropy=None if self.expected_entropy is None else self.expected_entropy[keep],
            mutual_information=None if self.mutual_information is None else self.mutual_information[keep],
            pixels=None if self.pixels is None else self.pixels[keep],
            outline=None if self.outline is None else self.outline[keep],
        )
