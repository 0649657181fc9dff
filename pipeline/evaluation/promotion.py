"""Whether a new model is promoted: by its mIoU against the current model's, on the same resampled units.

Legend: r runs of neighbouring images, C classes, R resamples.

Both models are measured on the same images, so the bootstrap draws the same units for both: the interval of
their difference does not include how hard the units are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import EvaluationConfig
from pipeline.evaluation.bootstrap import BlockBootstrap
from pipeline.evaluation.estimate import Estimate
from pipeline.evaluation.metrics import intersection_over_union, mean_defined
from pipeline.evaluation.statistics import Statistics
from pipeline.evaluation.units import join, ratio_residuals, units

Array = npt.NDArray[np.float64]


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
        statistics: Statistics,
        *,
        image_ids: Sequence[int],
        image_runs: Sequence[int],
        groups: Sequence[str],
        least: int,
    ) -> Overlap:
        """The overlap of a stack of r runs made of these images."""
        confusion = statistics.confusion
        images = sorted(zip(image_ids, image_runs, strict=True))
        return cls(
            fingerprint=hashlib.sha256(repr((images, tuple(groups), least)).encode()).hexdigest(),
            groups=tuple(groups),
            least=least,
            true_positive=np.diagonal(confusion, axis1=1, axis2=2),
            true=confusion.sum(axis=2),
            predicted=confusion.sum(axis=1),
        )

    def document(self) -> dict[str, Any]:
        """The overlap as JSON."""
        parts = {name: getattr(self, name).astype(int).tolist() for name in _PARTS}
        return {
            "fingerprint": self.fingerprint,
            "groups": list(self.groups),
            "least": self.least,
            **parts,
        }

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Overlap:
        parts = {name: np.array(document[name], dtype=np.float64) for name in _PARTS}
        return cls(document["fingerprint"], tuple(document["groups"]), document["least"], **parts)


@dataclass(frozen=True)
class Verdict:
    """Whether the new model is promoted, and the difference of mIoU, new − current, that decided it, with the
    number of independent units behind it."""

    promoted: bool
    difference: Estimate
    units: int


def compare(new: Overlap, current: Overlap, *, config: EvaluationConfig, seed: int) -> Verdict:
    """Refuse a model that is worse than `promote_tolerance` and than the interval of the difference allow.

    The independent units are estimated from what each run adds to the difference. With a single unit there is
    no interval, and the difference itself decides.

    Raises:
        ValueError: the two were not measured on the same images in the same runs.
    """
    if new.fingerprint != current.fingerprint:
        raise ValueError("Expected two models measured on the same images in the same runs.")

    def difference(sums: Array) -> Array:
        iou = intersection_over_union(*np.moveaxis(sums, 2, 0))
        return np.subtract(*mean_defined(iou).T)

    sums = np.moveaxis(np.stack([[getattr(one, name) for name in _PARTS] for one in (new, current)]), 2, 0)
    added = np.subtract(*(_added(one) for one in (new, current)))
    joined = join(sums, units(new.groups, range(len(sums)), added[:, None], least=new.least))
    bootstrap = BlockBootstrap.draw(len(joined), config, seed=seed)
    found = bootstrap.estimate(difference, joined, within=(-1.0, 1.0))
    return Verdict(found.highest >= -config.promote_tolerance, found, len(joined))


def _added(overlap: Overlap) -> Array:
    """What each run [r] adds to the mIoU beyond its share."""
    union = overlap.true + overlap.predicted - overlap.true_positive
    return ratio_residuals(overlap.true_positive, union).mean(axis=1)


_PARTS = ("true_positive", "true", "predicted")
