"""Measuring the round's model on held-out images, before and after calibration, and promoting or refusing it.

Legend: B batch, C classes, H W image size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from sqlalchemy.orm import Session
from torch import Tensor

from db.engine import Database
from db.queries import evaluations, failures, models
from db.queries.evaluations import Interval
from db.tables import Model
from pipeline import rounds
from pipeline.calibration.calibrators import Calibrators
from pipeline.config import EvaluationConfig, Measure, Sampler
from pipeline.data.loading import Unreadable
from pipeline.data.project import Project
from pipeline.evaluation.bootstrap import blocks
from pipeline.evaluation.estimate import Estimate
from pipeline.evaluation.metrics import Key, curves, summarise
from pipeline.evaluation.promotion import Overlap, compare
from pipeline.evaluation.statistics import Statistics, image_statistics, merge, stack
from pipeline.leases import one_at_a_time
from pipeline.progress import Progress, silent
from pipeline.steps.calibrate import model_of_round
from pipeline.steps.held_out import held_out_images
from pipeline.steps.served_model import evaluated_samplers, stored_calibrators
from pipeline.studies.held_out import HeldOut, LabeledBatch, read_held_out
from pipeline.uncertainty.predictor import Prediction, Predictor
from pipeline.uncertainty.served_model import ServedModel, open_model

SPLITS = ("test", "calibration")
DETECTORS: tuple[Measure, ...] = (
    "least_confidence",
    "margin",
    "entropy",
    "mutual_information",
    "energy",
    "max_logit",
)
"""Measures that are asked to find the wrong pixels; mutual information only with samples."""
FEWEST_BLOCKS = 10
"""Below this number of blocks, the intervals come with a warning."""
SEED = 0
"""Of every bootstrap, so that all models are judged on the same resamples."""

Variant = tuple[str, bool]
"""Sampler, and whether the calibrators are applied."""

DECIDING: Variant = ("none", True)
"""What a model's promotion is decided on; a temperature changes no cell's winner, and so hardly its mIoU."""


@dataclass(frozen=True)
class EvaluationRow:
    """One evaluation: of a split, with a sampler, before or after calibration."""

    split: str
    sampler: str
    calibrated: bool
    images: int
    blocks: int
    metrics: dict[Key, Estimate]
    curves: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class EvaluationReport:
    """What an evaluation found, and what became of the model."""

    model: str
    promoted: bool
    decision: str
    rows: list[EvaluationRow]
    failed: list[tuple[str, str]]
    warnings: list[str]

    def lines(self) -> Iterator[str]:
        """The report in words."""
        for row in self.rows:
            what = "calibrated" if row.calibrated else "uncalibrated"
            figures = ", ".join(
                f"{label} {row.metrics[(name, -1)].text()}"
                for label, name in (
                    ("mIoU", "miou"),
                    ("ECE", "ece"),
                    ("ECE by chance", "ece_noise"),
                    ("NLL", "nll"),
                    ("error AUROC of entropy", "auroc_entropy"),
                )
            )
            yield f"{row.split}, {row.sampler}, {what}: {figures}"
        for subject, reason in self.failed:
            yield f"not used: {subject}: {reason}"
        for warning in self.warnings:
            yield f"warning: {warning}"
        yield self.decision


@one_at_a_time("evaluate")
def evaluate(project: Project, database: Database, *, progress: Progress = silent) -> EvaluationReport:
    """Measure the round's model with every judged sampler; promote it unless it is worse than the current one
    beyond its interval.

    Every image is read once, and passes through the network once a sampler. Run again, it replaces what it
    wrote.

    Raises:
        NotYourTurn: another step comes next.
        UserError: the round's model, or the device, cannot be used.
    """
    with database.session(write=False) as session:
        current = rounds.require(session, "evaluate")
        model = model_of_round(session, current)
        calibrators: dict[Sampler, Calibrators] = {
            sampler: stored_calibrators(session, model.id, sampler=sampler)
            for sampler in evaluated_samplers(project.config)
        }
        images = {split: held_out_images(session, project, split) for split in SPLITS}
    rows: list[EvaluationRow] = []
    failed: list[tuple[str, str]] = []
    if any(images.values()):
        rows, failed = _measure(project, model, calibrators, images, progress)
    warnings = _warnings(rows)
    with database.session() as session:
        current = rounds.require(session, "evaluate")
        promoted, decision = _decide(session, model, rows, project.config.evaluation)
        evaluations.clear_evaluations(session, model.id)
        for row in rows:
            evaluations.add_evaluation(
                session,
                model_id=model.id,
                split=row.split,
                sampler=row.sampler,
                calibrated=row.calibrated,
                images=row.images,
                blocks=row.blocks,
                curves=row.curves,
                metrics={key: Interval(**item.document(digits=None)) for key, item in row.metrics.items()},
            )
        stored = session.get_one(Model, model.id)
        stored.status = "promoted" if promoted else "refused"
        stored.decision = decision
        failures.clear_failures(session, "evaluate")
        failures.record_failures(session, "evaluate", failed)
        rounds.advance(session, current, "evaluate")
    return EvaluationReport(
        model=model.name, promoted=promoted, decision=decision, rows=rows, failed=failed, warnings=warnings
    )


def _measure(
    project: Project,
    model: Model,
    calibrators: Mapping[Sampler, Calibrators],
    images: Mapping[str, Sequence[HeldOut]],
    progress: Progress,
) -> tuple[list[EvaluationRow], list[tuple[str, str]]]:
    config = project.config
    models: dict[Sampler, ServedModel] = {
        sampler: open_model(project, model.checkpoint_uri, calibrators=pair, sampler=sampler)
        for sampler, pair in calibrators.items()
        if sampler != "none"
    }
    predictors: dict[Sampler, Predictor] = {sampler: served.predictor for sampler, served in models.items()}
    total = sum(len(items) for items in images.values())
    done = 0
    rows: list[EvaluationRow] = []
    failed: list[tuple[str, str]] = []
    for split, items in images.items():
        ids = [item.ref.id for item in items]
        index = blocks(
            [item.group for item in items], [item.position for item in items], config.evaluation.block
        )
        block_of = dict(zip(ids, index.tolist(), strict=True))
        sums: dict[Variant, dict[int, Statistics]] = {}
        seen: list[int] = []
        for batch in read_held_out(items, model=next(iter(models.values())), data=config.data):
            if isinstance(batch, Unreadable):
                failed.append((project.uri(batch.path), batch.reason))
                done += 1
            else:
                for image_id, variant, record in _records(predictors, batch, bins=config.evaluation.bins):
                    by_block, block = sums.setdefault(variant, {}), block_of[image_id]
                    by_block[block] = merge(by_block[block], record) if block in by_block else record
                seen.extend(batch.ids)
                done += len(batch.ids)
            progress("evaluate", done, total)
        for (sampler, calibrated), by_block in sums.items():
            statistics = stack([by_block[block] for block in sorted(by_block)])
            row = _row(split, sampler, calibrated, statistics, images=len(seen), config=config.evaluation)
            if (sampler, calibrated) == DECIDING:
                places = [block_of[image_id] for image_id in seen]
                overlap = Overlap.of(statistics, image_ids=seen, image_blocks=places)
                row.curves["overlap"] = overlap.document()
            rows.append(row)
    return rows, failed


def _records(
    predictors: Mapping[Sampler, Predictor], batch: LabeledBatch, *, bins: int
) -> Iterator[tuple[int, Variant, Statistics]]:
    """The record of each image, with each sampler, before and after calibration."""
    size = (batch.label.shape[-2], batch.label.shape[-1])
    for variant, predictor, prediction in _predictions(predictors, batch):
        measures = prediction.measures()
        detectors: list[Measure] = [name for name in DETECTORS if name in measures]
        maps_BMHW = torch.stack([measures[name] for name in detectors], dim=1)
        label = batch.label.to(predictor.device)
        for row, image_id in enumerate(batch.ids):
            probability_CHW, measured_MHW = (
                prediction.at(maps[row : row + 1], size)[0] for maps in (prediction.probability, maps_BMHW)
            )
            measured: dict[str, Tensor] = dict(zip(detectors, measured_MHW, strict=True))
            yield image_id, variant, image_statistics(probability_CHW, label[row], measured, class_bins=bins)


def _predictions(
    predictors: Mapping[Sampler, Predictor], batch: LabeledBatch
) -> Iterator[tuple[Variant, Predictor, Prediction]]:
    """Those of `none` come from the deterministic pass of the first sampler."""
    for place, (sampler, predictor) in enumerate(predictors.items()):
        both = predictor.predict_each(batch.image, [Calibrators(), predictor.calibrators])
        for calibrated, prediction in zip((False, True), both, strict=True):
            if place == 0:
                yield ("none", calibrated), predictor, prediction.without_samples()
            yield (sampler, calibrated), predictor, prediction


def _row(
    split: str,
    sampler: str,
    calibrated: bool,
    statistics: Statistics,
    *,
    images: int,
    config: EvaluationConfig,
) -> EvaluationRow:
    return EvaluationRow(
        split=split,
        sampler=sampler,
        calibrated=calibrated,
        images=images,
        blocks=len(statistics.pixels),
        metrics=summarise(
            statistics,
            bins=config.bins,
            resamples=config.resamples,
            confidence=config.confidence,
            seed=SEED,
        ),
        curves=curves(
            statistics,
            bins=config.bins,
            resamples=config.resamples,
            confidence=config.confidence,
            seed=SEED,
        ),
    )


def _decide(
    session: Session, model: Model, rows: Sequence[EvaluationRow], config: EvaluationConfig
) -> tuple[bool, str]:
    """Whether the model is promoted, and why, in words."""
    row = next((row for row in rows if (row.sampler, row.calibrated) == DECIDING), None)
    if row is None:
        return True, f"{model.name} is promoted without a measurement: no held-out image has a readable mask."
    found = row.metrics[("miou", -1)]
    measured = f"mIoU {found.text()} on {row.images} {row.split} images"
    other = models.other_promoted_model(session, model.id)
    if other is None:
        return True, f"{model.name} is promoted, the first model: {measured}."
    theirs = evaluations.evaluation_of(
        session, model_id=other.id, split=row.split, sampler=row.sampler, calibrated=row.calibrated
    )
    mine = Overlap.from_document(row.curves["overlap"])
    if theirs is not None and theirs.curves["overlap"]["fingerprint"] == mine.fingerprint:
        verdict = compare(
            mine,
            Overlap.from_document(theirs.curves["overlap"]),
            tolerance=config.promote_tolerance,
            resamples=config.resamples,
            confidence=config.confidence,
            seed=SEED,
        )
        promoted = verdict.promoted
        against = f"{verdict.difference.text(sign='+')} against {other.name} on the same images"
    else:
        former = evaluations.metrics_of(
            session, model_id=other.id, split=row.split, sampler=row.sampler, calibrated=row.calibrated
        ).get(("miou", -1))
        if former is None or former.value is None:
            return True, f"{model.name} is promoted: {measured}; {other.name} was never measured there."
        promoted = found.highest >= former.value - config.promote_tolerance
        against = f"{other.name} had {former.value:.3f} on other images"
    if promoted:
        return True, f"{model.name} is promoted: {measured}, {against}."
    return False, f"{model.name} is refused, {other.name} stays: {measured}, {against}."


def _warnings(rows: Sequence[EvaluationRow]) -> list[str]:
    warnings: list[str] = []
    sizes = {row.split: (row.images, row.blocks) for row in rows}
    for split in SPLITS:
        if split not in sizes:
            warnings.append(f"The {split} split has no image with a readable mask.")
            continue
        images, count = sizes[split]
        if count < FEWEST_BLOCKS:
            warnings.append(
                f"The {split} split has {images} images in {count} independent block"
                f"{'s' if count > 1 else ''}: its intervals are rough."
            )
    if "calibration" in sizes and "test" not in sizes:
        warnings.append("The calibrators were fitted on the images that judge them here: ECE is optimistic.")
    return warnings
