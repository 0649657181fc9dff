"""A loop without an annotator: whole rounds, with labels from existing masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from db.queries import queues
from db.queries import rounds as round_queries
from db.tables import Round
from pipeline.errors import UserError
from pipeline.operation.runner import Runner
from pipeline.rounds import WITHOUT_MODEL
from pipeline.steps.annotate import annotate
from pipeline.steps.calibrate import calibrate
from pipeline.steps.evaluate import evaluate
from pipeline.steps.export import export
from pipeline.steps.import_labels import import_labels
from pipeline.steps.ingest import ingest
from pipeline.steps.ready import require_positive
from pipeline.steps.score import score
from pipeline.steps.select import select
from pipeline.steps.train import train

STEPS: dict[str, Callable[..., object]] = {
    "train": train,
    "calibrate": calibrate,
    "evaluate": evaluate,
    "score": score,
    "select": select,
    "export": export,
}


def play_rounds(runner: Runner, *, rounds: int) -> None:
    """Ingest, if that was not done; then run the steps that come next until the model of round `rounds` is
    evaluated and its queue exported.

    Each step is committed before the next begins, so a killed loop that is started again continues
    from its last step. The log gets one line a step, `round 2: train`, before the step.

    Args:
        rounds: the number of the last round, at least 1; the queue of that round is left unlabeled.

    Raises:
        UserError: the project has no labels to start with, or a step cannot be done.
    """
    require_positive("--rounds", rounds)
    with runner.database.session(write=False) as session:
        begun = round_queries.current_round(session) is not None
    if not begun:
        runner.run(ingest)
    while True:
        current = current_round(runner)
        if current.number == WITHOUT_MODEL:
            raise _no_masks()
        if current.number > rounds or (current.number == rounds and current.state == "import"):
            return
        runner.log(f"round {current.number}: {current.state}")
        take_step(runner, current)


def current_round(runner: Runner) -> Round:
    """The current round.

    Raises:
        UserError: nothing has opened one.
    """
    with runner.database.session(write=False) as session:
        current = round_queries.current_round(session)
    if current is None:
        raise _no_masks()
    return current


def take_step(runner: Runner, current: Round, **options: Mapping[str, Any]) -> None:
    """Run the step that comes next. The labels of an exported queue come from the existing masks.

    Args:
        options: of steps, by their names.
    """
    if current.state != "import":
        given = {"export": {"to": "folder"}, **options}.get(current.state, {})
        runner.call(STEPS[current.state], **given)
        return
    with runner.database.session(write=False) as session:
        queue = queues.current_queue(session)
    if queue is None or queue.export_uri is None:
        raise UserError(f"Round {current.number} has no exported queue.", "Run `segcurate export`.")
    folder = runner.project.path(queue.export_uri)
    runner.call(annotate, folder=folder)
    runner.call(import_labels, source=folder, annotator="existing masks", close=True, origin="simulation")


def _no_masks() -> UserError:
    return UserError(
        "The project has no masks to simulate an annotator with.",
        "Put masks into `data.masks`, and run `segcurate ingest`.",
    )
