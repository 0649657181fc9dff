"""A new model once enough labels have come: train, calibrate, evaluate, promote or refuse.

Like a night, a retraining is a function of the store's state: one that was killed is taken up by the next.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import models
from db.queries import rounds as round_queries
from pipeline import rounds
from pipeline.acquisition.reasons import grouped
from pipeline.data.project import Project
from pipeline.leases import alone, one_at_a_time
from pipeline.operation.nightly import NightReport, night
from pipeline.operation.runner import Perform, Say, directly, unheard
from pipeline.progress import Progress, silent


@dataclass(frozen=True)
class RetrainReport:
    """What a retraining has come to.

    Attributes:
        summary: all of it in a sentence or two.
        new_labels: labeled regions that no model had been trained on.
        model: the name of the model that was trained; None where it was too early for one.
        promoted: whether that one scores from now on.
        night: what was done with it at once.
    """

    summary: str
    new_labels: int
    model: str | None = None
    promoted: bool = False
    night: NightReport | None = None


@dataclass(frozen=True)
class Decision:
    """Whether a model is trained now, and why."""

    train: bool
    words: str
    new_labels: int


def retraining(
    project: Project,
    database: Database,
    *,
    force: bool = False,
    then_nightly: bool = True,
    perform: Perform = directly,
    say: Say = unheard,
    progress: Progress = silent,
) -> RetrainReport:
    """Train, calibrate and evaluate a model if it is time for one; it is promoted or refused.

    What is left of a queue that is out goes back to the pool, and the next round begins with the training.

    Args:
        force: train even if fewer labels than `retrain.min_new_labels` have come.
        then_nightly: score with the model, and bring the next queue out, at once and not in the next night.
        perform: how each step is run.
        say: told what each step has done, a line a time.

    Raises:
        Busy: another retraining, or then a night, is at work.
        UserError: a step cannot be done; what came before it is kept.
    """
    with alone(database, "retrain"):
        report = _retrain(project, database, force, perform, say, progress)
    with database.session(write=False) as session:
        current = round_queries.current_round(session)
    if not then_nightly or current is None or current.state not in ("score", "select", "export"):
        return report
    after = night(project, database, perform=perform, say=say, progress=progress)
    return RetrainReport(
        summary=f"{report.summary} {after.summary}",
        new_labels=report.new_labels,
        model=report.model,
        promoted=report.promoted,
        night=after,
    )


def decide(session: Session, project: Project, *, force: bool = False) -> Decision:
    """Whether it is time for a new model.

    It is when enough labels have come; when the round is closed, so that nothing else can come next; and
    when a training, calibration or evaluation was interrupted.
    """
    current = round_queries.current_round(session)
    new, enough = models.count_new_labels(session), project.config.retrain.min_new_labels
    if current is None:
        return Decision(False, "There are no labels to train on yet: `segcurate ingest` finds them.", new)
    if current.state in ("calibrate", "evaluate"):
        return Decision(True, f"Round {current.number} goes on: its model is trained.", new)
    if current.state == "train":
        return Decision(True, f"Round {current.number} waits for its model: {grouped(new)} new labels.", new)
    if force or new >= enough:
        return Decision(True, f"{grouped(new)} new labels, {grouped(enough)} are enough.", new)
    return Decision(False, f"{grouped(new)} of {grouped(enough)} new labels.", new)


@one_at_a_time("import")
def close_round(project: Project, database: Database, *, progress: Progress = silent) -> int:
    """End the round with the labels that are there, and open the next one, whose turn is training.

    Returns:
        How many regions of its queue went back to the pool without a label.
    """
    with database.session() as session:
        current = round_queries.current_round(session)
        if current is None or current.state in ("train", "calibrate", "evaluate"):
            return 0
        return rounds.close(session, current)


def _retrain(
    project: Project, database: Database, force: bool, perform: Perform, say: Say, progress: Progress
) -> RetrainReport:
    with database.session(write=False) as session:
        decision = decide(session, project, force=force)
    if not decision.train:
        return RetrainReport(summary=decision.words, new_labels=decision.new_labels)
    say(decision.words)
    from pipeline.steps.calibrate import calibrate, in_words
    from pipeline.steps.evaluate import evaluate
    from pipeline.steps.train import train

    released = perform(close_round, project, database, progress=progress)
    if released:
        say(f"The round was closed; {grouped(released)} regions went back to the pool without a label.")
    state = _state(database)
    if state == "train":
        model = perform(train, project, database, progress=progress)
        say(f"Trained {model.name}: {model.iterations} iterations, seed {model.seed}.")
        state = "calibrate"
    if state == "calibrate":
        for row in perform(calibrate, project, database, progress=progress):
            say(in_words(row))
    judged = perform(evaluate, project, database, progress=progress)
    for line in judged.lines():
        say(line)
    return RetrainReport(
        summary=judged.decision,
        new_labels=decision.new_labels,
        model=judged.model,
        promoted=judged.promoted,
    )


def _state(database: Database) -> str | None:
    with database.session(write=False) as session:
        current = round_queries.current_round(session)
        return None if current is None else current.state
