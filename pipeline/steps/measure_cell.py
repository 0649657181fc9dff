"""A cell of a simulation: the round's model on the test split, and what its labels cost to draw."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from db.engine import Database
from db.tables import Model
from pipeline import rounds
from pipeline.data.project import Project
from pipeline.evaluation.overlap import Overlap
from pipeline.progress import Progress, silent
from pipeline.steps.held_out import held_out_images, none_usable
from pipeline.steps.label_costs import label_costs
from pipeline.steps.promotion import deciding
from pipeline.steps.ready import model_of_round
from pipeline.steps.served_model import sampler_calibrators
from pipeline.studies.held_out import HeldOutImages
from pipeline.studies.measurement import measure
from pipeline.uncertainty.served_model import open_samplers

DECISION = "Used without a comparison: the test split must not influence a simulation."


def measure_cell(project: Project, database: Database, *, progress: Progress = silent) -> dict[str, Any]:
    """What the round's model has reached and what its labels cost, as JSON; writes nothing.

    The document holds the overlap with the test masks of each run of images, mIoU and ECE of the calibrated
    softmax without samples, `ece_before` calibration, and the `LabelCosts` of all labels so far.

    Raises:
        NotYourTurn: another step comes next.
        UserError: the model cannot be used, or no test image can.
    """
    with database.session(write=False) as session:
        model = model_of_round(session, rounds.require(session, "evaluate"))
        calibrators = sampler_calibrators(session, model.id, ["none"])
        images = HeldOutImages(project, held_out_images(session, project, "test"))
    sampled = open_samplers(project, model.checkpoint_uri, calibrators)
    rows = measure("test", images, sampled, config=project.config.evaluation, progress=progress)
    row = deciding(rows)
    if row is None:
        raise none_usable(images, "test")
    before = next(other for other in rows if not other.calibrated)
    overlap = Overlap.from_document(row.curves["overlap"])
    return {
        "overlap": overlap.document(),
        "miou": overlap.mean_iou,
        "ece": row.metrics[("ece", -1)].value,
        "ece_before": before.metrics[("ece", -1)].value,
        "images": row.images,
        "model": model.checkpoint_sha256,
        **asdict(label_costs(project, database)),
    }


def use_model(database: Database) -> None:
    """Let the round's model score the pool, whatever it measures."""
    with database.session() as session:
        current = rounds.require(session, "evaluate")
        model = session.get_one(Model, model_of_round(session, current).id)
        model.status, model.decision = "promoted", DECISION
        rounds.advance(session, current, "evaluate")
