"""A retraining: a new model once there are enough new labels, calibrated, evaluated, and promoted or refused.

Its steps depend on the database alone: the next retraining finishes one that was killed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import models
from db.queries import rounds as round_queries
from pipeline import rounds
from pipeline.data.project import Project
from pipeline.format import count
from pipeline.leases import alone, one_at_a_time
from pipeline.operation.nightly import NightlyReport, run_nightly
from pipeline.operation.runner import Runner
from pipeline.progress import Progress, silent


@dataclass(frozen=True)
class RetrainReport:
    """The result of a retraining.

    Attributes:
        summary: one or two sentences.
        new_labels: labeled regions that no model had been trained on.
        model: the name of the model that was trained; None where none was trained.
        promoted: whether this model was promoted.
        nightly: the result of the nightly run after it.
    """

    summary: str
    new_labels: int
    model: str | None = None
    promoted: bool = False
    nightly: NightlyReport | None = None


@dataclass(frozen=True)
class Decision:
    """Whether a model is trained now, and why."""

    train: bool
    reason: str
    new_labels: int


def run_retrain(runner: Runner, *, force: bool = False, then_nightly: bool = True) -> RetrainReport:
    """Train, calibrate and evaluate a model if `decide` says so; the model is promoted or refused.

    The unlabeled regions of an active queue go back to the pool, and the next round begins with the training.

    Args:
        force: train even with fewer new labels than `retrain.min_new_labels`.
        then_nightly: run `run_nightly` afterwards, which scores with the model and exports the next queue.

    Raises:
        Busy: another retraining, or then a nightly run, is active.
        UserError: a step cannot be done; the results of the steps before it are kept.
    """
    with alone(runner.database, "retrain"):
        report = _train_and_evaluate(runner, force=force)
    if not then_nightly or _state(runner.database) not in ("score", "select", "export"):
        return report
    nightly = run_nightly(runner)
    return replace(report, summary=f"{report.summary} {nightly.summary}", nightly=nightly)


def decide(session: Session, project: Project, *, force: bool = False) -> Decision:
    """Whether a model is trained now.

    It is when there are enough new labels; when the round is closed, so that training is the next step; and
    when a training, calibration or evaluation was interrupted.
    """
    current = round_queries.current_round(session)
    new, enough = models.count_new_labels(session), project.config.retrain.min_new_labels
    if current is None:
        return Decision(False, "There are no labels to train on yet: `segcurate ingest` finds them.", new)
    if current.state in ("calibrate", "evaluate"):
        return Decision(True, f"Round {current.number} continues: its model is trained.", new)
    if current.state == "train":
        return Decision(True, f"Round {current.number} waits for its model: {count(new)} new labels.", new)
    if force or new >= enough:
        return Decision(True, f"{count(new)} new labels; at least {count(enough)} are needed.", new)
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


def _train_and_evaluate(runner: Runner, *, force: bool) -> RetrainReport:
    with runner.database.session(write=False) as session:
        decision = decide(session, runner.project, force=force)
    if not decision.train:
        return RetrainReport(summary=decision.reason, new_labels=decision.new_labels)
    runner.log(decision.reason)
    from pipeline.steps.calibrate import calibrate
    from pipeline.steps.evaluate import evaluate
    from pipeline.steps.train import train

    released = runner.call(close_round)
    if released:
        runner.log(f"The round was closed; {count(released)} regions went back to the pool without a label.")
    state = _state(runner.database)
    if state == "train":
        runner.run(train)
    if state in ("train", "calibrate"):
        runner.run(calibrate)
    evaluated = runner.run(evaluate)
    return RetrainReport(
        summary=evaluated.decision,
        new_labels=decision.new_labels,
        model=evaluated.model,
        promoted=evaluated.promoted,
    )


def _state(database: Database) -> str | None:
    with database.session(write=False) as session:
        current = round_queries.current_round(session)
        return None if current is None else current.state
