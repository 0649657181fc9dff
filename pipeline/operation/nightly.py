"""One night: what is new is ingested and scored, and the queue that people label from is brought up to date.

A night is a function of the store's state, not of the time: one that was killed is taken up by the next, and
one with nothing to do only looks. The command and the flow walk these same steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import models, queue_items, queues, rounds, scores, shards
from db.queries import runs as run_queries
from db.tables import Model, Queue, Round, ScoringRun
from pipeline.acquisition.reasons import grouped
from pipeline.data.project import Project
from pipeline.errors import NothingLeft, NotYourTurn, UserError
from pipeline.leases import alone
from pipeline.operation import delivery
from pipeline.operation.runner import Perform, Say, directly, unheard
from pipeline.progress import Progress, silent


@dataclass(frozen=True)
class NightReport:
    """What a night has done.

    Attributes:
        summary: all of it in a sentence or two.
        model: the name of the model that scores; None where there is none yet.
        added, scored: images that are new, and that were scored.
        queue: the round's queue that is out after the night.
        folder: where it was exported to, if it was this night.
    """

    summary: str
    model: str | None = None
    added: int = 0
    scored: int = 0
    queue: str | None = None
    folder: Path | None = None

    @property
    def changed(self) -> bool:
        """Whether there is anything new to look at."""
        return self.folder is not None or self.scored > 0


@dataclass(frozen=True)
class QueueNews:
    """What became of the queue, in words, and its name and folder if it was exported."""

    words: str
    name: str | None = None
    folder: Path | None = None


def night(
    project: Project,
    database: Database,
    *,
    perform: Perform = directly,
    say: Say = unheard,
    progress: Progress = silent,
) -> NightReport:
    """Ingest what is new, score what the serving model has not scored, and refresh and export the queue.

    Files that cannot be used are recorded, and the night goes on. At the end old runs are pruned, where
    `nightly.keep_runs` says so.

    Args:
        perform: how each step is run.
        say: told what each step has done, a line a time.

    Raises:
        Busy: another night is at work.
        UserError: a step cannot be done; what came before it is kept.
    """
    with alone(database, "nightly"):
        fetched = delivery.fetch(project, database, perform=perform, say=say, progress=progress)
        report = _night(project, database, perform, say, progress)
        sent = delivery.send(project, database, perform=perform, say=say, progress=progress)
        return replace(report, summary=" ".join(filter(None, (report.summary, fetched, sent))))


def _night(
    project: Project, database: Database, perform: Perform, say: Say, progress: Progress
) -> NightReport:
    from pipeline.steps.ingest import ingest

    ingested = perform(ingest, project, database, progress=progress)
    for line in ingested.lines():
        say(line)
    with database.session(write=False) as session:
        model = models.promoted_model(session)
        left = None if model is None else to_score(session, project, model)
    news = f"{grouped(ingested.added)} new images" if ingested.added else "no new images"
    if model is None:
        summary = f"{news}; there is no model yet: `segcurate retrain` trains one."
        return NightReport(summary=summary[0].upper() + summary[1:], added=ingested.added)
    scored = 0
    if left != 0:
        from pipeline.steps.score import score

        report = perform(score, project, database, any_time=True, progress=progress)
        scored = report.images
        for line in report.lines():
            say(line)
    queue = bring_queue_out(project, database, perform=perform, say=say, progress=progress)
    if project.config.nightly.keep_runs is not None:
        from pipeline.steps.prune import prune

        for line in perform(prune, project, database, keep_runs=project.config.nightly.keep_runs).lines():
            say(line)
    summary = f"{news}, {grouped(scored) if scored else 'none'} scored by {model.name}; {queue.words}"
    return NightReport(
        summary=summary[0].upper() + summary[1:],
        model=model.name,
        added=ingested.added,
        scored=scored,
        queue=queue.name,
        folder=queue.folder,
    )


def to_score(session: Session, project: Project, model: Model) -> int | None:
    """How many images wait for the scores of the serving model, as far as the store alone can say.

    Returns:
        0 when nothing is to be done; None when that takes a look at the model, or at region maps.
    """
    scoring = project.config.scoring
    current = rounds.current_round(session)
    if scoring.sampler == "ensemble" or scoring.regions.kind == "file":
        return None  # other models, and files, tell whether the scores are those of now
    if current is None or current.state == "score":
        return None
    run = _finished_run(session, project, model)
    return None if run is None else shards.count_to_score(session, run_id=run.id)


def bring_queue_out(
    project: Project,
    database: Database,
    *,
    perform: Perform = directly,
    say: Say = unheard,
    progress: Progress = silent,
) -> QueueNews:
    """Select and export when it is the turn of that, or when nobody has begun the queue and there is more to
    choose from; else say what is waited for."""
    with database.session() as session:
        current = rounds.current_round(session)
        if current is None or current.state in ("train", "calibrate", "evaluate", "score"):
            return QueueNews(words=_waits_for_training(current))
        queue = queues.round_queue(session, current.id)
        unseen = 0 if queue is None else unseen_images(session, project, queue)
        exports_only = current.state == "export" and not unseen
        waiting = None
        if queue is not None and current.state == "import":
            waiting = _waiting(session, queue, unseen)
            if not unseen or project.config.nightly.refresh == "never":
                return QueueNews(words=waiting, name=queue.name)
    taken_back = ""
    if queue is not None and waiting is not None:
        try:
            if delivery.is_begun(project, database, queue):
                return QueueNews(words=waiting, name=queue.name)
            released = delivery.take_back(project, database, queue)
        except UserError as error:
            return QueueNews(words=f"{waiting} {error.problem}", name=queue.name)
        taken_back = f"{queue.name} was taken back untouched, {grouped(released)} regions; "
    try:
        folder = _select_and_export(project, database, exports_only, perform, say, progress)
    except NothingLeft as error:
        return QueueNews(words=f"{taken_back}{error.problem[0].lower()}{error.problem[1:]}")
    except NotYourTurn:
        return QueueNews(words=f"{taken_back}the round was closed meanwhile: a retraining is at work.")
    with database.session(write=False) as session:
        current = rounds.current_round(session)
        queue = None if current is None else queues.round_queue(session, current.id)
        items = {} if queue is None else queue_items.count_items(session, queue.id)
    name = folder.name if queue is None else queue.name
    say(f"Exported {name} to {folder}.")
    words = f"{taken_back}{name} is out: {grouped(sum(items.values()))} regions to label."
    return QueueNews(words=words, name=name, folder=folder)


def _select_and_export(
    project: Project, database: Database, exports_only: bool, perform: Perform, say: Say, progress: Progress
) -> Path:
    from pipeline.steps.export import export
    from pipeline.steps.select import select

    if not exports_only:
        for line in perform(select, project, database, progress=progress).lines():
            say(line)
    return perform(export, project, database, progress=progress)


def unseen_images(session: Session, project: Project, queue: Queue) -> int:
    """How many images have been scored since a queue was made, and could not be chosen for it."""
    model = models.promoted_model(session)
    run = None if model is None else _finished_run(session, project, model)
    if run is None:
        return 0
    scored = scores.count_scored(session, run_id=run.id)
    if run.id == queue.run_id:
        return max(0, scored - queue.spec.get("images", scored))
    return scored


def _finished_run(session: Session, project: Project, model: Model) -> ScoringRun | None:
    """The model's newest run, if it is finished and was made with the settings of now."""
    runs = run_queries.model_runs(session, model_id=model.id)
    settings = project.config.scoring.provenance()
    if not runs or runs[0].finished_at is None:
        return None
    return runs[0] if settings.items() <= runs[0].scorer.items() else None


def _waiting(session: Session, queue: Queue, unseen: int) -> str:
    items = queue_items.count_items(session, queue.id)
    words = (
        f"{queue.name} is out: {grouped(items.get('queued', 0))} of {grouped(sum(items.values()))} regions "
        "wait for labels"
    )
    if unseen:
        words += f"; {grouped(unseen)} new images are scored and wait for the next queue"
    return f"{words}."


def _waits_for_training(current: Round | None) -> str:
    if current is None:
        return "there are no labels to train on yet."
    if current.state == "score":
        return f"round {current.number} waits for its scores: `segcurate score`."
    return f"round {current.number} waits for its model: `segcurate retrain` comes next."
