"""What the report shows, read from the database; nothing is drawn or written here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from db.queries import evaluations, queue_items, queues
from db.queries import models as model_queries
from db.queries.evaluations import Kind, assessment_of
from db.queries.runs import newest_run
from db.tables import Model, utc_now
from pipeline.data.masks import palette
from pipeline.data.project import Project
from pipeline.errors import CheckpointError
from pipeline.evaluation.confidence import confidence_of
from pipeline.format import csv_line
from pipeline.model.checkpoints import read_card
from pipeline.progress import Progress, silent
from pipeline.report.contents import Calibrated, Contents, Document, Risks
from pipeline.report.curves import RiskCurve
from pipeline.report.reliability import Reliability, null_as_nan
from pipeline.steps.ready import chosen_model
from pipeline.summaries.annotators import annotator_report
from pipeline.summaries.classes import UNDEFINED
from pipeline.summaries.models import estimates, model_history
from pipeline.summaries.project import project_status
from pipeline.summaries.queues import queue_summary
from pipeline.summaries.rounds import RoundSummary
from pipeline.summaries.simulations import SimulationSummary

FIRST_ITEMS = 15


@dataclass(frozen=True)
class EvaluatedModel:
    """A round's model and its evaluation with the sampler of the scores: reliability before and after
    calibration, and the error rate over coverage."""

    number: int
    model: Model
    split: str
    before: Reliability | None
    after: Reliability | None
    risks: Risks | None


def read_contents(
    session: Session,
    project: Project,
    history: Sequence[RoundSummary],
    simulation: SimulationSummary | None,
    *,
    progress: Progress = silent,
) -> Contents:
    """Everything on the page but its galleries.

    Raises:
        UserError: no model has been trained yet.
    """
    config = project.config
    sampler, names = config.scoring.sampler, config.data.class_names
    model = chosen_model(session, None)
    split = next((row.split for row in evaluations.model_evaluations(session, model.id)), "test")

    def document(kind: Kind) -> Document | None:
        stored = assessment_of(session, model_id=model.id, kind=kind)
        return None if stored is None else stored.document

    run = newest_run(session, model.id, finished=False)
    queue = next((row for row in reversed(queues.list_queues(session)) if row.kind == "selected"), None)
    items = [] if queue is None else queue_items.queued_regions(session, queue_id=queue.id)
    return Contents(
        project=config.name,
        written_at=utc_now(),
        class_names=names,
        class_colors=palette(config.data),
        model=model.name,
        split=split,
        sampler=sampler,
        status=project_status(session),
        newest=history[-1] if history else None,
        rounds=[row for row in history if row.split is not None],
        audited=[row for row in history if row.unlabeled is not None],
        calibrated=_calibrated(session, model, split=split, sampler=sampler),
        risks=_risks(session, model, split=split, sampler=sampler),
        quality=document("quality"),
        stress=document("stress"),
        novelty=document("novelty"),
        scoring=None if run is None else run.summary,
        queue=None if queue is None else queue_summary(session, queue, class_names=names, head=FIRST_ITEMS),
        queue_groups=Counter(image.group_name for _, image in items),
        annotators=annotator_report(session, project, progress=progress),
        simulation=simulation,
        models=model_history(session, class_names=names, sampler=project.config.scoring.sampler),
        training=_training_curve(project, model),
    )


def _training_curve(project: Project, model: Model) -> dict[str, list[float]]:
    """The course of the model's training; empty where its card cannot be read or does not hold it."""
    try:
        return read_card(project.path(model.checkpoint_uri)).curve
    except CheckpointError:
        return {}


def evaluated_models(
    session: Session, project: Project, history: Sequence[RoundSummary]
) -> list[EvaluatedModel]:
    """The evaluated model of each round, oldest first."""
    sampler = project.config.scoring.sampler
    models = {model.name: model for model in model_queries.list_models(session)}
    evaluated: list[EvaluatedModel] = []
    for row in history:
        if row.model is not None and row.split is not None:
            model = models[row.model]
            before, after = _reliability(session, model, split=row.split, sampler=sampler)
            risks = _risks(session, model, split=row.split, sampler=sampler)
            evaluated.append(EvaluatedModel(row.number, model, row.split, before, after, risks))
    return evaluated


def metrics_table(session: Session, project: Project, history: Sequence[RoundSummary]) -> str:
    """Every metric of every evaluation as CSV."""
    head = "round model status split split_version sampler calibrated metric class value low high"
    lines = [csv_line(head.split())]
    names = project.config.data.class_names
    models = {model.name: model for model in model_queries.list_models(session)}
    for row in history:
        if row.model is None:
            continue
        model = models[row.model]
        for evaluation in evaluations.model_evaluations(session, model.id):
            variant = (evaluation.split, evaluation.sampler, evaluation.calibrated)
            metrics = evaluations.metrics_of(
                session, model_id=model.id, split=variant[0], sampler=variant[1], calibrated=variant[2]
            )
            for (name, index), metric in sorted(metrics.items()):
                class_name = names[index] if index >= 0 else ""
                of_model = [row.number, model.name, model.status]
                measured = [evaluation.split, evaluation.split_version, *variant[1:]]
                figures = [metric.value, metric.low, metric.high]
                lines.append(csv_line([*of_model, *measured, name, class_name, *figures]))
    return "".join(lines)


def _reliability(
    session: Session, model: Model, *, split: str, sampler: str
) -> tuple[Reliability | None, Reliability | None]:
    """The reliability diagrams of one sampler before and after calibration; None where not evaluated."""
    diagrams: list[Reliability | None] = []
    for calibrated in (False, True):
        evaluation = evaluations.evaluation_of(
            session, model_id=model.id, split=split, sampler=sampler, calibrated=calibrated
        )
        if evaluation is None:
            diagrams.append(None)
            continue
        known = estimates(session, model.id, split=split, sampler=sampler, calibrated=calibrated)
        ece = known.get(("ece", -1), UNDEFINED)
        diagrams.append(Reliability.from_document(evaluation.curves["reliability"], ece=ece))
    return diagrams[0], diagrams[1]


def _risks(session: Session, model: Model, *, split: str, sampler: str) -> Risks | None:
    """Error rate over coverage; after calibration where that was evaluated, else before."""
    for calibrated in (True, False):
        evaluation = evaluations.evaluation_of(
            session, model_id=model.id, split=split, sampler=sampler, calibrated=calibrated
        )
        if evaluation is not None:
            document: dict[str, Any] = evaluation.curves["risk_coverage"]
            curves = {
                name: RiskCurve(*(null_as_nan(item[key]) for key in ("risk", "low", "high")))
                for name, item in document.items()
                if name != "coverage"
            }
            return Risks(null_as_nan(document["coverage"]), curves) if curves else None
    return None


def _calibrated(session: Session, model: Model, *, split: str, sampler: str) -> list[Calibrated]:
    """The calibrated samplers of the model: that of the scores first, then the single pass."""
    stored = evaluations.model_calibrations(session, model.id)
    samplers: list[Calibrated] = []
    for name in dict.fromkeys((sampler, "none")):
        row = stored.get(name)
        if row is None:
            continue
        before, after = _reliability(session, model, split=split, sampler=name)
        samplers.append(
            Calibrated(
                sampler=name,
                calibrator=row.calibrator,
                confidence=confidence_of(row.passed, row.report),
                report=row.report,
                warning=row.warning,
                before=before,
                after=after,
            )
        )
    return samplers
