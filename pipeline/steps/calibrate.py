"""Fitting the calibrators of the round's model on held-out images, for each sampler apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from db.engine import Database
from db.queries import evaluations
from db.queries import failures as failure_queries
from db.tables import Calibration, Model
from pipeline import rounds
from pipeline.calibration.calibrators import KINDS, Calibrator, Calibrators, calibrator_from
from pipeline.calibration.comparison import Comparison, cross_fit
from pipeline.calibration.fit import Pixels, at_bound
from pipeline.config import Sampler
from pipeline.data.large_images import chosen
from pipeline.data.project import Project
from pipeline.evaluation.confidence import confidence_of
from pipeline.evaluation.estimate import Estimate
from pipeline.format import confidence_name, counted, evidence, none_can, percent, table
from pipeline.leases import one_at_a_time
from pipeline.model.checkpoints import forget_resume
from pipeline.progress import Progress, notes, silent
from pipeline.steps.held_out import Source, audited_images, calibration_source, held_out_images
from pipeline.steps.ready import evaluated_samplers, model_of_round
from pipeline.studies.held_out import AuditedImage, HeldOut, HeldOutImages, runs_of
from pipeline.uncertainty.drawn_pixels import CELLS, DrawnPixels, draw_pixels, pixels_of
from pipeline.uncertainty.served_model import open_model

FEWEST_IMAGES = 10
"""Below this number of images, of the newest audit where audits calibrate, a fit comes with a warning."""
MOST_VALUES = 40_000_000
"""Logits kept for the fit, 160 MB: with many images or samples, fewer pixels are drawn from each image."""
NO_ERRORS_NLL = 0.01
"""Below this mean NLL in nats, at most one pixel in 70 is wrong: a wrong pixel has at least ln 2."""
SEED = 0
"""Of every bootstrap."""


@dataclass(frozen=True)
class CalibrationReport:
    """What was stored for each sampler. `failed` holds files that could not be used, with the reason."""

    rows: list[Calibration]
    failed: list[tuple[str, str]]

    def lines(self) -> Iterator[str]:
        """The report as text."""
        warned: set[str] = set()
        for row in self.rows:
            yield from _lines(row)
            if row.warning and row.warning not in warned:  # the same holds of several samplers
                warned.add(row.warning)
                yield f"warning: {row.warning}"
        yield from notes(self.failed)


@one_at_a_time("calibrate")
def calibrate(
    project: Project,
    database: Database,
    *,
    only: Sequence[str] | None = None,
    progress: Progress = silent,
) -> CalibrationReport:
    """Fit every calibrator for every evaluated sampler, and store the configured one and the comparison of
    all.

    They are fitted on the calibration split or, where there is none, on the audit slices that the model has
    not learned from (see `steps.held_out`). As many pixels are drawn from each image of the split, so that a
    large image counts no more than a small one; those of audit regions are weighed (see
    `steps.held_out.audited_images`). Without any image that has a label, the calibrators are identities with
    a warning. Run again, it replaces what it stored.

    Args:
        only: fit and compare only these besides the identity; the configured one must be among them.

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
    fits: dict[Sampler, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    samplers = evaluated_samplers(project.config)
    for sampler in samplers:
        if sampler == "none" or not images:
            continue
        held_out = HeldOutImages(project, images)
        drawn = _draw(project, model, held_out, sampler, progress)
        failed |= dict(held_out.failed)
        usable = [item for item in images if item.ref.id in drawn]
        if not usable:
            break
        parts = [drawn[item.ref.id] for item in usable]
        if "none" not in fits:
            fits["none"] = _fit(project, usable, pixels_of(parts, sampled=False), source, only, progress)
        fits[sampler] = _fit(project, usable, pixels_of(parts, sampled=True), source, only, progress)
    with database.session() as session:
        current = rounds.require(session, "calibrate")
        rows = [
            evaluations.put_calibration(
                session,
                model_id=model.id,
                sampler=sampler,
                **fits.get(sampler) or _nothing_to_fit(project, source, failed=len(failed)),
            )
            for sampler in samplers
        ]
        failure_queries.clear_failures(session, "calibrate")
        failure_queries.record_failures(session, "calibrate", list(failed.items()))
        rounds.advance(session, current, "calibrate")
    return CalibrationReport(rows=rows, failed=list(failed.items()))


def _lines(row: Calibration) -> Iterator[str]:
    """What was stored for one sampler, after a table of all calibrators."""
    if row.report is None:
        yield f"{row.sampler}: nothing to fit on; its scores stay {confidence_name(False)}s."
    else:
        items = {item["name"]: item for item in row.report["calibrators"]}
        judged = (
            "is fitted on one half of the images and judged on the other, and the reverse"
            if row.report["cross_fitted"]
            else "is judged on the pixels that it was fitted on, because the images make no two halves"
        )
        of_what = evidence(row.images, row.report["blocks"])
        yield (
            f"Sampler {row.sampler}: each calibrator {judged} ({of_what}). "
            "`changed`: the share of pixels that get another class."
        )
        yield from table(
            ("calibrator", "NLL", "ECE", "changed"),
            [
                (
                    name,
                    *(Estimate.from_document(item[metric]).text() for metric in ("nll", "ece")),
                    percent(item["labels_changed"]),
                )
                for name, item in items.items()
            ],
        )
        found = _temperatures(calibrator_from(row.calibrator, row.parameters))
        values = f" {', '.join(f'{value:.2f}' for value in found)}" if found else ""
        of = "audited image" if row.report["source"] == "audit" else "image"
        other = " on images that did not fit it" if row.report["cross_fitted"] else ""
        before, after = items["identity"], items[row.calibrator]
        figures = ", ".join(
            f"{label} {before[name]['value']:.3f} → {after[name]['value']:.3f}"
            for label, name in (("NLL", "nll"), ("ECE", "ece"))
        )
        yield (
            f"{row.sampler}: {row.calibrator}{values} from {counted(row.images, of)}; {figures}{other}: "
            f"{confidence_of(row.passed, row.report).sentence}"
        )


def _draw(
    project: Project, model: Model, images: HeldOutImages, sampler: Sampler, progress: Progress
) -> dict[int, DrawnPixels]:
    """Pixels of each image that has labeled ones, by image id, drawn in one pass."""
    config = project.config
    served = open_model(project, model.checkpoint_uri, calibrators=Calibrators(), sampler=sampler)
    samples = 1 if served.predictor.sampler is None else served.predictor.sampler.samples
    room = MOST_VALUES // (CELLS * samples * config.data.num_classes * len(images))
    pixels = max(1, min(config.calibration.pixels_per_image, room))
    drawn: dict[int, DrawnPixels] = {}
    for batch in images.read(served, title=f"calibrate {sampler}", progress=progress):
        for row, image_id in enumerate(batch.ids):
            item = images.by_id[image_id]
            found = draw_pixels(
                served.predictor,
                chosen(batch.images, [row]),
                batch.label[row],
                pixels=pixels,
                generator=np.random.default_rng([config.scoring.seed, image_id]),
                weights=item.weights() if isinstance(item, AuditedImage) else None,
            )
            if len(found.labels):
                drawn[image_id] = found
    return drawn


def _fit(
    project: Project,
    images: Sequence[HeldOut],
    pixels: Pixels,
    source: Source,
    only: Sequence[str] | None,
    progress: Progress,
) -> dict[str, Any]:
    """The columns of a calibration: all calibrators are fitted and compared on these pixels, and
    the configured one is taken."""
    config = project.config
    names = tuple(KINDS) if only is None else only
    runs = runs_of(project, images)
    comparison = cross_fit(pixels, runs, config.evaluation, seed=SEED, names=names, progress=progress)
    name = config.calibration.calibrator
    chosen = comparison.auto if name == "auto" else name
    fitted, reason = comparison.fitted[chosen], comparison.refusal(chosen)
    return {
        "calibrator": chosen,
        "parameters": fitted.calibrator.parameters,
        "nll_before": comparison.fitted["identity"].nll.value,
        "nll_after": fitted.nll.value,
        "images": len(images),
        "pixels": len(pixels),
        "warning": " ".join(_warnings(comparison, chosen, images)) or None,
        "report": {
            "source": source,
            "images": len(images),
            "blocks": comparison.units,
            "pixels": len(pixels),
            "cross_fitted": comparison.cross_fitted,
            "calibrators": [item.document() for item in comparison.fitted.values()],
            "chosen": chosen,
            "auto": comparison.auto,
            "reason": reason,
            "contradiction": None,
        },
        "passed": reason is None,
    }


def _warnings(comparison: Comparison, chosen: str, images: Sequence[HeldOut]) -> list[str]:
    warnings: list[str] = []
    fitted = comparison.fitted[chosen]
    ends = [value for value in _temperatures(fitted.calibrator) if at_bound(value)]
    if ends and fitted.nll.value < NO_ERRORS_NLL:
        warnings.append(
            f"The temperature is at the bound of its search, {ends[0]:.2f}: nearly every pixel that "
            "calibrates it is predicted right. What confidence means on harder images is not known from "
            "these."
        )
    elif ends:
        warnings.append(
            f"The temperature is at the bound of its search, {ends[0]:.2f}: the network, not its "
            "calibration, is at fault. Train longer, or look at the labels that calibrate it."
        )
    decisive = sum(image.newest if isinstance(image, AuditedImage) else True for image in images)
    if decisive < FEWEST_IMAGES:
        of = " of the newest audit" if isinstance(images[0], AuditedImage) else ""
        warnings.append(f"Fitted on {counted(decisive, 'image')}{of} only: the calibration is uncertain.")
    if comparison.cross_fitted and fitted.worse:
        warnings.append(
            "On images that did not fit it, the calibrator raises the NLL: without it the network is better "
            "calibrated."
        )
    return warnings


def _temperatures(calibrator: Calibrator) -> list[float]:
    parameters = calibrator.parameters
    single = [parameters[name] for name in ("temperature", "suspected_temperature") if name in parameters]
    return [*single, *parameters.get("temperatures", ())]


def _nothing_to_fit(project: Project, source: Source, *, failed: int) -> dict[str, Any]:
    """The columns of a calibration that is the identity, with the reason as its warning."""
    if failed:
        reason = none_can(failed, "image of the calibration", "be read")
        remedy = "See `segcurate failures`."
    elif source == "calibration":
        reason = "No image of the calibration split has a labeled mask"
        remedy = "Put masks in `data.masks` and run `segcurate ingest`, or set `calibration.source: audit`."
    else:
        reason = (
            "There is no calibration split with masks, and no region drawn at random that the model has not "
            "seen"
        )
        remedy = "The regions of this round's queue that are drawn at random serve, once they are labeled."
        if project.config.selection.audit_training == "always":
            remedy = (
                "Models are trained on every audit (`selection.audit_training: always`): put masks in "
                "`data.masks` and run `segcurate ingest`, or set it to `auto`."
            )
    return {
        "calibrator": "identity",
        "parameters": {},
        "nll_before": None,
        "nll_after": None,
        "images": 0,
        "pixels": 0,
        "warning": f"{reason}: softmax scores stay uncalibrated. {remedy}",
    }
