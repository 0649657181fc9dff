"""How well the uncertainty of a model detects the pixels of classes that it was trained without.

Legend: C classes, E = 512 bins of a measure, r runs, b independent units, H W image size.

Pixels of the held-out classes are the positives; a larger measure means more likely held out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config import IGNORE, Sampler
from pipeline.evaluation.bootstrap import SHARE, BlockBootstrap
from pipeline.evaluation.detection import Flags, coarse, error_metrics
from pipeline.evaluation.estimate import Estimate
from pipeline.evaluation.measure_bins import MEASURE_BINS, MeasureBins
from pipeline.evaluation.units import join, ratio_residuals

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
    """Histograms of known and of held-out pixels, by run, sampler and measure.

    Args:
        indices: int64, the held-out classes.
        runs: r.
        bins: of each measure, by sampler.
    """

    def __init__(
        self, indices: Tensor, *, runs: int, bins: Mapping[Sampler, Mapping[str, MeasureBins]]
    ) -> None:
        self.indices = indices
        self.runs = runs
        self.bins = bins
        self.sums: dict[tuple[Sampler, str], Array] = {}

    def add(self, sampler: Sampler, measures: Mapping[str, Tensor], label_HW: Tensor, *, run: int) -> None:
        """Count the labeled pixels of one image.

        Args:
            measures: [H, W] uncertainties by name.
            label_HW: class index, or 255; on the same device.
            run: that the image belongs to.
        """
        valid = label_HW != IGNORE
        novel_N = novel_pixels(label_HW[valid], self.indices).long()
        for name, values_HW in measures.items():
            column = novel_N * MEASURE_BINS + self.bins[sampler][name].index(values_HW[valid])
            counts = torch.bincount(column, minlength=2 * MEASURE_BINS).double().cpu().numpy()
            sums = self.sums.setdefault((sampler, name), np.zeros((self.runs, 2, MEASURE_BINS)))
            sums[run] += counts.reshape(2, MEASURE_BINS)

    @property
    def pixels(self) -> int:
        """The number of pixels of held-out classes."""
        return int(next(iter(self.sums.values()))[:, 1].sum()) if self.sums else 0

    def residuals(self) -> Array:
        """What each run adds to the mean bin of the first measure, of known and of novel pixels: [r, 2]."""
        sums = next(iter(self.sums.values()))
        return ratio_residuals(sums @ np.arange(MEASURE_BINS), sums.sum(axis=2))

    def rows(self, unit: npt.NDArray[np.int64], bootstrap: BlockBootstrap) -> Iterator[NoveltyMetric]:
        """AUROC, AUPR and the false positive rate at 95 % true positives, of every sampler and measure.

        Args:
            unit: [r], the independent unit of each run.
            bootstrap: of the units.
        """

        def metrics(sums: Array, tied: Flags) -> Array:
            found = error_metrics(sums, tied=tied)
            return np.stack([found[name] for name in METRICS], axis=-1)

        with np.errstate(divide="ignore", invalid="ignore"):
            for (sampler, measure), of_runs in self.sums.items():
                sums = join(of_runs, unit)
                tied = self.bins[sampler][measure].tied
                values = metrics(sums.sum(axis=0), tied)
                joined, joined_tied = coarse(sums, tied)
                low, high = bootstrap.interval(partial(metrics, tied=joined_tied), joined, within=SHARE)
                for metric, *numbers in zip(METRICS, values, low, high, strict=True):
                    yield NoveltyMetric(sampler, measure, metric, Estimate(*map(float, numbers)))


def novel_pixels(label_N: Tensor, indices: Tensor) -> Tensor:
    """bool [N], whether a pixel's class is held out."""
    return torch.isin(label_N.long(), indices.to(label_N.device))
