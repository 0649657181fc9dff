"""Stress: does confidence fall when the input becomes strange? Held-out images, made worse step by step.

Legend: B batch, K image channels, C classes, h w the network's image, H W the image and its mask, n images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from db.engine import Database
from db.queries import evaluations
from pipeline.data.input_range import pixel_statistics
from pipeline.data.labels import resize_mask
from pipeline.data.loading import Unreadable
from pipeline.data.project import Project
from pipeline.errors import UserError
from pipeline.evaluation.bootstrap import blocks
from pipeline.evaluation.estimate import Estimate
from pipeline.evaluation.stress_verdicts import (
    BASES,
    METRICS,
    STRESSES,
    UNRECOGNISABLE,
    Condition,
    Results,
    Sample,
    Verdict,
    verdicts,
)
from pipeline.format import number
from pipeline.model.checkpoints import ModelCard
from pipeline.progress import Progress, silent
from pipeline.steps.assess import spread
from pipeline.steps.held_out import judging_images
from pipeline.steps.served_model import chosen_model, stored_calibrators
from pipeline.studies import corruptions
from pipeline.studies.held_out import HeldOut, LabeledBatch, read_held_out
from pipeline.uncertainty.predictor import Predictor
from pipeline.uncertainty.served_model import ServedModel, open_model

SEED = 0
"""Of the noise, the shuffles and the bootstrap, so that all models face the same images."""
BASE = BASES["magnify"]
"""The unchanged images, under the name that they are measured by."""


@dataclass(frozen=True)
class StressRow:
    """One metric under one condition: a mean over images."""

    condition: Condition
    metric: str
    estimate: Estimate


@dataclass(frozen=True)
class StressReport:
    """What a stress test found. `failed` holds files that could not be used, with the reason."""

    model: str
    split: str
    images: int
    rows: list[StressRow]
    verdicts: list[Verdict]
    failed: list[tuple[str, str]]

    def lines(self) -> Iterator[str]:
        """The report as a table and in words."""
        yield f"{self.model} on {self.images} {self.split} images; means over images."
        head = ("", "", *(metric.replace("_", " ") for metric in METRICS))
        widths = (18, 9, 9, 11, 8, 19, 8)
        yield "".join(f"{name:<{width}}" for name, width in zip(head, widths, strict=True)).rstrip()
        table: dict[Condition, dict[str, float]] = {}
        for row in self.rows:
            table.setdefault(row.condition, {})[row.metric] = row.estimate.value
        kind = ""
        for condition, values in table.items():
            first = "" if condition.kind == kind else condition.kind.replace("_", " ")
            kind = condition.kind
            cells = (first, condition.label, *(number(values.get(metric)) for metric in METRICS))
            yield "".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()
        for verdict in self.verdicts:
            yield f"{'passed' if verdict.ok else 'FAILED'}: {verdict.text}"
        for subject, reason in self.failed:
            yield f"not used: {subject}: {reason}"


def stress(
    project: Project,
    database: Database,
    *,
    model: str | None = None,
    images: int = 20,
    progress: Progress = silent,
) -> StressReport:
    """Magnify, attack, blur, darken, rescale and destroy held-out images, and store how the model answers.

    The images are spread evenly over the test split, or over the calibration split where there is no test
    mask. Run again, it replaces what it wrote for the model.

    Args:
        model: its name; else the promoted one, or the newest where none is.
        images: how many, at most.

    Raises:
        UserError: there is no such model, no held-out image with a mask, or the model cannot be used.
    """
    config = project.config
    with database.session(write=False) as session:
        row = chosen_model(session, model)
        calibrators = stored_calibrators(session, row.id, sampler=config.scoring.sampler)
        split, held_out = judging_images(session, project)
    index = blocks(
        [item.group for item in held_out], [item.position for item in held_out], config.evaluation.block
    )
    chosen = spread(len(held_out), images)
    block_of = {held_out[place].ref.id: int(index[place]) for place in chosen}
    served = open_model(project, row.checkpoint_uri, calibrators=calibrators)
    measured, flagged, failed = _measure(project, served, [held_out[place] for place in chosen], progress)
    if not measured:
        raise UserError(
            f"None of the {len(chosen)} {split} images that were drawn can be used: {failed[0][1]}",
            "Put the files back, or give them masks and run `segcurate ingest`.",
        )
    ids = sorted(measured)
    sample = Sample(
        np.array([block_of[image_id] for image_id in ids]),
        resamples=config.evaluation.resamples,
        confidence=config.evaluation.confidence,
        seed=SEED,
    )
    results = _results([measured[image_id] for image_id in ids])
    report = StressReport(
        model=row.name,
        split=split,
        images=len(ids),
        rows=[
            StressRow(condition, metric, sample.mean(values))
            for condition, metrics in results.items()
            for metric, values in metrics.items()
            if not np.isnan(values).all()
        ],
        verdicts=verdicts(results, sample, guarded=_guarded(served.card, flagged, len(ids))),
        failed=failed,
    )
    with database.session() as session:
        evaluations.put_assessment(
            session, model_id=row.id, kind="stress", document=_document(report, project)
        )
    return report


Measured = dict[Condition, dict[str, float]]
"""Of one image."""


def _measure(
    project: Project, served: ServedModel, images: Sequence[HeldOut], progress: Progress
) -> tuple[dict[int, Measured], int, list[tuple[str, str]]]:
    """Every condition of every image; how many the input-range guard flags when magnified most; failures."""
    measured: dict[int, Measured] = {}
    failed: list[tuple[str, str]] = []
    flagged, done, total = 0, 0, len(images) * (len(STRESSES) + 1)
    predictor, card = served.predictor, served.card
    for batch in read_held_out(images, model=served, data=project.config.data):
        if isinstance(batch, Unreadable):
            failed.append((project.uri(batch.path), batch.reason))
            done += len(STRESSES) + 1
            continue
        for condition, image in _conditions(batch, predictor, card):
            for image_id, values in zip(
                batch.ids, _answers(predictor, image, batch.label, condition), strict=True
            ):
                measured.setdefault(image_id, {})[condition] = values
            if condition.kind == "magnify" and card.input_range is not None:
                outliers = card.input_range.outliers(pixel_statistics(image))
                flagged += sum(found is not None for found in outliers) if condition.strength == 16 else 0
            done += len(batch.ids)
            progress("stress", done, total)
    return measured, flagged, failed


def _conditions(
    batch: LabeledBatch, predictor: Predictor, card: ModelCard
) -> Iterator[tuple[Condition, Tensor]]:
    """The unchanged images, then each stress: normalised [B, K, h', w']."""
    unit = corruptions.to_unit(batch.image, mean=card.mean, std=card.std)
    attacked = iter(_attacked(batch, predictor, card))
    yield BASE, batch.image
    for condition in STRESSES:
        strength = condition.strength
        if condition.kind == "magnify":
            yield condition, corruptions.magnify(batch.image, strength)
            continue
        if condition.kind == "fgsm":
            yield condition, next(attacked)
            continue
        if condition.kind in UNRECOGNISABLE:
            changed = torch.cat([_destroyed(unit[[row]], condition, id) for row, id in enumerate(batch.ids)])
        elif condition.kind == "blur":
            changed = corruptions.blur(unit, strength)
        elif condition.kind == "night_gamma":
            changed = corruptions.darken(unit, strength)
        else:
            changed = corruptions.rescale(unit, strength)
        yield condition, corruptions.to_normalised(changed, mean=card.mean, std=card.std)


def _attacked(batch: LabeledBatch, predictor: Predictor, card: ModelCard) -> list[Tensor]:
    """The images after each FGSM step, through the deterministic network; the gradient of a large image is
    that of its tiles."""
    size = (batch.image.shape[-2], batch.image.shape[-1])
    label = torch.from_numpy(np.stack([resize_mask(mask.numpy(), size) for mask in batch.label])).long()
    strengths = [condition.strength / 255 for condition in STRESSES if condition.kind == "fgsm"]
    attacked = [torch.empty_like(batch.image) for _ in strengths]
    side = predictor.scoring.tile
    for top in range(0, size[0], side):
        for left in range(0, size[1], side):
            part = (..., slice(top, top + side), slice(left, left + side))
            tiles = corruptions.fgsm(
                batch.image[part].to(predictor.device),
                label[part].to(predictor.device),
                predictor.segmenter,
                strengths=strengths,
                mean=card.mean,
                std=card.std,
            )
            for whole, tile in zip(attacked, tiles, strict=True):
                whole[part] = tile.cpu()
    return attacked


def _destroyed(unit: Tensor, condition: Condition, image_id: int) -> Tensor:
    """One image [1, K, h, w] of which nothing is to be recognised; the same one for every model."""
    generator = torch.Generator().manual_seed(SEED + 1_000_003 * image_id + int(condition.strength))
    if condition.kind == "noise":
        return corruptions.noise(unit, condition.label, generator=generator)
    patches = min(int(condition.strength), *unit.shape[-2:])
    return corruptions.shuffle_patches(unit, patches, generator=generator)


@torch.inference_mode()
def _answers(
    predictor: Predictor, image: Tensor, label: Tensor, condition: Condition
) -> list[dict[str, float]]:
    """Each metric of each image: accuracy over its labeled pixels, the rest over all of its cells."""
    prediction = predictor.predict(image)
    maps = prediction.measures()
    means: dict[str, list[float]] = {
        metric: maps[metric].mean(dim=(-2, -1)).tolist()
        for metric in ("entropy", "mutual_information", "energy")
        if metric in maps
    }
    means["confidence"] = prediction.probability.amax(dim=1).mean(dim=(-2, -1)).tolist()
    if condition.kind not in UNRECOGNISABLE:
        size = (label.shape[-2], label.shape[-1])
        predicted = prediction.at(prediction.probability, size).argmax(1)
        means["accuracy"] = [
            float((predicted[row].cpu() == mask)[mask < prediction.probability.shape[1]].double().mean())
            for row, mask in enumerate(label)
        ]
    return [{metric: values[row] for metric, values in means.items()} for row in range(len(label))]


def _results(measured: Sequence[Measured]) -> Results:
    """Values by condition and metric; the unchanged images stand under each kind's own name too."""

    def column(condition: Condition) -> dict[str, npt.NDArray[np.float64]]:
        return {
            metric: np.array([image[condition].get(metric, np.nan) for image in measured])
            for metric in METRICS
        }

    unchanged = column(BASE)
    results: dict[Condition, dict[str, npt.NDArray[np.float64]]] = {}
    for kind, base in BASES.items():
        mine = [condition for condition in STRESSES if condition.kind == kind]
        smaller = [condition for condition in mine if condition.strength < base.strength]
        for condition in (*smaller, base, *(one for one in mine if one not in smaller)):
            results[condition] = unchanged if condition == base else column(condition)
    return results


def _guarded(card: ModelCard, flagged: int, images: int) -> str:
    if card.input_range is None:
        return "no input-range guard can catch it, because the model was trained before there was one"
    verb = "catches" if flagged == images else "misses"
    return f"the input-range guard {verb} it ({flagged} of {images} images)"


def _document(report: StressReport, project: Project) -> dict[str, Any]:
    return {
        "images": report.images,
        "split": report.split,
        "sampler": project.config.scoring.sampler,
        "confidence": project.config.evaluation.confidence,
        "rows": [
            {
                "kind": row.condition.kind,
                "strength": row.condition.strength,
                "label": row.condition.label,
                "metric": row.metric,
                **row.estimate.document(),
            }
            for row in report.rows
        ],
        "verdicts": [
            {"kind": verdict.kind, "ok": verdict.ok, "text": verdict.text} for verdict in report.verdicts
        ],
    }
