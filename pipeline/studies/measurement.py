"""Segmentation quality and calibration of a model on a locked split, before and after its calibrators.

Legend: B batch, C classes, M measures, H W image size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config import IGNORE, EvaluationConfig, Measure
from pipeline.evaluation.bootstrap import BlockBootstrap
from pipeline.evaluation.estimate import Estimate
from pipeline.evaluation.measure_bins import MeasureBins
from pipeline.evaluation.metrics import Key, calibration_error, curves, linear_bins, residuals, summarise
from pipeline.evaluation.overlap import Overlap
from pipeline.evaluation.statistics import Statistics, image_statistics, merge, stack
from pipeline.progress import CountedParts, Progress
from pipeline.studies.held_out import HeldOutImages, LabeledBatch, choose_bins, concatenated, thinned
from pipeline.uncertainty.measures import predicted_class
from pipeline.uncertainty.served_model import SampledModel

DETECTORS: tuple[Measure, ...] = (
    "least_confidence",
    "margin",
    "entropy",
    "mutual_information",
    "energy",
    "max_logit",
)
"""Measures that are tested as detectors of wrong pixels; mutual information only with samples."""
SEED = 0
"""Seed of every bootstrap, so that all models are compared on the same resamples."""

Variant = tuple[str, bool]
"""Sampler, and whether the calibrators are applied."""

DECIDING: Variant = ("none", True)
"""The evaluation that decides a promotion; a temperature changes no cell's winner, and so hardly the mIoU."""


@dataclass(frozen=True)
class EvaluationRow:
    """One evaluation of a split with a sampler, before or after calibration; `blocks` is the number of
    independent units."""

    split: str
    sampler: str
    calibrated: bool
    images: int
    blocks: int
    metrics: dict[Key, Estimate]
    curves: dict[str, Any] = field(repr=False)


def measure(
    split: str,
    images: HeldOutImages,
    model: SampledModel,
    *,
    config: EvaluationConfig,
    progress: Progress,
) -> list[EvaluationRow]:
    """Rows for each sampler, before and after calibration; none where no image can be used.

    Every image passes through the network once for each sampler; a few do before that, to choose the bins of
    the measures.
    """
    measure_bins = choose_bins(images, model.first, partial(_detected, model), progress)
    sums: dict[Variant, dict[int, Statistics]] = {}
    run_of: dict[int, int] = {}
    for batch in images.read(model.first, title=f"evaluate {split}", progress=progress):
        run_of |= {image_id: images.run_of[image_id] for image_id in batch.ids}
        for image_id, variant, record in _records(model, batch, measure_bins, bins=config.bins):
            by_run, run = sums.setdefault(variant, {}), run_of[image_id]
            by_run[run] = merge(by_run[run], record) if run in by_run else record
    if not sums:
        return []
    used = sorted(set(run_of.values()))
    deciding = stack([sums[DECIDING][run] for run in used])
    unit = images.runs.units(residuals(deciding), used)
    rows: list[EvaluationRow] = []
    resampled = CountedParts(progress, "Resampling", len(sums))
    for variant, by_run in sums.items():
        statistics = joined([by_run[run] for run in used], unit)
        bootstrap = BlockBootstrap.draw(len(statistics.pixels), config, seed=SEED)
        metrics = summarise(statistics, bins=config.bins, bootstrap=bootstrap)
        sampler, calibrated = variant
        if calibrated:
            plain = joined([sums[(sampler, False)][run] for run in used], unit)
            metrics |= _changes(plain, statistics, bins=config.bins, bootstrap=bootstrap)
        shown = curves(statistics, bins=config.bins, bootstrap=bootstrap)
        if variant == DECIDING:
            shown["overlap"] = Overlap.of(
                deciding.confusion,
                image_ids=list(run_of),
                image_runs=list(run_of.values()),
                groups=[images.runs.groups[run] for run in used],
                least=images.runs.least,
            ).document()
        rows.append(EvaluationRow(split, *variant, len(run_of), len(statistics.pixels), metrics, shown))
        resampled.done()
    return rows


def _changes(
    before: Statistics, after: Statistics, *, bins: int, bootstrap: BlockBootstrap
) -> dict[Key, Estimate]:
    """`nll_change` and `ece_change`: what calibration adds to the NLL and to the ECE, with the interval of
    the difference on the same b units."""
    nll = np.stack([before.nll, after.nll, before.pixels], axis=1)
    tables = np.stack([linear_bins(one.reliability, bins) for one in (before, after)], axis=1)
    return {
        ("nll_change", -1): bootstrap.estimate(lambda sums: (sums[:, 1] - sums[:, 0]) / sums[:, 2], nll),
        ("ece_change", -1): bootstrap.estimate(
            lambda sums: calibration_error(sums[:, 1]) - calibration_error(sums[:, 0]), tables
        ),
    }


def joined(records: Sequence[Statistics], unit: npt.NDArray[np.int64]) -> Statistics:
    """The records of r runs, merged by unit [r] and stacked."""
    by_unit: dict[int, Statistics] = {}
    for index, record in zip(unit.tolist(), records, strict=True):
        by_unit[index] = merge(by_unit[index], record) if index in by_unit else record
    return stack([by_unit[index] for index in sorted(by_unit)])


@dataclass(frozen=True)
class _Measured:
    """A band of rows of the prediction of one image, at the image's own size: h rows.

    Attributes:
        row: of the batch.
        variants: that this is the prediction of: two where calibration changes nothing.
        label: [h, W].
        probability: [C, h, W], the mean over samples.
        deterministic: [h, W], the class that is predicted without samples; None with sampler `none`.
        measures: [h, W] by name.
    """

    row: int
    variants: tuple[Variant, ...]
    label: Tensor
    probability: Tensor
    deterministic: Tensor | None
    measures: dict[str, Tensor]


def _records(
    model: SampledModel,
    batch: LabeledBatch,
    measure_bins: Mapping[Variant, Mapping[str, MeasureBins]],
    *,
    bins: int,
) -> Iterator[tuple[int, Variant, Statistics]]:
    """The sums of each image, with each sampler, before and after calibration: of a large image in parts."""
    for item in _measured(model, batch):
        record = image_statistics(
            item.probability,
            item.label,
            item.measures,
            bins=measure_bins[item.variants[0]],
            class_bins=bins,
            deterministic_HW=item.deterministic,
        )
        for variant in item.variants:
            yield batch.ids[item.row], variant, record


def _detected(
    model: SampledModel, batch: LabeledBatch
) -> Iterator[tuple[Variant, dict[str, Tensor], Tensor]]:
    """The measures of the labeled pixels of each image, of a large one of some, and which of the pixels are
    wrong."""
    every = thinned(batch.size)

    def of_band(item: _Measured) -> tuple[dict[str, Tensor], Tensor]:
        index = (item.label != IGNORE).flatten().nonzero()[::every, 0]
        wrong_HW = predicted_class(item.probability) != item.label
        measures = {name: values_HW.flatten()[index] for name, values_HW in item.measures.items()}
        return measures, wrong_HW.flatten()[index]

    for (_, variants), items in groupby(_measured(model, batch), key=lambda item: (item.row, item.variants)):
        found = concatenated(map(of_band, items))
        for variant in variants:
            yield variant, *found


def _measured(model: SampledModel, batch: LabeledBatch) -> Iterator[_Measured]:
    """Each image with each sampler, before and after calibration, band by band."""
    label = batch.label.to(model.device)
    for sampler, plain, calibrated in model.predict(batch.images, batch.progress):
        before, after = (sampler, False), (sampler, True)
        each = [((before,), plain), ((after,), calibrated)]
        if calibrated is plain:
            each = [((before, after), plain)]
        for variants, prediction in each:
            measures = prediction.measures()
            detectors: list[Measure] = [name for name in DETECTORS if name in measures]
            maps_BMHW = torch.stack([measures[name] for name in detectors], dim=1)
            maps = [prediction.probability, maps_BMHW]
            if sampler != "none":
                maps.append(prediction.deterministic_probability)
            for row in range(len(batch.ids)):
                for rows, (probability_ChW, measured_MhW, *others) in prediction.bands_of(
                    maps, batch.size, row=row
                ):
                    yield _Measured(
                        row=row,
                        variants=variants,
                        label=label[row, rows],
                        probability=probability_ChW,
                        deterministic=predicted_class(others[0]) if others else None,
                        measures=dict(zip(detectors, measured_MhW, strict=True)),
                    )
