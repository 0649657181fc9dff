"""Out-of-distribution inputs by construction, and how well each measure separates them from real images.

Legend: B batch, K image channels, h w size of the maps, M measures, E measure bins, b independent units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config import SAMPLED_MEASURES, Measure, Sampler
from pipeline.data.large_images import chosen, window
from pipeline.evaluation.bootstrap import BlockBootstrap
from pipeline.evaluation.detection import separation
from pipeline.evaluation.gate import NoveltyRow
from pipeline.evaluation.measure_bins import MEASURE_BINS, MeasureBins
from pipeline.evaluation.units import join
from pipeline.studies.corruptions import noise, shuffle_patches
from pipeline.studies.held_out import LabeledBatch
from pipeline.uncertainty.measures import MEASURES
from pipeline.uncertainty.served_model import SampledModel

SHUFFLED = 8
"""Patches along a side: objects larger than an eighth of the image are cut."""
CONSTRUCTED = ("shuffled_patches", "noise")


def measures_of(sampler: Sampler, *, num_classes: int) -> tuple[Measure, ...]:
    """The measures of a sampler that `measure_maps` gives."""
    absent = set[Measure]() if sampler != "none" else set(SAMPLED_MEASURES)
    if num_classes == 2:
        absent.add("max_logit_norm")
    return tuple(name for name in MEASURES if name not in absent)


class ConstructedInputs:
    """Out-of-distribution inputs made from held-out images, and how well each measure separates the two.

    Args:
        measures: of each sampler of the model.
        bins: of each measure, by sampler; filled before the first image is added.
        chosen: ids of the images that the inputs are made from.
    """

    def __init__(
        self,
        model: SampledModel,
        measures: Mapping[Sampler, Sequence[Measure]],
        *,
        bins: Mapping[Sampler, Mapping[str, MeasureBins]],
        chosen: set[int],
    ) -> None:
        self.model = model
        self.measures = measures
        self.bins = bins
        self.chosen = chosen
        self.sums: dict[tuple[Sampler, int], npt.NDArray[np.float64]] = {}
        """Histograms [3, M, E] by sampler and run: of the images, and of each of `CONSTRUCTED`."""

    def add_known(
        self,
        sampler: Sampler,
        maps: Mapping[Measure, Tensor],
        ids: Sequence[int],
        run_of: Mapping[int, int],
    ) -> None:
        """Add the original images, from maps [B, h, w]."""
        for index, image_id in enumerate(ids):
            if image_id in self.chosen:
                self._add(sampler, run_of[image_id], 0, maps, index)

    def add_novel(self, batch: LabeledBatch, run_of: Mapping[int, int]) -> None:
        """Add the inputs made from the images: shuffled patches, and noise of the same size."""
        normalisation = self.model.first.normalisation
        for index, image_id in enumerate(batch.ids):
            if image_id not in self.chosen:
                continue
            generator = torch.Generator().manual_seed(image_id)
            unit = normalisation.pixels(window(chosen(batch.images, [index])))
            patches = min(SHUFFLED, *unit.shape[-2:])
            novel = torch.cat(
                [
                    shuffle_patches(unit, patches, generator=generator),
                    noise(unit, "uniform", generator=generator),
                ]
            )
            for sampler, _, calibrated in self.model.predict(normalisation.normalise(novel)):
                maps = calibrated.measures()
                for source in range(len(CONSTRUCTED)):
                    self._add(sampler, run_of[image_id], 1 + source, maps, source)

    def rows(
        self, bootstrap_of: Callable[[int], BlockBootstrap], unit_of: Mapping[int, int]
    ) -> list[NoveltyRow]:
        """The AUROC of every sampler, measure and source.

        Args:
            bootstrap_of: of a number of units.
            unit_of: the independent unit of each run.
        """
        rows: list[NoveltyRow] = []
        for sampler, measures in self.measures.items():
            found = {run: sums for (of_sampler, run), sums in self.sums.items() if of_sampler == sampler}
            if not found:
                continue
            _, unit = np.unique([unit_of[run] for run in found], return_inverse=True)
            sums = join(np.stack(list(found.values())), unit)
            bootstrap = bootstrap_of(len(sums))
            for index, measure in enumerate(measures):
                for row, source in enumerate(CONSTRUCTED, start=1):
                    value = separation(sums[:, 0, index], sums[:, row, index], bootstrap=bootstrap)
                    rows.append(NoveltyRow(sampler, measure, source, value))
        return rows

    def _add(self, sampler: Sampler, run: int, source: int, maps: Mapping[Measure, Tensor], row: int) -> None:
        measures = self.measures[sampler]
        shape = (1 + len(CONSTRUCTED), len(measures), MEASURE_BINS)
        sums = self.sums.setdefault((sampler, run), np.zeros(shape))
        for index, name in enumerate(measures):
            column = self.bins[sampler][name].index(maps[name][row].flatten())
            sums[source, index] += torch.bincount(column, minlength=MEASURE_BINS).cpu().numpy()
