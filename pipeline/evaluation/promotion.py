"""Whether a new model is promoted: by its mIoU against the current model's, on the same resampled blocks.

Legend: b blocks, C classes, R resamples.

Both models are measured on the same images, so the bootstrap draws the same blocks for both: the interval of
their difference does not include how hard the blocks are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.evaluation.bootstrap import BlockBootstrap
from pipeline.evaluation.estimate import Estimate
from pipeline.evaluation.metrics import intersection_over_union, mean_defined
from pipeline.evaluation.statistics import Statistics

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Overlap:
    """Sums for mIoU [b, C]: pixels of each class in both, in the mask, and in the prediction.

    Attributes:
        fingerprint: of the images and their blocks; overlaps with equal fingerprints can be paired.
    """

    fingerprint: str
    true_positive: Array
    true: Array
    predicted: Array

    @classmethod
    def of(cls, statistics: Statistics, *, image_ids: Sequence[int], image_blocks: Sequence[int]) -> Overlap:
        """The overlap of a stack of b blocks made of these images."""
        confusion = statistics.confusion
        return cls(
            fingerprint=hashlib.sha256(
                repr(sorted(zip(image_ids, image_blocks, strict=True))).encode()
            ).hexdigest(),
            true_positive=np.diagonal(confusion, axis1=1, axis2=2),
            true=confusion.sum(axis=2),
            predicted=confusion.sum(axis=1),
        )

    def document(self) -> dict[str, Any]:
        """The overlap as JSON."""
        parts = {name: getattr(self, name).astype(int).tolist() for name in _PARTS}
        return {"fingerprint": self.fingerprint, **parts}

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Overlap:
        parts = {name: np.array(document[name], dtype=np.float64) for name in _PARTS}
        return cls(fingerprint=document["fingerprint"], **parts)


@dataclass(frozen=True)
class Verdict:
    """Whether the new model is promoted, and the difference of mIoU, new − current, that decided it."""

    promoted: bool
    difference: Estimate


def compare(new: Overlap, current: Overlap, *, tolerance: float, bootstrap: BlockBootstrap) -> Verdict:
    """Refuse a model that is worse than the tolerance and than the interval of the difference allow.

    With a single block there is no interval, and the difference itself decides.

    Raises:
        ValueError: the two were not measured on the same blocks.
    """
    if new.fingerprint != current.fingerprint:
        raise ValueError("Expected two models measured on the same images in the same blocks.")

    def difference(sums: Array) -> Array:
        iou = intersection_over_union(*np.moveaxis(sums, 2, 0))
        return np.subtract(*mean_defined(iou).T)

    sums = np.stack([[getattr(one, name) for name in _PARTS] for one in (new, current)])
    found = bootstrap.estimate(difference, np.moveaxis(sums, 2, 0))
    return Verdict(found.highest >= -tolerance, found)


_PARTS = ("true_positive", "true", "predicted")
