"""Segmentation quality and calibration of a model on a locked split, before and after its calibrators.

Legend: B batch, C classes, M measures, H W image size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipeline.config import IGNORE, EvaluationConfig, Measure
from pipeline.evaluation.bootstrap import BlockBootstrap
from pipeline.evaluation.estimate import Estimate
from pipeline.evaluation.measure_bins import MeasureBins
from pipeline.evaluation.metrics import Key, curves, summarise
from pipeline.evaluation.promotion import Overlap
from pipeline.evaluation.statistics import Statistics, image_statistics, merge, stack
from pipeline.progress import Progress
from pipeline.studies.held_out import HeldOutImages, LabeledBatch, choose_bins
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
    """One evaluation of a split with a sampler, before or after calibration."""

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
    measure_bins = choose_bins(images, model.first, partial(_detected, model))
    sums: dict[Variant, dict[int, Statistics]] = {}
    block_of: dict[int, int] = {}
    for batch in images.read(model.first, title=f"evaluate {split}", progress=progress):
        block_of |= {image_id: images.block_of[image_id] for image_id in batch.ids}
        for image_id, variant, record in _records(model, batch, measure_bins, bins=config.bins):
            by_block, block = sums.setdefault(variant, {}), block_of[image_id]
            by_block[block] = merge(by_block[block], record) if block in by_block else record
    rows: list[EvaluationRow] = []
    for variant, by_block in sums.items():
        statistics = stack([by_block[block] for block in sorted(by_block)])
        bootstrap = BlockBootstrap.draw(len(by_block), config, seed=SEED)
        metrics = summarise(statistics, bins=config.bins, bootstrap=bootstrap)
        shown = curves(statistics, bins=config.bins, bootstrap=bootstrap)
        if variant == DECIDING:
            shown["overlap"] = Overlap.of(
                statistics, image_ids=list(block_of), image_blocks=list(block_of.values())
            ).document()
        rows.append(EvaluationRow(split, *variant, len(block_of), len(by_block), metrics, shown))
    return rows


def _records(
    model: SampledModel,
    batch: LabeledBatch,
    measure_bins: Mapping[Variant, Mapping[str, MeasureBins]],
    *,
    bins: int,
) -> Iterator[tuple[int, Variant, Statistics]]:
    """The sums of each image, with each sampler, before and after calibration."""
    for row, variant, probability_CHW, label_HW, measures in _measured(model, batch):
        record = image_statistics(
            probability_CHW, label_HW, measures, bins=measure_bins[variant], class_bins=bins
        )
        yield batch.ids[row], variant, record


def _detected(
    model: SampledModel, batch: LabeledBatch
) -> Iterator[tuple[Variant, dict[str, Tensor], Tensor]]:
    """The measures of the labeled pixels of each image, and which of the pixels are wrong."""
    for _, variant, probability_CHW, label_HW, measures in _measured(model, batch):
        valid = label_HW != IGNORE
        wrong_N = (probability_CHW.argmax(dim=0) != label_HW)[valid]
        yield variant, {name: values_HW[valid] for name, values_HW in measures.items()}, wrong_N


def _measured(
    model: SampledModel, batch: LabeledBatch
) -> Iterator[tuple[int, Variant, Tensor, Tensor, dict[str, Tensor]]]:
    """For each image and variant its row, probability [C, H, W], label [H, W] and measures [H, W]."""
    label = batch.label.to(model.device)
    for sampler, *both in model.predict(batch.image):
        for calibrated, prediction in zip((False, True), both, strict=True):
            measures = prediction.measures()
            detectors: list[Measure] = [name for name in DETECTORS if name in measures]
            maps_BMHW = torch.stack([measures[name] for name in detectors], dim=1)
            for row in range(len(batch.ids)):
                probability_CHW, measured_MHW = (
                    prediction.at(maps[row : row + 1], batch.size)[0]
                    for maps in (prediction.probability, maps_BMHW)
                )
                measured: dict[str, Tensor] = dict(zip(detectors, measured_MHW, strict=True))
                yield row, (sampler, calibrated), probability_CHW, label[row], measured
