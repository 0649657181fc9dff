"""A nightly run: it ingests new images, trains a model that is due, scores, and updates the active queue.
Where nothing is labeled yet, it selects and exports the first queue.

Its steps depend on the database alone, not on the time: the next run finishes one that was killed, and a run
with nothing to do writes nothing. So the schedule of nightly runs alone carries the loop from queue to queue.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from sqlalchemy.orm import Session

from db.queries import models, queue_items, queues, rounds, scores, shards
from db.queries.runs import newest_run
from db.tables import Model, Queue, Round, ScoringRun
from pipeline.data.project import Project
from pipeline.errors import Busy, NothingLeft, NotYourTurn, UserError
from pipeline.format import agree, count, counted, out_of
from pipeline.leases import alone
from pipeline.operation import delivery
from pipeline.operation.new_model import NewModel, train_when_due
from pipeline.operation.runner import Runner
from pipeline.rounds import WITHOUT_MODEL


@dataclass(frozen=True)
class NightlyReport:
    """The result of a nightly run.

    Attributes:
        summary: one or two sentences.
        warnings: what could not be done, or not with every file.
        model: the name of the promoted model; None where there is none yet.
        trained: the name of the model that this run has trained; None where none was due.
        added, scored: new images, and scored images.
        queue: the name of the active queue afterwards.
        folder: where this run has exported it; None without an export.
    """

    summary: str
    warnings: tuple[str, ...] = ()
    model: str | None = None
    trained: str | None = None
    added: int = 0
    scored: int = 0
    queue: str | None = None
    folder: Path | None = None

    @property
    def changed(self) -> bool:
        """Whether there is a new model, new scores or a new queue."""
        return self.folder is not None or self.scored > 0 or self.trained is not None


@dataclass(frozen=True)
class QueueUpdate:
    """The state of the queue as text, its name, the folder if it was exported, and the number of images that
    could not be."""

    text: str
    name: str | None = None
    folder: Path | None = None
    unreadable: int = 0


@dataclass
class _Problems:
    """What went wrong in a nightly run: parts of it that were not done, and files that were not used."""

    errors: list[UserError] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    @property
    def warnings(self) -> tuple[str, ...]:
        return (*(str(error) for error in self.errors), *self.files)

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keep a user's mistake in this part of the run, and go on with the next part."""
        try:
            yield
        except UserError as error:
            self.errors.append(error)

    def failure(self) -> UserError:
        """All errors as one, for a run in which nothing else was done."""
        if len(self.errors) == 1:
            return self.errors[0]
        return UserError(" ".join(map(str, self.errors)))

    def unusable(self, number: int, thing: str, what: str) -> None:
        """Count files that were left out."""
        if number:
            self.files.append(f"{counted(number, thing)} {what}: `segcurate failures` says why.")


def run_nightly(runner: Runner, *, train: bool = True) -> NightlyReport:
    """Ingest new images, train a model that is due, score what the promoted model has not scored, and update
    and export the queue.

    Where labels cannot be pulled, a model cannot be trained, or a queue cannot be refreshed or pushed, the
    run warns and goes on; so it does with files that cannot be used. At the end old scoring runs are pruned
    if `nightly.keep_runs` is set.

    Args:
        train: False where a model has just been trained; `nightly.retrain: never` has the same effect.

    Raises:
        Busy: another nightly run is active.
        UserError: a step cannot be done, or a part failed and nothing else was left to do; the results of the
            steps before it are kept.
    """
    problems = _Problems()
    with alone(runner.database, "nightly"):
        with problems.collected():
            rejected = delivery.pull_labels(runner)
            problems.unusable(rejected, "mask", "of the labeling server could not be imported")
        report = _ingest_train_and_queue(runner, problems, train=train)
        with problems.collected():
            delivery.push_queue(runner)
    if problems.errors and not (report.changed or report.added):
        raise problems.failure()
    return replace(report, warnings=problems.warnings)


def _ingest_train_and_queue(runner: Runner, problems: _Problems, *, train: bool) -> NightlyReport:
    from pipeline.steps.ingest import ingest

    ingested = runner.run(ingest)
    problems.unusable(ingested.failures, "file", "could not be used")
    new = counted(ingested.added, "new image") if ingested.added else "No new images"
    trained: NewModel | None = None
    if train and runner.project.config.nightly.retrain == "due":
        with problems.collected():
            trained = _train(runner)
    model, scored = _score(runner, problems)
    if model is None and not _is_first_queue(runner):
        if problems.errors:
            raise problems.failure()
        return NightlyReport(f"{new}; there is no model yet: {_why_none(runner)}", added=ingested.added)
    queue = QueueUpdate("the queue was not refreshed.")
    with problems.collected():
        queue = update_queue(runner)
    problems.unusable(queue.unreadable, "image", "could not be exported")
    keep_runs = runner.project.config.nightly.keep_runs
    if keep_runs is not None:
        from pipeline.steps.prune import prune

        runner.run(prune, keep_runs=keep_runs)
    judged = f"{trained.summary} " if trained is not None and trained.name is not None else ""
    by = f", {count(scored) if scored else 'none'} scored by {model}" if model is not None else ""
    return NightlyReport(
        summary=f"{judged}{new}{by}; {queue.text}",
        model=model,
        trained=None if trained is None else trained.name,
        added=ingested.added,
        scored=scored,
        queue=queue.name,
        folder=queue.folder,
    )


def _train(runner: Runner) -> NewModel | None:
    """Train the model that is due; None where another process does so, or has just done so."""
    try:
        return train_when_due(runner)
    except (Busy, NotYourTurn) as other:
        runner.log(f"No model is trained here. {other.problem}")
        return None


def _score(runner: Runner, problems: _Problems) -> tuple[str | None, int]:
    """Score with the promoted model, and again where another one was promoted meanwhile.

    Returns:
        The name of the promoted model, None where there is none, and the number of scored images.
    """
    scored, last = 0, None
    while True:
        with runner.database.session(write=False) as session:
            model = models.promoted_model(session)
            left = None if model is None else images_to_score(session, runner.project, model)
        if model is None or left == 0 or model.name == last:
            return (None if model is None else model.name), scored
        last = model.name
        report = runner.score(any_time=True)
        scored += report.images
        problems.unusable(report.failed, "image", "could not be scored")


def _is_first_queue(runner: Runner) -> bool:
    """Whether the queue that comes before the first model is due, or out."""
    with runner.database.session(write=False) as session:
        current = rounds.current_round(session)
        return current is not None and current.number == WITHOUT_MODEL


def _why_none(runner: Runner) -> str:
    with runner.database.session(write=False) as session:
        current = rounds.current_round(session)
    return _waits_for_training(current)


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
    there are new images to choose from; otherwise report what is missing.

    Raises:
        UserError: the queue cannot be refreshed. It is withdrawn only once its replacement can be written.
    """
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
        if (
            not unseen
            or project.config.nightly.refresh == "never"
            or delivery.is_begun(project, database, queue)
        ):
            return QueueUpdate(waiting, name=queue.name)
        delivery.check_export(project)
        released = delivery.withdraw(project, database, queue)
        withdrawn = f"{queue.name} was withdrawn unlabeled, {counted(released, 'region')}; "
    from pipeline.steps.export import export
    from pipeline.steps.select import select

    try:
        if current.state != "export" or unseen:
            runner.run(select)
        exported = runner.run(export)
    except NothingLeft as error:
        return QueueUpdate(f"{withdrawn}{error.problem[0].lower()}{error.problem[1:]}")
    except NotYourTurn:
        return QueueUpdate(f"{withdrawn}a retraining has closed the round meanwhile.")
    with database.session(write=False) as session:
        queue = queues.current_queue(session)
        items = {} if queue is None else queue_items.count_items(session, queue.id)
    name = exported.folder.name if queue is None else queue.name
    return QueueUpdate(
        f"{withdrawn}{name} is active: {counted(sum(items.values()), 'region')} to label.",
        name=name,
        folder=exported.folder,
        unreadable=len(exported.failed),
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
        f"{queue.name} is active: {out_of(items.get('queued', 0), sum(items.values()), 'region')} "
        f"{agree(items.get('queued', 0), 'waits', 'wait')} for labels"
    )
    if unseen:
        waiting = agree(unseen, "is scored and waits", "are scored and wait")
        text += f"; {counted(unseen, 'new image')} {waiting} for the next queue"
    return f"{text}."


def _waits_for_training(current: Round | None) -> str:
    if current is None:
        return "no image of the pool is known yet."
    if current.state == "score":
        return f"round {current.number} waits for its scores: `segcurate score`."
    return f"round {current.number} waits for its model: `segcurate retrain` comes next."
