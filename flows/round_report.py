"""The newest round as a page of Markdown: the model, its metrics, the queue, problems, the next command."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from db.engine import Database
from db.queries.failures import list_failures
from db.queries.models import list_models
from db.queries.queues import newest_round_queue
from db.queries.runs import newest_run
from flows.markdown import code, picture, plain, prose, table
from pipeline.data.project import Project
from pipeline.format import count, counted, counts, evidence, largest, named_slices, percent
from pipeline.summaries.classes import worst_class
from pipeline.summaries.project import Status, project_status
from pipeline.summaries.queues import QueueSummary, queue_summary
from pipeline.summaries.rounds import RoundSummary, round_history

SHOWN_CLASSES = 12
SHOWN_FAILURES = 5
SHOWN_ITEMS = 5

FIGURES = (
    ("mIoU", "mean_iou"),
    ("ECE before calibration", "ece_before"),
    ("ECE after calibration", "ece_after"),
    ("AUROC of error detection", "error_auroc"),
)


@dataclass(frozen=True)
class RoundReport:
    """A page of Markdown, and its summary in one line."""

    page: str
    headline: str


def round_report(project: Project, database: Database) -> RoundReport | None:
    """The report of the newest round, or None before the first."""
    config = project.config
    with database.session(write=False) as session:
        now = project_status(session)
        if now.round_number is None:
            return None
        history = round_history(session, sampler=config.scoring.sampler, class_names=config.data.class_names)
        rounds = [row for row in history if row.model]
        queue = newest_round_queue(session)
        summary = (
            None
            if queue is None
            else queue_summary(session, queue, class_names=config.data.class_names, head=SHOWN_ITEMS)
        )
        problems = _problems(session)
        decision = next((row.decision for row in list_models(session) if row.name == rounds[-1].model), None)
    parts = [f"# {plain(config.name)}, round {now.round_number}", _next(now)]
    parts += _model(project, rounds, decision)
    parts += _curve(project, rounds)
    parts += unlabeled(rounds)
    parts += _queue(summary)
    parts += ["## What went wrong", *(problems or ["Nothing."])]
    return RoundReport("\n\n".join(parts) + "\n", _headline(now, rounds))


def _headline(now: Status, rounds: Sequence[RoundSummary]) -> str:
    if not rounds:
        return f"Round {now.round_number}: no model yet"
    last = rounds[-1]
    worst = worst_class(last.classes)
    figure = "" if last.split is None else f", mIoU {plain(last.mean_iou.text())}"
    figure += "" if worst is None else f", worst class {plain(worst)}"
    return f"Round {now.round_number}: {plain(last.model)} {last.model_status}{figure}"


def _next(now: Status) -> str:
    return f"**Next:** {code(now.next_command)} — {prose(now.reason)}"


def _model(project: Project, rounds: Sequence[RoundSummary], decision: str | None) -> list[str]:
    """The model's status with the reason, and its metrics beside those of the previous model."""
    if not rounds:
        return ["No model has been trained yet."]
    last = rounds[-1]
    before = rounds[-2] if len(rounds) > 1 else None
    status = {"promoted": "promoted ✓", "refused": "refused ✗"}.get(
        last.model_status or "", last.model_status
    )
    parts = [f"## Model {plain(last.model)}: {status}"]
    if decision:
        parts.append(prose(decision))
    parts.append(
        f"Trained on {counted(last.labeled_regions, 'labeled region')} of "
        f"{counted(last.labeled_images, 'image')}, "
        f"{percent(last.labeled_share, 1)} of the pool’s pixels{_cost(last)}."
    )
    if last.split is None:
        return [*parts, "It is not measured yet."]
    columns = [f"on {last.measured_on} images", f"{last.model}"]
    if before is not None and before.split is not None:
        other = "" if before.measured_on == last.measured_on else f", on {before.measured_on} images"
        columns.append(f"{before.model}, the round before{other}")
    shown = [last, before] if len(columns) == 3 else [last]
    figures = [
        [title, *(getattr(row, name).text() for row in shown if row is not None)] for title, name in FIGURES
    ]
    level = 100 * project.config.evaluation.confidence
    parts.append(table(columns, figures))
    if len(last.classes) > 1:
        worst_first = sorted(last.classes, key=lambda one: one.iou.value if one.iou.defined else math.inf)
        rows = [(one.name, one.iou.text(), one.recall.text()) for one in worst_first[:SHOWN_CLASSES]]
        parts.append(table(("class, the worst first", "IoU", "recall"), rows))
    parts.append(
        f"In brackets, {level:g} % intervals over {evidence(last.images or 0, last.units)}; with the sampler "
        f"of the scores, {code(project.config.scoring.sampler)}. The calibrated softmax of "
        f"{plain(last.model)} is a **{last.confidence}**{plain(_because(last))}."
    )
    return parts


def _because(row: RoundSummary) -> str:
    """Why the softmax is no probability."""
    return "" if row.confidence_reason is None else f": {row.confidence_reason.rstrip('.')}"


def _cost(row: RoundSummary) -> str:
    """The estimated clicks and the measured hours of the labels, where they are known."""
    clicks = "" if row.clicks is None else f"; their regions take about {counted(round(row.clicks), 'click')}"
    hours = "" if row.hours is None else f"; the annotators took {row.hours:.1f} hours"
    return clicks + hours


def _curve(project: Project, rounds: Sequence[RoundSummary]) -> list[str]:
    """The learning curve, drawn as the report draws it."""
    measured = [row for row in rounds if row.split is not None]
    if not measured:
        return []
    from pipeline.data.masks import palette
    from pipeline.report.curves import draw_learning_curve
    from pipeline.report.figures import png_of

    data = project.config.data
    figure = draw_learning_curve(
        measured,
        class_names=data.class_names,
        colors=palette(data),
        title=f"{project.config.name}: IoU and calibration after each round",
        narrow=True,
    )
    first, last = measured[0], measured[-1]
    words = f"Learning curve: mIoU {first.mean_iou.text()} in round {first.number}"
    if last is not first:
        words += f", {last.mean_iou.text()} in round {last.number}"
    return ["## Learning curve", picture(words, png_of(figure))]


def unlabeled(rounds: Sequence[RoundSummary]) -> list[str]:
    """How good the model is on what is not labeled yet, by the newest audit; nothing before the first."""
    known = [row.unlabeled for row in rounds if row.unlabeled is not None]
    return ["## On what is not labeled yet", *map(prose, known[-1].lines())] if known else []


def _queue(queue: QueueSummary | None) -> list[str]:
    if queue is None:
        return ["## The queue", "Nothing has been selected yet."]
    chosen = "" if queue.candidates is None else f", of {count(queue.candidates)} that could have been chosen"
    measure = f", ranked by {plain(queue.measure.replace('_', ' '))}" if queue.measure else ""
    parts = [
        f"## The queue {plain(queue.name)}",
        f"{counted(queue.items, queue.unit)}{chosen}, by the strategy {code(queue.strategy)}{measure}; "
        f"{plain(counts(queue.by_status))}.",
        table(("predicted class", f"{queue.unit}s"), largest(queue.by_class, SHOWN_CLASSES).items()),
        f"Chosen: {plain(counts(named_slices(queue.by_slice)))}.",
    ]
    parts += [f"**Warning:** {prose(warning)}" for warning in queue.warnings]
    if queue.head:
        rows = [(item.rank, item.image, item.reason) for item in queue.head]
        parts.append(table(("rank", "image", "why it was selected"), rows))
    if queue.folder:
        parts.append(f"Exported to {code(queue.folder)}.")
    return parts


def _problems(session: Session) -> list[str]:
    """Files that could not be used, and the warnings of the newest run."""
    parts: list[str] = []
    failures = list_failures(session)
    if failures:
        unusable = counted(len(failures), "file")
        parts.append(f"{unusable} could not be used; {code('segcurate failures')} lists them all:")
        rows = [(row.step, row.subject, prose(row.reason)) for row in failures[:SHOWN_FAILURES]]
        parts.append(table(("step", "file", "reason"), rows))
    run = newest_run(session, None, finished=False)
    summary = (run.summary or {}) if run is not None else {}
    drift = (summary.get("drift") or {}).get("warning")
    if drift:
        parts.append(f"**Drift:** {prose(drift)}")
    guard = (summary.get("input_range") or {}).get("warning")
    if guard:
        parts.append(f"**Unlike the training images:** {prose(guard)} Their scores are unreliable.")
    return parts
