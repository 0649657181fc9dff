"""What the report says, read from the store into plain facts; it draws nothing and writes nothing."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from db.queries import evaluations, queue_items, queues, rounds
from db.queries import models as model_queries
from db.queries.evaluations import Kind, MetricKey, assessment_of
from db.queries.runs import newest_run
from db.tables import Metric, Model, Queue, Round, utc_now
from pipeline.data.masks import palette
from pipeline.data.project import Project
from pipeline.evaluation.estimate import Estimate, from_json
from pipeline.format import confidence_name
from pipeline.report.contents import (
    Ancestor,
    Annotator,
    Calibrated,
    Contents,
    Disputed,
    Document,
    Item,
    QueueFacts,
    Risks,
    SharedFacts,
    Standing,
)
from pipeline.report.curves import RiskCurve, RoundPoint
from pipeline.report.reliability import Reliability
from pipeline.steps.served_model import chosen_model
from pipeline.summaries.annotators import annotator_report
from pipeline.summaries.project import project_status
from pipeline.summaries.rounds import RoundSummary, model_history, round_history

FIRST_ITEMS = 15
UNDEFINED = Estimate(math.nan, math.nan, math.nan)


def read_contents(session: Session, project: Project) -> Contents:
    """Everything on the page but its galleries.

    Raises:
        UserError: no model has been trained yet.
    """
    config = project.config
    sampler = config.scoring.sampler
    model = chosen_model(session, None)
    split = next((row.split for row in evaluations.model_evaluations(session, model.id)), "test")

    def document(kind: Kind) -> Document | None:
        found = assessment_of(session, model_id=model.id, kind=kind)
        return None if found is None else found.document

    return Contents(
        project=config.name,
        written_at=utc_now(),
        class_names=config.data.class_names,
        class_colors=palette(config.data),
        model=model.name,
        split=split,
        sampler=sampler,
        standing=_standing(session, sampler=sampler),
        points=round_points(session, project),
        calibrated=_calibrated(session, model, split=split, sampler=sampler),
        risks=read_risks(session, model, split=split, sampler=sampler),
        quality=document("quality"),
        stress=document("stress"),
        novelty=document("novelty"),
        scoring=_scoring(session, model),
        queue=_queue(session, config.data.class_names),
        shared=_shared(session, project),
        lineage=_lineage(session),
    )


def evaluated_rounds(session: Session, project: Project) -> list[RoundSummary]:
    """The rounds whose model has been measured, oldest first."""
    history = round_history(session, sampler=project.config.scoring.sampler)
    return [row for row in history if row.split is not None]


def round_models(session: Session) -> Iterator[tuple[Round, Model]]:
    """Each round that has trained a model, oldest first."""
    for row in rounds.list_rounds(session):
        model = model_queries.round_model(session, row.id)
        if model is not None:
            yield row, model


def round_points(session: Session, project: Project) -> list[RoundPoint]:
    """What each round's model reached."""
    models = {row.number: model for row, model in round_models(session)}
    return [_point(session, project, row, models[row.number]) for row in evaluated_rounds(session, project)]


def read_reliability(
    session: Session, model: Model, *, split: str, sampler: str
) -> tuple[Reliability | None, Reliability | None]:
    """Of one sampler, before and after calibration."""
    found: list[Reliability | None] = []
    for calibrated in (False, True):
        chosen = {"model_id": model.id, "split": split, "sampler": sampler, "calibrated": calibrated}
        evaluation = evaluations.evaluation_of(session, **chosen)
        if evaluation is None:
            found.append(None)
            continue
        ece = _of(evaluations.metrics_of(session, **chosen), ("ece", -1))
        found.append(Reliability.from_document(evaluation.curves["reliability"], ece=ece))
    return found[0], found[1]


def read_risks(session: Session, model: Model, *, split: str, sampler: str) -> Risks | None:
    """Error rate over coverage, after calibration where there is one."""
    for calibrated in (True, False):
        evaluation = evaluations.evaluation_of(
            session, model_id=model.id, split=split, sampler=sampler, calibrated=calibrated
        )
        if evaluation is not None:
            document: dict[str, Any] = evaluation.curves["risk_coverage"]
            curves = {
                name: RiskCurve(*(_numbers(item[key]) for key in ("risk", "low", "high")))
                for name, item in document.items()
                if name != "coverage"
            }
            return Risks(_numbers(document["coverage"]), curves) if curves else None
    return None


def metrics_table(session: Session, project: Project) -> str:
    """Every metric of every evaluation as CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        [
            "round",
            "model",
            "status",
            "split",
            "sampler",
            "calibrated",
            "metric",
            "class",
            "value",
            "low",
            "high",
        ]
    )
    names = project.config.data.class_names
    for row, model in round_models(session):
        for evaluation in evaluations.model_evaluations(session, model.id):
            variant = (evaluation.split, evaluation.sampler, evaluation.calibrated)
            metrics = evaluations.metrics_of(
                session, model_id=model.id, split=variant[0], sampler=variant[1], calibrated=variant[2]
            )
            for (name, index), metric in sorted(metrics.items()):
                class_name = names[index] if index >= 0 else ""
                figures = [metric.value, metric.low, metric.high]
                writer.writerow([row.number, model.name, model.status, *variant, name, class_name, *figures])
    return stream.getvalue()


def _standing(session: Session, *, sampler: str) -> Standing:
    now = project_status(session)
    history = round_history(session, sampler=sampler)
    last = history[-1] if history else None
    return Standing(
        round_number=now.round_number,
        state=now.state,
        next_command=now.next_command,
        reason=now.reason,
        images=now.images,
        labeled_images=now.labeled_images,
        labeled_regions=last.labeled_regions if last else 0,
        labeled_share=last.labeled_share if last else 0.0,
        failures=now.failures,
        promoted=now.promoted_model,
    )


def _point(session: Session, project: Project, row: RoundSummary, model: Model) -> RoundPoint:
    metrics = evaluations.metrics_of(
        session,
        model_id=model.id,
        split=row.split or "",
        sampler=project.config.scoring.sampler,
        calibrated=True,
    )
    return RoundPoint(
        number=row.number,
        labeled_share=row.labeled_share,
        labeled_regions=row.labeled_regions,
        clicks=row.clicks,
        hours=row.hours,
        mean_iou=_estimate(*row.mean_iou),
        class_iou=tuple(_of(metrics, ("iou", index)) for index in range(project.config.data.num_classes)),
        ece_before=_estimate(*row.ece_before),
        ece_after=_estimate(*row.ece_after),
        promoted=model.status == "promoted",
    )


def _calibrated(session: Session, model: Model, *, split: str, sampler: str) -> list[Calibrated]:
    """The sampler of the scores first, then the single pass."""
    stored = evaluations.model_calibrations(session, model.id)
    found: list[Calibrated] = []
    for name in dict.fromkeys((sampler, "none")):
        row = stored.get(name)
        if row is None:
            continue
        before, after = read_reliability(session, model, split=split, sampler=name)
        found.append(
            Calibrated(
                sampler=name,
                calibrator=row.calibrator,
                confidence_name=confidence_name(row.passed),
                report=row.report,
                warning=row.warning,
                before=before,
                after=after,
            )
        )
    return found


def _scoring(session: Session, model: Model) -> Document | None:
    """The summary of the model's newest scoring run."""
    run = newest_run(session, model.id, finished=False)
    return None if run is None else run.summary


def _queue(session: Session, class_names: Sequence[str]) -> QueueFacts | None:
    queue = next((row for row in reversed(queues.list_queues(session)) if row.kind == "selected"), None)
    return None if queue is None else _queue_facts(session, queue, class_names)


def _queue_facts(session: Session, queue: Queue, class_names: Sequence[str]) -> QueueFacts:
    regions = queue_items.queued_regions(session, queue_id=queue.id)

    def class_of(index: int | None) -> str:
        return "not predicted" if index is None else class_names[index]

    return QueueFacts(
        name=queue.name,
        strategy=queue.strategy,
        unit=queue.unit,
        measure=next((item.measure for item, _ in regions if item.measure), None),
        by_class=dict(Counter(class_of(item.predicted_class) for item, _ in regions).most_common()),
        by_slice=dict(Counter(item.slice for item, _ in regions).most_common()),
        by_group=dict(Counter(image.group_name for _, image in regions).most_common()),
        by_status=dict(Counter(item.status for item, _ in regions).most_common()),
        first=[
            Item(
                rank=item.rank,
                name=Path(image.uri).name,
                class_name=class_of(item.predicted_class),
                slice=item.slice,
                status=item.status,
                score=item.score,
                reason=item.reason,
            )
            for item, image in regions[:FIRST_ITEMS]
        ],
    )


def _shared(session: Session, project: Project) -> SharedFacts | None:
    found = annotator_report(session, project)
    if not found.rows:
        return None
    return SharedFacts(
        images=found.images,
        people=[
            Annotator(one.annotator, one.images, one.pixels, from_json(one.agreement))
            for one in found.against_others
        ],
        correlations=[
            (one.measure, _estimate(one.value, one.low, one.high), one.reason or "")
            for one in found.correlations
        ],
        rows=[
            Disputed(
                name=Path(row.uri).name,
                queue=row.queue,
                rank=row.rank,
                annotators=row.annotators,
                disagreement=row.disagreement,
                vote_entropy=row.vote_entropy,
                expected_entropy=from_json(row.expected_entropy),
                mutual_information=from_json(row.mutual_information),
            )
            for row in found.rows
        ],
    )


def _lineage(session: Session) -> list[Ancestor]:
    stored = {model.name: model for _, model in round_models(session)}
    return [
        Ancestor(
            name=row.name,
            round_number=row.round_number,
            status=row.status,
            parent=row.parent,
            labels=row.labels,
            seed=row.seed,
            iterations=row.iterations,
            config_hash=row.config_hash,
            labels_hash=row.labels_hash,
            checkpoint=row.checkpoint,
            checkpoint_sha256=stored[row.name].checkpoint_sha256,
            decision=row.decision,
            created_at=row.created_at,
        )
        for row in model_history(session)
    ]


def _of(metrics: Mapping[MetricKey, Metric], key: MetricKey) -> Estimate:
    metric = metrics.get(key)
    return UNDEFINED if metric is None else _estimate(metric.value, metric.low, metric.high)


def _estimate(value: float | None, low: float | None, high: float | None) -> Estimate:
    return Estimate(*_numbers([value, low, high]).tolist())


def _numbers(values: Sequence[float | None]) -> npt.NDArray[np.float64]:
    """null is NaN."""
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)
