"""The loop without a person: the annotator is played by masks that exist already."""

from __future__ import annotations

from collections.abc import Callable

from db.engine import Database
from db.queries import queues
from db.queries import rounds as round_queries
from pipeline.data.project import Project
from pipeline.errors import UserError
from pipeline.operation.runner import Perform, directly
from pipeline.progress import Progress, silent
from pipeline.steps.annotate import annotate
from pipeline.steps.calibrate import calibrate
from pipeline.steps.evaluate import evaluate
from pipeline.steps.export import export
from pipeline.steps.import_labels import import_labels
from pipeline.steps.score import score
from pipeline.steps.select import select
from pipeline.steps.train import train

Announce = Callable[[int, str], None]


def loop(
    project: Project,
    database: Database,
    *,
    rounds: int,
    announce: Announce = lambda number, step: None,
    perform: Perform = directly,
    progress: Progress = silent,
) -> None:
    """Run the steps that come next until the model of round `rounds` is evaluated and its queue exported.

    Each step is committed before the next begins, so a killed loop that is started again goes on from there.

    Args:
        rounds: the number of the last round, at least 1; the queue of that round is left unlabeled.
        announce: called with the round's number and the step's name before each step.
        perform: how each step is run.

    Raises:
        UserError: the project has no labels to start with, or a step cannot be done.
    """
    if rounds < 1:
        raise UserError(f"Expected `--rounds` to be at least 1, but got {rounds}.")
    while True:
        with database.session(write=False) as session:
            current = round_queries.current_round(session)
            queue = queues.round_queue(session, current.id) if current else None
        if current is None:
            raise UserError("The project has no labeled images to start with.", "Run `segcurate ingest`.")
        if current.number > rounds or (current.number == rounds and current.state == "import"):
            return
        announce(current.number, current.state)
        if current.state == "import":
            if queue is None or queue.export_uri is None:
                raise UserError(f"Round {current.number} has no exported queue.", "Run `segcurate export`.")
            folder = project.path(queue.export_uri)
            perform(annotate, project, database, folder=folder)
            perform(
                import_labels,
                project,
                database,
                source=folder,
                annotator="existing masks",
                close=True,
                origin="simulation",
                progress=progress,
            )
        else:
            options = {"to": "folder"} if current.state == "export" else {}
            perform(_STEPS[current.state], project, database, progress=progress, **options)


_STEPS: dict[str, Callable[..., object]] = {
    "train": train,
    "calibrate": calibrate,
    "evaluate": evaluate,
    "score": score,
    "select": select,
    "export": export,
}
