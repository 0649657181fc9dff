"""How well the uncertainty of a model detects the pixels of classes that it was trained without.

Legend: C classes, E = 512 measure bins, b blocks, H W image size.

Pixels of the held-out classes are the positives; a larger measure means more likely held out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config import IGNORE
from pipeline.evaluation.bootstrap import BlockBootstrap
from pipeline.evaluation.detection import coarse, error_metrics
from pipeline.evaluation.estimate import Estimate
from pipeline.evaluation.statistics import MEASURE_BINS, measure_bin

Array = npt.NDArray[np.float64]
METRICS = ("auroc", "aupr", "fpr95")


@dataclass(frozen=True)
class NoveltyMetric:
    """How well one measure of one sampler finds the pixels of the held-out classes."""

    sampler: str
    measure: str
    metric: str
    estimate: Estimate


class HeldOutClasses:
    """Histograms of known and of held-out pixels, by block, sampler and measure.

    Args:
        indices: the held-out classes.
        blocks: b.
    """

    def __init__(self, indices: Sequence[int], *, blocks: int) -> None:
        self.indices = torch.tensor(list(indices))
        self.blocks = blocks
        self.sums: dict[tuple[str, str], Array] = {}

    def add(self, sampler: str, measures: Mapping[str, Tensor], label_HW: Tensor, *, block: int) -> None:
        """Count the labeled pixels of one image.

        Args:
            measures: [H, W] uncertainties by name.
            label_HW: class index, or 255; on the same device.
            block: that the image belongs to.
        """
        valid = label_HW != IGNORE
        novel_N = torch.isin(label_HW[valid].long(), self.indices.to(label_HW.device)).long()
        for name, values_HW in measures.items():
            column = novel_N * MEASURE_BINS + measure_bin(name, values_HW[valid])
            counts = torch.bincount(column, minlength=2 * MEASURE_BINS).double().cpu().numpy()
            sums = self.sums.setdefault((sampler, name), np.zeros((self.blocks, 2, MEASURE_BINS)))
            sums[block] += counts.reshape(2, MEASURE_BINS)

    @property
    def pixels(self) -> int:
        """The number of pixels of held-out classes."""
        return int(next(iter(self.sums.values()))[:, 1].sum()) if self.sums else 0

    def rows(self, bootstrap: BlockBootstrap) -> Iterator[NoveltyMetric]:
        """AUROC, AUPR and the false positive rate at 95 % true positives, of every sampler and measure."""

        def metrics(sums: Array) -> Array:
            found = error_metrics(sums)
            return np.stack([found[name] for name in METRICS], axis=-1)

        with np.errstate(divide="ignore", invalid="ignore"):
            for (sampler, measure), sums in self.sums.items():
                values = metrics(sums.sum(axis=0))
                low, high = bootstrap.interval(metrics, coarse(sums))
                for metric, *numbers in zip(METRICS, values, low, high, strict=True):
                    yield NoveltyMetric(sampler, measure, metric, Estimate(*map(float, numbers)))
