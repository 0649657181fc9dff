"""A nightly run: it ingests and scores new images, and updates the active queue.

Its steps depend on the database alone, not on the time: the next run finishes one that was killed, and a run
with nothing to do writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy.orm import Session

from db.queries import models, queue_items, queues, rounds, scores, shards
from db.queries.runs import newest_run
from db.tables import Model, Queue, Round, ScoringRun
from pipeline.data.project import Project
from pipeline.errors import NothingLeft, NotYourTurn, UserError
from pipeline.format import count
from pipeline.leases import alone
from pipeline.operation import delivery
from pipeline.operation.runner import Runner


@dataclass(frozen=True)
class NightlyReport:
    """The result of a nightly run.

    Attributes:
        summary: one or two sentences.
        model: the name of the promoted model; None where there is none yet.
        added, scored: new images, and scored images.
        queue: the name of the active queue afterwards.
        folder: where this run has exported it; None without an export.
    """

    summary: str
    model: str | None = None
    added: int = 0
    scored: int = 0
    queue: str | None = None
    folder: Path | None = None

    @property
    def changed(self) -> bool:
        """Whether there are new scores or a new queue."""
        return self.folder is not None or self.scored > 0


@dataclass(frozen=True)
class QueueUpdate:
    """The state of the queue as text, its name, and the folder if it was exported."""

    text: str
    name: str | None = None
    folder: Path | None = None


def run_nightly(runner: Runner) -> NightlyReport:
    """Ingest new images, score those that the promoted model has not scored, and update and export the queue.

    Files that cannot be used are recorded, and the run goes on. At the end old scoring runs are pruned if
    `nightly.keep_runs` is set.

    Raises:
        Busy: another nightly run is active.
        UserError: a step cannot be done; the results of the steps before it are kept.
    """
    with alone(runner.database, "nightly"):
        pulled = delivery.pull_labels(runner)
        report = _ingest_score_and_select(runner)
        pushed = delivery.push_queue(runner)
        return replace(report, summary=" ".join(filter(None, (report.summary, pulled, pushed))))


def _ingest_score_and_select(runner: Runner) -> NightlyReport:
    from pipeline.steps.ingest import ingest

    ingested = runner.run(ingest)
    with runner.database.session(write=False) as session:
        model = models.promoted_model(session)
        left = None if model is None else images_to_score(session, runner.project, model)
    new = f"{count(ingested.added)} new images" if ingested.added else "No new images"
    if model is None:
        return NightlyReport(
            summary=f"{new}; there is no model yet: `segcurate retrain` trains one.", added=ingested.added
        )
    scored = 0 if left == 0 else runner.score(any_time=True).images
    queue = update_queue(runner)
    keep_runs = runner.project.config.nightly.keep_runs
    if keep_runs is not None:
        from pipeline.steps.prune import prune

        runner.run(prune, keep_runs=keep_runs)
    return NightlyReport(
        summary=f"{new}, {count(scored) if scored else 'none'} scored by {model.name}; {queue.text}",
        model=model.name,
        added=ingested.added,
        scored=scored,
        queue=queue.name,
        folder=queue.folder,
    )


def images_to_score(session: Session, project: Project, model: Model) -> int | None:
    """The number of images that the promoted model has not scored, as far as the database alone shows.

    Returns:
        0 when all are scored; None when it depends on the model's files or on region maps.
    """
    scoring = project.config.scoring
    current = rounds.current_round(session)
    if scoring.sampler == "ensemble" or scoring.regions.kind == "file":
        return None
    if current is None or current.state == "score":
        return None
    run = _finished_run(session, project, model)
    return None if run is None else shards.count_to_score(session, run_id=run.id)


def update_queue(runner: Runner) -> QueueUpdate:
    """Select and export when these steps come next, or when labeling of the active queue has not begun and
    there are new images to choose from; otherwise report what is missing."""
    project, database = runner.project, runner.database
    with database.session(write=False) as session:
        current = rounds.current_round(session)
        if current is None or current.state in ("train", "calibrate", "evaluate", "score"):
            return QueueUpdate(_waits_for_training(current))
        queue = queues.round_queue(session, current.id)
        unseen = 0 if queue is None else unseen_images(session, project, queue)
        waiting = None if queue is None or current.state != "import" else _waiting(session, queue, unseen)
    withdrawn = ""
    if queue is not None and waiting is not None:
        if not unseen or project.config.nightly.refresh == "never":
            return QueueUpdate(waiting, name=queue.name)
        try:
            if delivery.is_begun(project, database, queue):
                return QueueUpdate(waiting, name=queue.name)
            released = delivery.withdraw(project, database, queue)
        except UserError as error:
            return QueueUpdate(f"{waiting} {error.problem}", name=queue.name)
        withdrawn = f"{queue.name} was withdrawn unlabeled, {count(released)} regions; "
    from pipeline.steps.export import export
    from pipeline.steps.select import select

    try:
        if current.state != "export" or unseen:
            runner.run(select)
        folder = runner.run(export).folder
    except NothingLeft as error:
        return QueueUpdate(f"{withdrawn}{error.problem[0].lower()}{error.problem[1:]}")
    except NotYourTurn:
        return QueueUpdate(f"{withdrawn}a retraining has closed the round meanwhile.")
    with database.session(write=False) as session:
        queue = queues.current_queue(session)
        items = {} if queue is None else queue_items.count_items(session, queue.id)
    name = folder.name if queue is None else queue.name
    return QueueUpdate(
        f"{withdrawn}{name} is active: {count(sum(items.values()))} regions to label.",
        name=name,
        folder=folder,
    )


def unseen_images(session: Session, project: Project, queue: Queue) -> int:
    """The number of images that were scored after a queue was selected, and so were no candidates for it."""
    model = models.promoted_model(session)
    run = None if model is None else _finished_run(session, project, model)
    if run is None:
        return 0
    scored = scores.count_scored(session, run_id=run.id)
    if run.id == queue.run_id:
        return max(0, scored - queue.spec.get("images", scored))
    return scored


def _finished_run(session: Session, project: Project, model: Model) -> ScoringRun | None:
    """The model's newest run, if it is finished and was made with the current settings."""
    run = newest_run(session, model.id, finished=False, settings=project.config.scoring.provenance())
    return run if run is not None and run.finished_at is not None else None


def _waiting(session: Session, queue: Queue, unseen: int) -> str:
    items = queue_items.count_items(session, queue.id)
    text = (
        f"{queue.name} is active: {count(items.get('queued', 0))} of {count(sum(items.values()))} regions "
        "wait for labels"
    )
    if unseen:
        text += f"; {count(unseen)} new images are scored and wait for the next queue"
    return f"{text}."


def _waits_for_training(current: Round | None) -> str:
    if current is None:
        return "there are no labels to train on yet."
    if current.state == "score":
        return f"round {current.number} waits for its scores: `segcurate score`."
    return f"round {current.number} waits for its model: `segcurate retrain` comes next."
