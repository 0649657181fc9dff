"""How far predictions and masks overlap: the sums that mIoU is made of, which are stored with an evaluation.

Legend: r runs of neighbouring images, C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

PARTS = ("true_positive", "true", "predicted")
"""The sums of an overlap, in the order in which they are stacked."""


@dataclass(frozen=True)
class Overlap:
    """Sums for mIoU [r, C]: pixels of each class in both, in the mask, and in the prediction.

    Attributes:
        fingerprint: of the images and their runs; overlaps with equal fingerprints can be paired.
        groups: the group of each run.
        least: runs in a block at least.
    """

    fingerprint: str
    groups: tuple[str, ...]
    least: int
    true_positive: Array
    true: Array
    predicted: Array

    @classmethod
    def of(
        cls,
        confusion: Array,
        *,
        image_ids: Sequence[int],
        image_runs: Sequence[int],
        groups: Sequence[str],
        least: int,
    ) -> Overlap:
        """The overlap of r runs made of these images, from their confusion matrices [r, C, C]."""
        images = sorted(zip(image_ids, image_runs, strict=True))
        return cls(
            fingerprint=hashlib.sha256(repr((images, tuple(groups), least)).encode()).hexdigest(),
            groups=tuple(groups),
            least=least,
            true_positive=np.diagonal(confusion, axis1=1, axis2=2),
            true=confusion.sum(axis=2),
            predicted=confusion.sum(axis=1),
        )

    @property
    def mean_iou(self) -> float:
        """mIoU over the classes that the masks hold; NaN where they hold none."""
        sums = (getattr(self, name).sum(axis=0) for name in PARTS)
        return float(mean_defined(intersection_over_union(*sums)))

    def document(self) -> dict[str, Any]:
        """The overlap as JSON."""
        parts = {name: getattr(self, name).astype(int).tolist() for name in PARTS}
        return {
            "fingerprint": self.fingerprint,
            "groups": list(self.groups),
            "least": self.least,
            **parts,
        }

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Overlap:
        parts = {name: np.array(document[name], dtype=np.float64) for name in PARTS}
        return cls(document["fingerprint"], tuple(document["groups"]), document["least"], **parts)


def intersection_over_union(true_positive: Array, true: Array, predicted: Array) -> Array:
    """IoU of each class; NaN for a class that the masks do not hold.

    A pixel that is predicted as such a class counts all the same: the IoU of its true class lacks it. With an
    IoU of 0, one such pixel would cost a model a whole class.
    """
    union = true + predicted - true_positive
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(true > 0, true_positive / union, np.nan)


def mean_defined(values: Array) -> Array:
    """Mean over the last axis of the defined values; NaN where none is defined."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=-1)
    total = np.where(defined, values, 0.0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
