"""Fitting the temperatures of the round's model, deterministic and sampled apart, on held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import evaluations as queries
from db.queries import images as image_queries
from db.queries import rounds as round_queries
from db.tables import Calibration, Model, Round
from pipeline import rounds
from pipeline.calibration.calibrators import Calibrators
from pipeline.calibration.fit import fit_temperature, mean_nll
from pipeline.calibration.pixels import DrawnPixels, draw_pixels
from pipeline.config import Project
from pipeline.data.images import ImageRef
from pipeline.data.loading import Unreadable
from pipeline.device import pick_device
from pipeline.errors import UserError
from pipeline.evaluation.bootstrap import blocks
from pipeline.evaluation.held_out import HeldOut, read_held_out
from pipeline.model.checkpoints import load_model
from pipeline.progress import Progress, silent
from pipeline.uncertainty.predictor import Predictor

SAMPLERS = ("none", "mc_dropout")
FEWEST_IMAGES = 10
"""Below this number of calibration images, a fit comes with a warning."""
MOST_VALUES = 60_000_000
"""Logits kept for the fit: with many images or samples, fewer pixels are drawn from each image."""


@dataclass(frozen=True)
class _Fit:
    """What is stored for one sampler."""

    calibrator: str
    parameters: dict[str, Any]
    nll_before: float | None
    nll_after: float | None
    pixels: int
    warning: str | None


def calibrate(project: Project, database: Database, *, progress: Progress = silent) -> list[Calibration]:
    """Fit and store the calibrators of the round's model; run again, it replaces them.

    As many pixels are drawn from each calibration image, so that a large image counts no more than a small
    one. Without any calibration image that has a mask, the calibrators are identities with a warning.

    Raises:
        NotYourTurn: another step comes next.
        UserError: the round's model, or the device, cannot be used.
    """
    with database.session(write=False) as session:
        current = rounds.require(session, "calibrate")
        model = model_of_round(session, current)
        images = held_out_images(session, project, "calibration")
    drawn, failures = _draw(project, model, images, progress) if images else ({}, [])
    if drawn:
        fits = _fit(project, [item for item in images if item.ref.id in drawn], drawn)
    else:
        fits = dict.fromkeys(SAMPLERS, _nothing_to_fit(failed=len(failures)))
    with database.session() as session:
        current = rounds.require(session, "calibrate")
        rows = [
            queries.put_calibration(
                session, model_id=model.id, sampler=sampler, images=len(drawn), **asdict(fits[sampler])
            )
            for sampler in SAMPLERS
        ]
        image_queries.clear_failures(session, "calibrate")
        image_queries.record_failures(session, "calibrate", failures)
        rounds.advance(session, current, "calibrate")
    return rows


def model_of_round(session: Session, current: Round) -> Model:
    """The model that the current round has trained.

    Raises:
        UserError: there is none.
    """
    model = round_queries.round_model(session, current.id)
    if model is None or model.status == "training":
        raise UserError(f"Round {current.number} has no trained model.", "Run `segcurate train`.")
    return model


def held_out_images(session: Session, project: Project, split: str) -> list[HeldOut]:
    """The images of a locked split that have a mask."""
    return [
        HeldOut(
            ref=ImageRef(id=row.id, path=project.path(row.uri), width=row.width, height=row.height),
            mask=project.path(row.mask_uri),
            group=row.group_name,
            position=row.position,
        )
        for row in image_queries.split_images(session, split)
        if row.mask_uri is not None
    ]


def _draw(
    project: Project, model: Model, images: Sequence[HeldOut], progress: Progress
) -> tuple[dict[int, DrawnPixels], list[tuple[str, str]]]:
    """Pixels of each image that has labeled ones, by image id, and the files that could not be used."""
    config, device = project.config, pick_device(project.config.device)
    segmenter, card = load_model(
        project.path(model.checkpoint_uri), device=device, class_names=config.data.class_names
    )
    scoring = config.scoring.model_copy(update={"sampler": "mc_dropout"})
    predictor = Predictor(segmenter, scoring=scoring, calibrators=Calibrators(), device=device)
    room = MOST_VALUES // ((scoring.samples + 1) * config.data.num_classes * len(images))
    pixels = max(1, min(config.calibration.pixels_per_image, room))
    drawn: dict[int, DrawnPixels] = {}
    failures: list[tuple[str, str]] = []
    done = 0
    for batch in read_held_out(
        images, data=config.data, card=card, batch_size=scoring.batch_size, workers=scoring.workers
    ):
        if isinstance(batch, Unreadable):
            failures.append((project.uri(batch.path), batch.reason))
            done += 1
        else:
            for row, image_id in enumerate(batch.ids):
                generator = np.random.default_rng([scoring.seed, image_id])
                found = draw_pixels(
                    predictor,
                    batch.image[row : row + 1],
                    batch.label[row],
                    pixels=pixels,
                    generator=generator,
                )
                if len(found.labels):
                    drawn[image_id] = found
            done += len(batch.ids)
        progress("calibrate", done, len(images))
    return drawn, failures


def _fit(project: Project, images: Sequence[HeldOut], drawn: dict[int, DrawnPixels]) -> dict[str, _Fit]:
    parts = [drawn[item.ref.id] for item in images]
    labels = torch.cat([part.labels for part in parts])
    halves = torch.cat(
        [
            torch.full((len(part.labels),), half)
            for part, half in zip(parts, _halves(images, block=project.config.evaluation.block), strict=True)
        ]
    )
    fits: dict[str, _Fit] = {}
    for sampler in SAMPLERS:
        logits = torch.cat(
            [part.deterministic if sampler == "none" else part.sampled for part in parts], dim=1
        )
        if project.config.calibration.calibrator == "identity":
            nll = mean_nll(logits, labels, 1.0)
            fits[sampler] = _Fit("identity", {}, nll, nll, len(labels), None)
            continue
        fit = fit_temperature(logits, labels, halves)
        warnings: list[str] = []
        if fit.at_bound:
            warnings.append(
                f"The temperature is at the bound of its search, {fit.temperature:.2f}: the network, not its "
                "calibration, is at fault. Train longer, or look at the calibration masks."
            )
        if len(images) < FEWEST_IMAGES:
            warnings.append(f"Fitted on {len(images)} images only: the temperature is uncertain.")
        if fit.cross_validated and fit.nll_after > fit.nll_before:
            warnings.append(
                "On images that did not choose it, the temperature does not lower the NLL: at τ = 1 the "
                "network was about as well calibrated."
            )
        fits[sampler] = _Fit(
            calibrator="temperature",
            parameters={
                "temperature": fit.temperature,
                "at_bound": fit.at_bound,
                "cross_validated": fit.cross_validated,
            },
            nll_before=fit.nll_before,
            nll_after=fit.nll_after,
            pixels=len(labels),
            warning=" ".join(warnings) or None,
        )
    return fits


def _halves(images: Sequence[HeldOut], *, block: int) -> list[int]:
    """0 or 1 for each image: every second block of a sequence, so that neighbours stay together."""
    index = blocks([item.group for item in images], [item.position for item in images], block)
    if index.max() == 0:
        return [2 * row // len(images) for row in range(len(images))]
    return (index % 2).tolist()


def _nothing_to_fit(*, failed: int) -> _Fit:
    reason = (
        f"None of the {failed} masks of the calibration split could be read"
        if failed
        else "No image of the calibration split has a labeled mask"
    )
    return _Fit(
        calibrator="identity",
        parameters={},
        nll_before=None,
        nll_after=None,
        pixels=0,
        warning=f"{reason}: softmax scores stay uncalibrated. Put masks in `data.masks` and run "
        "`segcurate ingest`.",
    )
