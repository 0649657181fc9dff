"""Quality of one sampler's uncertainty on held-out images: sums for each run, which `assess` adds up.

Legend: H W image size, N labeled pixels, C classes, M measures, E measure bins, P stored parts, K reliability
bins, G groups of the frequency test, r runs of neighbouring images, b independent units.

The sums have the same size for ten images and for ten thousand. Only regions are stored singly, because ranks
need them, and at most `MOST_REGIONS` of them.
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
from pipeline.evaluation.detection import (
    Patches,
    detection_estimates,
    error_histograms,
    find_patches,
    patch_sums,
)
from pipeline.evaluation.estimate import Estimate
from pipeline.evaluation.frequency import frequency_sums
from pipeline.evaluation.measure_bins import MEASURE_BINS, MeasureBins
from pipeline.evaluation.parts import Parts, boundary_band
from pipeline.evaluation.ranks import rank_correlation
from pipeline.evaluation.reliability import reliability_table
from pipeline.evaluation.statistics import wrong_by_measure
from pipeline.evaluation.units import join, ratio_residuals

Array = npt.NDArray[np.float64]

MOST_BYTES = 1 << 29
"""Bytes of the sums of all samplers: where there are many classes, runs are longer, to stay below it."""
MOST_REGIONS = 200_000
"""Regions of one kind whose scores are stored; above it, the same number is drawn from each image."""


@dataclass(frozen=True)
class LabeledPixels:
    """The labeled pixels of one image, or of some of its rows, and the parts that they belong to.

    Attributes:
        valid: bool [h, W].
        index: int64 [N], the flat index of each labeled pixel, row by row.
        label: int64 [N].
        parts: by label.
        patches: of PAvPU.
    """

    valid: Tensor
    index: Tensor
    label: Tensor
    parts: Parts
    patches: Patches

    @classmethod
    def of(cls, label_HW: Tensor, rows: slice, *, num_classes: int, boundary: int) -> LabeledPixels:
        """Args:
        label_HW: of the whole image: uint8, class index or 255.
        rows: that are wanted. They begin with a row of patches.
        boundary: width of the boundary band.
        """
        above = min(rows.start, boundary)
        around = label_HW[rows.start - above : rows.stop + boundary]
        label_hW = label_HW[rows]
        at_boundary = boundary_band(around, width=boundary)[above : above + len(label_hW)]
        valid = label_hW != IGNORE
        index = valid.flatten().nonzero()[:, 0]
        label = label_hW[valid].long()
        parts = Parts(label, at_boundary[valid], num_classes)
        patches = find_patches(valid, parts)
        return cls(valid=valid, index=index, label=label, parts=parts, patches=patches)

    def of_maps(self, maps: Tensor) -> Tensor:
        """The labeled pixels [..., N] of maps [..., H, W]."""
        return maps.flatten(-2).index_select(-1, self.index)


@dataclass(frozen=True)
class RegionTable:
    """Regions of one image that are labeled by half or more.

    Attributes:
        scores: [R, M] mean of each measure over the whole region.
        errors: [R, M] share of the labeled pixels that are wrong in the prediction of each measure.
    """

    scores: Array
    errors: Array


class Quality:
    """Sums over the images of r runs.

    Args:
        measure_bins: of the M measures of the sampler, by name.
        num_classes: C.
        runs: r.
        bins: K.
        centroids: float32 [G, C] of the frequency test; None to leave it out.
    """

    def __init__(
        self,
        *,
        measure_bins: Mapping[str, MeasureBins],
        num_classes: int,
        runs: int,
        bins: int,
        centroids: Tensor | None,
    ) -> None:
        parts = 2 + num_classes
        self.measure_bins = measure_bins
        self.measures = tuple(measure_bins)
        self.bins = bins
        self.centroids = centroids
        self.errors = np.zeros((len(self.measures), runs, parts, 2, MEASURE_BINS))
        self.patches = np.zeros((len(self.measures), runs, parts, 2, 2))
        self.lowest = np.full(len(self.measures), np.inf)
        self.highest = np.full(len(self.measures), -np.inf)
        self.reliability = np.zeros((2, runs, parts, bins, 3))
        """Before and after calibration."""
        groups = 0 if centroids is None else len(centroids)
        self.frequency = np.zeros((runs, groups, 2, num_classes))
        self.regions: dict[str, list[tuple[int, RegionTable]]] = {}
        """By kind, each image's run (its unit, after `join`) and regions."""

    def add(
        self,
        run: int,
        pixels: LabeledPixels,
        *,
        measures: Mapping[str, Tensor],
        probability_CHW: Tensor,
        uncalibrated_CHW: Tensor,
        deterministic_HW: Tensor,
    ) -> None:
        """Add one image, or some of its rows.

        Args:
            measures: [H, W] each.
            probability_CHW: calibrated; its argmax is compared with the label.
            uncalibrated_CHW: the same before calibration.
            deterministic_HW: the class that is predicted without samples, for the measures of logits.
        """
        p_CN = pixels.of_maps(probability_CHW)
        wrong = wrong_by_measure(
            self.measures,
            p_CN.max(dim=0).indices != pixels.label,
            pixels.of_maps(deterministic_HW) != pixels.label,
        )
        values = {name: pixels.of_maps(measures[name]) for name in self.measures}
        self.errors[:, run] += error_histograms(values, wrong, pixels.parts, bins=self.measure_bins)
        for index, (name, value_N) in enumerate(values.items()):
            found = patch_sums(value_N, wrong[name], pixels.patches)
            self.patches[index, run] += found.sums
            self.lowest[index] = min(self.lowest[index], found.lowest)
            self.highest[index] = max(self.highest[index], found.highest)
        for row, scores_CN in enumerate((pixels.of_maps(uncalibrated_CHW), p_CN)):
            confidence_N, predicted_N = scores_CN.max(dim=0)
            self.reliability[row, run] += reliability_table(
                confidence_N,
                predicted_N == pixels.label,
                Parts(predicted_N, pixels.parts.boundary, pixels.parts.num_classes),
                bins=self.bins,
            )
        if self.centroids is not None:
            self.frequency[run] += frequency_sums(p_CN, pixels.label, self.centroids)

    def add_regions(self, run: int, kind: str, table: RegionTable) -> None:
        """Add one image's regions of one kind."""
        self.regions.setdefault(kind, []).append((run, table))

    def residuals(self, used: Sequence[int]) -> Array:
        """What each of these runs adds to the error rate and to the calibration gap beyond its share."""
        pixels, confidence, right = self.reliability[1][used][:, :2].sum(axis=(1, 2)).T
        return ratio_residuals(
            np.stack([right, confidence - right], axis=1), np.stack([pixels, pixels], axis=1)
        )

    def join(self, unit_of: Mapping[int, int]) -> None:
        """Join runs to independent units.

        Args:
            unit_of: the unit of each run of which an image could be used; the others hold nothing.
        """
        rows, unit = list(unit_of), np.array(list(unit_of.values()))
        for name, axis in (("errors", 1), ("patches", 1), ("reliability", 1), ("frequency", 0)):
            of_runs = np.moveaxis(getattr(self, name), axis, 0)
            setattr(self, name, np.moveaxis(join(of_runs, unit, rows), 0, axis))
        for regions in self.regions.values():
            regions[:] = [(unit_of[run], table) for run, table in regions]

    def detection(self, bootstrap: BlockBootstrap) -> Iterator[tuple[str, dict[str, list[Estimate]]]]:
        """Each measure with its metrics, an estimate a part (the whole first)."""
        for index, name in enumerate(self.measures):
            yield (
                name,
                detection_estimates(
                    self.errors[index],
                    self.patches[index],
                    tied=self.measure_bins[name].tied,
                    lowest=self.lowest[index],
                    highest=self.highest[index],
                    bootstrap=bootstrap,
                ),
            )

    def rank_correlations(
        self, bootstrap: BlockBootstrap
    ) -> Iterator[tuple[str, tuple[int, dict[str, Estimate]]]]:
        """Each kind of region: how many there were, and Spearman's correlation with their error by
        measure."""
        for kind, regions in self.regions.items():
            errors = np.concatenate([table.errors for _, table in regions])
            scores = np.concatenate([table.scores for _, table in regions])
            block = np.concatenate([np.full(len(table.errors), of_image) for of_image, table in regions])
            by_measure = {
                name: rank_correlation(scores[:, index], errors[:, index], block, bootstrap=bootstrap)
                for index, name in enumerate(self.measures)
            }
            yield kind, (len(errors), by_measure)


def most_runs(*, measures: int, num_classes: int) -> int:
    """Runs for which the sums of `measures`, of all samplers together, stay below `MOST_BYTES`."""
    return max(2, MOST_BYTES // (measures * (2 + num_classes) * 2 * MEASURE_BINS * 8))


class RegionSums:
    """Sums over the pixels of each region of one image, which may be added in bands of rows.

    Args:
        rows: R, the number of regions.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._sums: Tensor | None = None

    def add(
        self,
        row_HW: Tensor,
        measures: Mapping[str, Tensor],
        wrong: Mapping[str, Tensor],
        valid_HW: Tensor,
    ) -> None:
        """Add the image, or some of its rows.

        Args:
            row_HW: row of each pixel's region; −1 where there is none.
            measures: [H, W] each.
            wrong: bool [H, W] for each measure, whether the class that is predicted with it is not the label.
            valid_HW: bool, whether there is a label.
        """
        row = torch.where(row_HW < 0, self._rows, row_HW).long().flatten()

        def sums(values_HW: Tensor) -> Tensor:
            weights = values_HW.flatten().double()
            return torch.bincount(row, weights=weights, minlength=self._rows + 1)[: self._rows]

        errors = {id(flags): sums(flags & valid_HW) for flags in wrong.values()}
        columns = [sums(row_HW >= 0), sums(valid_HW), *map(sums, measures.values())]
        columns += [errors[id(wrong[name])] for name in measures]
        found = torch.stack(columns, dim=1)
        self._sums = found if self._sums is None else self._sums + found

    def table(self, *, most: int, generator: np.random.Generator) -> RegionTable:
        """The regions that are labeled by half or more.

        Args:
            most: regions to keep, drawn at random where there are more.
            generator: for the draw.
        """
        if self._sums is None:
            raise ValueError("Expected the pixels of an image, but none were added.")
        pixels, labeled = self._sums[:, :1], self._sums[:, 1:2]
        means, errors = self._sums[:, 2:].chunk(2, dim=1)
        kept = ((labeled * 2 >= pixels) & (labeled > 0))[:, 0]
        table = RegionTable(
            scores=(means / pixels)[kept].cpu().numpy(), errors=(errors / labeled)[kept].cpu().numpy()
        )
        if len(table.errors) <= most:
            return table
        drawn = generator.choice(len(table.errors), most, replace=False)
        return RegionTable(scores=table.scores[drawn], errors=table.errors[drawn])
