"""Fitting the calibrators of the round's model on held-out images, for each sampler apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from sqlalchemy.orm import Session
from torch import Tensor

from db.engine import Database
from db.queries import evaluations, models
from db.queries import failures as failure_queries
from db.tables import Calibration, Model, Round
from pipeline import rounds
from pipeline.calibration.calibrators import Calibrator, Calibrators, calibrator_from
from pipeline.calibration.comparison import Judgement, cross_fit
from pipeline.calibration.fit import Pixels, at_bound
from pipeline.config import Sampler
from pipeline.data.loading import Unreadable
from pipeline.data.project import Project
from pipeline.errors import UserError
from pipeline.evaluation.bootstrap import blocks
from pipeline.format import confidence_name
from pipeline.leases import one_at_a_time
from pipeline.model.checkpoints import forget_resume
from pipeline.progress import Progress, silent
from pipeline.steps.held_out import Source, audited_images, calibration_source, held_out_images
from pipeline.steps.served_model import evaluated_samplers
from pipeline.studies.held_out import AuditedImage, HeldOut, read_held_out
from pipeline.uncertainty.drawn_pixels import DrawnPixels, draw_pixels
from pipeline.uncertainty.served_model import open_model

FEWEST_IMAGES = 10
"""Below this number of images, a fit comes with a warning."""
MOST_VALUES = 10_000_000
"""Logits kept for the fit: with many images or samples, fewer pixels are drawn from each image."""
SEED = 0
"""Of every bootstrap."""


@dataclass(frozen=True)
class _Fit:
    """What is stored for one sampler."""

    calibrator: str
    parameters: dict[str, Any]
    nll_before: float | None
    nll_after: float | None
    images: int
    pixels: int
    warning: str | None
    report: dict[str, Any] | None
    passed: bool


@dataclass
class _Drawn:
    """Pixels of each image that has labeled ones, by image id, and the files that could not be used."""

    pixels: dict[int, DrawnPixels]
    failures: dict[str, str]


@one_at_a_time("calibrate")
def calibrate(project: Project, database: Database, *, progress: Progress = silent) -> list[Calibration]:
    """Fit every calibrator for every judged sampler, and store the configured one with the comparison of all.

    They are fitted on the calibration split or, where there is none, on the audit slices that the model has
    not learned from (see `calibration_set`). As many pixels are drawn from each image of the split, so that a
    large image counts no more than a small one; those of audit regions are weighed by 1 / inclusion
    probability. Without any image that has a label, the calibrators are identities with a warning. Run again,
    it replaces what it stored.

    Raises:
        NotYourTurn: another step comes next.
        UserError: the round's model, or the device, cannot be used.
    """
    with database.session(write=False) as session:
        current = rounds.require(session, "calibrate")
        model = model_of_round(session, current)
        source = calibration_source(session, project)
        images: Sequence[HeldOut] = (
            audited_images(session, project, model.id)
            if source == "audit"
            else held_out_images(session, project, "calibration")
        )
    forget_resume(project.path(model.checkpoint_uri))  # where the training was killed before it did so itself
    fits: dict[Sampler, _Fit] = {}
    failures: dict[str, str] = {}
    samplers = evaluated_samplers(project.config)
    for sampler in samplers:
        if sampler == "none" or not images:
            continue
        drawn = _draw(project, model, images, sampler, progress)
        failures |= drawn.failures
        usable = [item for item in images if item.ref.id in drawn.pixels]
        if not usable:
            break
        parts = [drawn.pixels[item.ref.id] for item in usable]
        if "none" not in fits:
            fits["none"] = _fit(project, usable, parts, [part.deterministic for part in parts], source)
        sampled = [part.sampled for part in parts if part.sampled is not None]
        fits[sampler] = _fit(project, usable, parts, sampled, source)
    with database.session() as session:
        current = rounds.require(session, "calibrate")
        rows = [
            evaluations.put_calibration(
                session,
                model_id=model.id,
                sampler=sampler,
                **asdict(fits.get(sampler) or _nothing_to_fit(source, failed=len(failures))),
            )
            for sampler in samplers
        ]
        failure_queries.clear_failures(session, "calibrate")
        failure_queries.record_failures(session, "calibrate", list(failures.items()))
        rounds.advance(session, current, "calibrate")
    return rows


def in_words(row: Calibration) -> str:
    """What was stored for one sampler, in a line."""
    if row.report is None:
        return f"{row.sampler}: nothing to fit on; its scores stay {confidence_name(False)}s."
    items = {item["name"]: item for item in row.report["calibrators"]}
    before, after = items["identity"], items[row.calibrator]
    figures = ", ".join(
        f"{label} {before[name]['value']:.3f} → {after[name]['value']:.3f}"
        for label, name in (("NLL", "nll"), ("ECE", "ece"))
    )
    found = _temperatures(calibrator_from(row.calibrator, row.parameters))
    values = f" {', '.join(f'{value:.2f}' for value in found)}" if found else ""
    where = "audited images" if row.report["source"] == "audit" else "images"
    return (
        f"{row.sampler}: {row.calibrator}{values} from {row.images} {where}; {figures} on images that did "
        f"not fit it: {confidence_name(row.passed)}"
    )


def model_of_round(session: Session, current: Round) -> Model:
    """The model that the current round has trained.

    Raises:
        UserError: there is none.
    """
    model = models.round_model(session, current.id)
    if model is None or model.status == "training":
        raise UserError(f"Round {current.number} has no trained model.", "Run `segcurate train`.")
    return model


def _draw(
    project: Project, model: Model, images: Sequence[HeldOut], sampler: Sampler, progress: Progress
) -> _Drawn:
    """One pass over the images."""
    config = project.config
    served = open_model(
        project, model.checkpoint_uri, calibrators=Calibrators(), sampler=sampler, for_scores=True
    )
    by_id = {item.ref.id: item for item in images}
    drawn = _Drawn(pixels={}, failures={})
    room = MOST_VALUES // (config.scoring.samples * config.data.num_classes * len(images))
    pixels = max(1, min(config.calibration.pixels_per_image, room))
    done = 0
    for batch in read_held_out(images, model=served, data=config.data):
        if isinstance(batch, Unreadable):
            drawn.failures[project.uri(batch.path)] = batch.reason
            done += 1
        else:
            for row, image_id in enumerate(batch.ids):
                item = by_id[image_id]
                found = draw_pixels(
                    served.predictor,
                    batch.image[row : row + 1],
                    batch.label[row],
                    pixels=pixels,
                    generator=np.random.default_rng([config.scoring.seed, image_id]),
                    weights=item.weights() if isinstance(item, AuditedImage) else None,
                )
                if len(found.labels):
                    drawn.pixels[image_id] = found
            done += len(batch.ids)
        progress(f"calibrate {sampler}", done, len(images))
    return drawn


def _fit(
    project: Project,
    images: Sequence[HeldOut],
    parts: Sequence[DrawnPixels],
    logits: Sequence[Tensor],
    source: Source,
) -> _Fit:
    """Fit and judge every calibrator on these logits of the images, and take the configured one."""
    config = project.config
    counts = torch.tensor([len(part.labels) for part in parts])
    pixels = Pixels(
        logits=torch.cat(list(logits), dim=2),
        labels=torch.cat([part.labels for part in parts]),
        weights=torch.cat([part.weights for part in parts]),
        images=torch.arange(len(parts)).repeat_interleave(counts),
    )
    block = blocks(
        [item.group for item in images], [item.position for item in images], config.evaluation.block
    )
    judgement = cross_fit(
        pixels,
        block,
        bins=config.evaluation.bins,
        resamples=config.evaluation.resamples,
        confidence=config.evaluation.confidence,
        seed=SEED,
    )
    name = config.calibration.calibrator
    chosen = judgement.auto if name == "auto" else name
    judged = judgement.judged[chosen]
    return _Fit(
        calibrator=chosen,
        parameters=judged.calibrator.parameters,
        nll_before=judgement.judged["identity"].nll.value,
        nll_after=judged.nll.value,
        images=len(images),
        pixels=len(pixels),
        warning=" ".join(_warnings(judgement, chosen, images=len(images))) or None,
        report={
            "source": source,
            "images": len(images),
            "blocks": len(set(block.tolist())),
            "pixels": len(pixels),
            "cross_fitted": judgement.cross_fitted,
            "calibrators": [item.document() for item in judgement.judged.values()],
            "chosen": chosen,
            "auto": judgement.auto,
        },
        passed=judgement.passed(chosen),
    )


def _warnings(judgement: Judgement, chosen: str, *, images: int) -> list[str]:
    warnings: list[str] = []
    judged = judgement.judged[chosen]
    ends = [value for value in _temperatures(judged.calibrator) if at_bound(value)]
    if ends:
        warnings.append(
            f"The temperature is at the bound of its search, {ends[0]:.2f}: the network, not its "
            "calibration, is at fault. Train longer, or look at the labels that calibrate it."
        )
    if images < FEWEST_IMAGES:
        warnings.append(f"Fitted on {images} images only: the calibration is uncertain.")
    if judgement.cross_fitted and judged.worse:
        warnings.append(
            "On images that did not fit it, the calibrator raises the NLL: without it the network is better "
            "calibrated."
        )
    return warnings


def _temperatures(calibrator: Calibrator) -> list[float]:
    parameters = calibrator.parameters
    single = [parameters[name] for name in ("temperature", "suspected_temperature") if name in parameters]
    return [*single, *parameters.get("temperatures", ())]


def _nothing_to_fit(source: Source, *, failed: int) -> _Fit:
    if failed:
        reason = f"None of the {failed} files that would calibrate the model could be read"
        remedy = "See `segcurate failures`."
    elif source == "calibration":
        reason = "No image of the calibration split has a labeled mask"
        remedy = "Put masks in `data.masks` and run `segcurate ingest`, or set `calibration.source: audit`."
    else:
        reason = "There is no calibration split with masks, and no audit region that the model has not seen"
        remedy = "The audit slice of this round's queue serves, once it is labeled."
    return _Fit(
        calibrator="identity",
        parameters={},
        nll_before=None,
        nll_after=None,
        images=0,
        pixels=0,
        warning=f"{reason}: softmax scores stay uncalibrated. {remedy}",
        report=None,
        passed=False,
    )
