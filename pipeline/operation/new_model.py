"""A new model: trained when it is due, calibrated, evaluated, and promoted or refused.

Nightly runs and retrainings share it. Its steps depend on the database alone: the next call finishes a
training that was killed.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import models
from db.queries import rounds as round_queries
from pipeline import rounds
from pipeline.data.project import Project
from pipeline.format import count, counted
from pipeline.leases import alone, one_at_a_time
from pipeline.operation.runner import Runner
from pipeline.progress import Progress, silent


@dataclass(frozen=True)
class NewModel:
    """The result of a call of `train_when_due`.

    Attributes:
        summary: why no model was trained, or how the new one was judged.
        new_labels: labeled regions that no model had been trained on.
        name: of the model that was trained; None where none was trained.
        promoted: whether this model was promoted.
    """

    summary: str
    new_labels: int
    name: str | None = None
    promoted: bool = False


@dataclass(frozen=True)
class Decision:
    """Whether a model is trained now, and why."""

    train: bool
    reason: str
    new_labels: int


def train_when_due(runner: Runner, *, force: bool = False) -> NewModel:
    """Train, calibrate and evaluate a model if `decide` says so; the model is promoted or refused.

    The unlabeled regions of an active queue go back to the pool, and the next round begins with the training.
    What would stop a training before its first iteration is found before the round is closed.

    Args:
        force: train even with fewer new labels than `retrain.min_new_labels`.

    Raises:
        Busy: another process trains a model.
        UserError: a step cannot be done; the results of the steps before it are kept.
    """
    with runner.database.session(write=False) as session:
        decision = decide(session, runner.project, force=force)
    if not decision.train:
        return NewModel(summary=decision.reason, new_labels=decision.new_labels)
    with alone(runner.database, "retrain"):
        return _train_and_evaluate(runner, force=force)


def decide(session: Session, project: Project, *, force: bool = False) -> Decision:
    """Whether a model is trained now.

    It is when there are enough new labels; when the round is closed, so that training is the next step; and
    when a training, calibration or evaluation was interrupted.
    """
    current = round_queries.current_round(session)
    new, enough = models.count_new_labels(session), project.config.retrain.min_new_labels
    labels = counted(new, "new label")
    if current is None:
        return Decision(False, "No image of the pool is known yet: run `segcurate ingest`.", new)
    if current.number == rounds.WITHOUT_MODEL and not new:
        return Decision(
            False, "There are no labels to train on yet: `segcurate status` says what to do.", new
        )
    if current.state in ("calibrate", "evaluate"):
        return Decision(True, f"Round {current.number} continues: its model is trained.", new)
    if current.state == "train":
        return Decision(True, f"Round {current.number} waits for its model: {labels}.", new)
    if force or new >= enough:
        return Decision(True, f"{labels}; at least {count(enough)} are needed.", new)
    return Decision(False, f"{count(new)} of {count(enough)} new labels.", new)


@one_at_a_time("import")
def close_round(project: Project, database: Database, *, progress: Progress = silent) -> int:
    """End the round with the labels imported so far, and open the next one, which begins with training.

    Returns:
        How many regions of its queue went back to the pool without a label.
    """
    with database.session() as session:
        current = round_queries.current_round(session)
        if current is None or current.state in ("train", "calibrate", "evaluate"):
            return 0
        return rounds.close(session, current)


def round_state(database: Database) -> str | None:
    """The step that comes next in the current round; None before the first round."""
    with database.session(write=False) as session:
        current = round_queries.current_round(session)
        return None if current is None else current.state


def _train_and_evaluate(runner: Runner, *, force: bool) -> NewModel:
    with runner.database.session(write=False) as session:  # again, under the lease
        decision = decide(session, runner.project, force=force)
    if not decision.train:
        return NewModel(summary=decision.reason, new_labels=decision.new_labels)
    runner.log(decision.reason)
    from pipeline.steps.calibrate import calibrate
    from pipeline.steps.evaluate import evaluate
    from pipeline.steps.train import check_training, train

    if round_state(runner.database) not in ("calibrate", "evaluate"):
        check_training(runner.project, runner.database)
    released = runner.call(close_round)
    if released:
        back = counted(released, "region")
        runner.log(f"The round was closed; {back} went back to the pool without a label.")
    state = round_state(runner.database)
    if state == "train":
        runner.run(train)
    if state in ("train", "calibrate"):
        runner.run(calibrate)
    evaluated = runner.run(evaluate)
    return NewModel(
        summary=evaluated.decision,
        new_labels=decision.new_labels,
        name=evaluated.model,
        promoted=evaluated.promoted,
    )
