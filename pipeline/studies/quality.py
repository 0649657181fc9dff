"""Quality of the uncertainty with every sampler and measure of a model, in sums over held-out images.

Legend: C classes, M measures, H W image size, h w size of the maps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config import IGNORE, Measure, Sampler
from pipeline.data.bands import bands
from pipeline.data.image_info import ImageRef
from pipeline.data.large_images import LARGE
from pipeline.data.loading import Unreadable
from pipeline.data.project import Project
from pipeline.errors import DataError
from pipeline.evaluation.bootstrap import BlockBootstrap
from pipeline.evaluation.detection import PATCH
from pipeline.evaluation.frequency import fit_groups, frequency_test
from pipeline.evaluation.gate import decide_gate, gate_row, novelty_row, novelty_rows
from pipeline.evaluation.measure_bins import MeasureBins
from pipeline.evaluation.parts import part_names
from pipeline.evaluation.quality import MOST_REGIONS, LabeledPixels, Quality, RegionSums, most_runs
from pipeline.evaluation.quality_rows import detection_rows, frequency_row, region_rows, reliability_rows
from pipeline.evaluation.reliability import reliability_estimates
from pipeline.evaluation.statistics import wrong_by_measure
from pipeline.progress import CountedParts, Progress, silent
from pipeline.studies.constructed import ConstructedInputs, measures_of
from pipeline.studies.held_out import (
    HeldOut,
    HeldOutImages,
    LabeledBatch,
    choose_bins,
    concatenated,
    spread,
    thinned,
)
from pipeline.studies.image_regions import ImageRegions
from pipeline.uncertainty.measures import predicted_class
from pipeline.uncertainty.predictor import Prediction
from pipeline.uncertainty.served_model import SampledModel

T = TypeVar("T")

SEED = 0
"""Seed of the bootstrap, the shuffles and the noise, so that all models get the same inputs."""
NOVELTY_IMAGES = 30
"""Images that out-of-distribution inputs are made from, spread over the runs."""
GROUPING_PIXELS = 2000
"""Pixels of each image for the groups of the frequency test."""


class QualityStudy:
    """One pass over held-out images, and its sums.

    Args:
        held_out: images with masks.
        others: other images; their predictions determine the groups of the frequency test.
    """

    def __init__(
        self, project: Project, model: SampledModel, held_out: Sequence[HeldOut], others: Sequence[ImageRef]
    ) -> None:
        self.config = project.config
        self.model = model
        self.others = others
        self.measures: dict[Sampler, tuple[Measure, ...]] = {
            sampler: measures_of(sampler, num_classes=self.config.data.num_classes)
            for sampler in model.samplers
        }
        self.images = HeldOutImages(
            project,
            held_out,
            most_runs=most_runs(
                measures=sum(map(len, self.measures.values())), num_classes=self.config.data.num_classes
            ),
        )
        self.regions = ImageRegions(project)
        self.used: Counter[int] = Counter()
        """The number of usable images of each run."""
        self.qualities: dict[Sampler, Quality] = {}
        self.bins: dict[Sampler, dict[str, MeasureBins]] = {}
        self.constructed = ConstructedInputs(
            model,
            self.measures,
            bins=self.bins,
            chosen=_spread_out(self.images.run_of, NOVELTY_IMAGES),
        )

    def run(self, progress: Progress) -> int:
        """Read every image (a few of them twice, to choose the bins), and return how many could be used."""
        self.bins |= choose_bins(self.images, self.model.first, self._measured, progress)
        centroids = self._centroids(CountedParts(progress, "Grouping predictions", len(self.others)))
        for sampler, measure_bins in self.bins.items():
            self.qualities[sampler] = Quality(
                measure_bins=measure_bins,
                num_classes=self.config.data.num_classes,
                runs=len(self.images.runs),
                bins=self.config.evaluation.bins,
                centroids=centroids.get(sampler),
            )
        for batch in self.images.read(self.model.first, title="Assessing images", progress=progress):
            self._add(batch)
        return self.used.total()

    def document(
        self, split: str, novelty: Mapping[str, Any] | None, progress: Progress = silent
    ) -> dict[str, Any]:
        """All numbers with their intervals, as stored JSON.

        Args:
            split: of the images.
            novelty: the stored document of the model's novelty study.
        """
        used = sorted(self.used)
        first = next(iter(self.qualities.values()))
        unit = self.images.runs.units(first.residuals(used), used)
        unit_of = dict(zip(used, unit.tolist(), strict=True))
        count = int(unit.max()) + 1
        bootstrap = self._bootstrap(count)
        parts = part_names(self.config.data.class_names)
        detection: list[dict[str, Any]] = []
        regions: list[dict[str, Any]] = []
        reliability: list[dict[str, Any]] = []
        frequency: list[dict[str, Any]] = []
        resampled = CountedParts(progress, "Resampling", sum(map(_parts_of, self.qualities.values())))

        def each(found: Iterable[tuple[str, T]]) -> dict[str, T]:
            by_name: dict[str, T] = {}
            for name, values in found:
                by_name[name] = values
                resampled.done()
            return by_name

        for sampler, quality in self.qualities.items():
            quality.join(unit_of)
            detection += detection_rows(sampler, each(quality.detection(bootstrap)), parts)
            regions += region_rows(sampler, each(quality.rank_correlations(bootstrap)))
            for calibrated, tables in zip((False, True), quality.reliability, strict=True):
                found = reliability_estimates(tables, bootstrap=bootstrap)
                reliability += reliability_rows(sampler, found, parts, calibrated=calibrated)
                resampled.done()
            if quality.centroids is not None:
                groups = frequency_test(quality.frequency, bootstrap=bootstrap)
                frequency.append(frequency_row(sampler, groups))
        constructed = {
            "novelty": [novelty_row(row) for row in self.constructed.rows(self._bootstrap, unit_of)]
        }
        aurocs = novelty_rows(constructed, novelty)
        gate = decide_gate(aurocs, sampler=self._gated_sampler(), threshold=self.config.evaluation.gate)
        return {
            "split": split,
            "images": self.used.total(),
            "blocks": count,
            "confidence": self.config.evaluation.confidence,
            "boundary_pixels": self.config.evaluation.boundary,
            "detection": detection,
            "regions": regions,
            "reliability": reliability,
            "frequency": frequency,
            "novelty": [novelty_row(row) for row in aurocs],
            "gate": gate_row(gate),
        }

    def _add(self, batch: LabeledBatch) -> None:
        device = self.model.device
        labels = batch.label.to(device)
        rows: dict[int, dict[str, Tensor]] = {}
        for index, image_id in enumerate(batch.ids):
            item = self.images.by_id[image_id]
            try:
                found = self.regions.of_image(item)
            except DataError as error:
                self.images.fail(item.ref.path, str(error))
                continue
            rows[index] = {kind: torch.from_numpy(of_kind) for kind, of_kind in found.items()}
            self.used[self.images.run_of[image_id]] += 1
        height, width = batch.size
        values = 3 * self.config.data.num_classes + max(map(len, self.measures.values()))
        places = list(bands(height, width * values, multiple=PATCH))
        known: dict[tuple[int, int], LabeledPixels] = {}
        for sampler, plain, calibrated in self.model.predict(batch.images, batch.progress):
            maps = calibrated.measures()
            stacked = torch.stack([maps[name] for name in self.measures[sampler]], dim=1)
            wanted = [stacked, calibrated.probability, plain.probability]
            if sampler != "none":
                wanted.append(calibrated.deterministic_probability)
            for index, of_image in rows.items():
                run = self.images.run_of[batch.ids[index]]
                kinds = {**of_image, "segment": self._segments(calibrated, batch.size, index)}
                sums = {kind: RegionSums(int(row_HW.max()) + 1) for kind, row_HW in kinds.items()}
                for part, (values_MhW, probability, uncalibrated, *others) in calibrated.bands_of(
                    wanted, batch.size, row=index, among=places
                ):
                    pixels = known.get((index, part.start)) or LabeledPixels.of(
                        labels[index],
                        part,
                        num_classes=self.config.data.num_classes,
                        boundary=self.config.evaluation.boundary,
                    )
                    if height * width < LARGE:  # the same for each sampler
                        known[index, part.start] = pixels
                    predicted = predicted_class(probability)
                    deterministic = predicted_class(others[0]) if others else predicted
                    measures: dict[str, Tensor] = dict(zip(self.measures[sampler], values_MhW, strict=True))
                    self.qualities[sampler].add(
                        run,
                        pixels,
                        measures=measures,
                        probability_CHW=probability,
                        uncalibrated_CHW=uncalibrated,
                        deterministic_HW=deterministic,
                    )
                    label = labels[index, part]
                    wrong = wrong_by_measure(measures, predicted != label, deterministic != label)
                    for kind, row_HW in kinds.items():
                        sums[kind].add(row_HW[part].to(device), measures, wrong, pixels.valid)
                for kind, of_kind in sums.items():
                    table = of_kind.table(
                        most=max(1, MOST_REGIONS // len(self.images)),
                        generator=np.random.default_rng([SEED, batch.ids[index]]),
                    )
                    self.qualities[sampler].add_regions(run, kind, table)
            self.constructed.add_known(sampler, maps, batch.ids, self.images.run_of)
        self.constructed.add_novel(batch, self.images.run_of)

    def _segments(self, prediction: Prediction, size: tuple[int, int], row: int) -> Tensor:
        """The row of each pixel's segment [H, W], of the predicted mask of image `row` of the batch."""
        parts = prediction.bands_of([prediction.probability], size, row=row)
        predicted = [predicted_class(probability).short().cpu().numpy() for _, (probability,) in parts]
        return torch.from_numpy(self.regions.of_prediction(np.concatenate(predicted)))

    def _measured(self, batch: LabeledBatch) -> Iterator[tuple[Sampler, dict[str, Tensor], Tensor]]:
        """The measures of the labeled pixels of each image with each sampler, of a large image of some, and
        which of the pixels are wrong."""
        labels, every = batch.label.to(self.model.device), thinned(batch.size)
        for sampler, _, calibrated in self.model.predict(batch.images, batch.progress):
            maps = calibrated.measures()
            stacked = torch.stack([maps[name] for name in self.measures[sampler]], dim=1)
            for row, label_HW in enumerate(labels):
                found: list[tuple[dict[str, Tensor], Tensor]] = []
                for part, (values_MhW, probability) in calibrated.bands_of(
                    [stacked, calibrated.probability], batch.size, row=row
                ):
                    label_hW = label_HW[part]
                    index = (label_hW != IGNORE).flatten().nonzero()[::every, 0]
                    values_MN = values_MhW.flatten(1)[:, index]
                    wrong_hW = predicted_class(probability) != label_hW
                    found.append(
                        (dict(zip(self.measures[sampler], values_MN, strict=True)), wrong_hW.flatten()[index])
                    )
                yield sampler, *concatenated(found)

    def _centroids(self, grouped: CountedParts) -> dict[Sampler, Tensor]:
        """The groups' centroids by sampler, from predictions on the other images; empty without these."""
        drawn: dict[Sampler, list[npt.NDArray[np.float64]]] = {}
        for batch in self.model.first.batches(self.others):
            if isinstance(batch, Unreadable):
                continue
            for sampler, _, calibrated in self.model.predict(batch.images):
                for image_id, probability_Chw in zip(batch.ids, calibrated.probability, strict=True):
                    vectors = probability_Chw.flatten(1).T.double().cpu().numpy()
                    generator = np.random.default_rng([SEED, image_id])
                    rows = generator.permutation(len(vectors))[:GROUPING_PIXELS]
                    drawn.setdefault(sampler, []).append(vectors[rows])
            grouped.done(len(batch.ids))
        return {
            sampler: torch.from_numpy(fit_groups(np.concatenate(vectors), seed=SEED))
            .float()
            .to(self.model.device)
            for sampler, vectors in drawn.items()
        }

    def _bootstrap(self, count: int) -> BlockBootstrap:
        return BlockBootstrap.draw(count, self.config.evaluation, seed=SEED)

    def _gated_sampler(self) -> Sampler:
        """The sampler of the scores, or else the first sampler with mutual information."""
        sampled: list[Sampler] = [sampler for sampler in self.measures if sampler != "none"]
        scoring = self.config.scoring.sampler
        return scoring if scoring in sampled or not sampled else sampled[0]


def _parts_of(quality: Quality) -> int:
    """What is resampled one by one: each measure, each kind of region, and both reliabilities."""
    return len(quality.measures) + len(quality.regions) + 2


def _spread_out(run_of: Mapping[int, int], most: int) -> set[int]:
    """At most `most` images, evenly spaced along the runs."""
    ordered = sorted(run_of, key=lambda image_id: (run_of[image_id], image_id))
    return {ordered[index] for index in spread(len(ordered), most)}
