"""A retraining: a new model once there are enough new labels, and the nightly run that queues with it."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import Busy, UserError
from pipeline.operation.new_model import NewModel, round_state, train_when_due
from pipeline.operation.nightly import NightlyReport, run_nightly
from pipeline.operation.runner import Runner


@dataclass(frozen=True)
class RetrainReport(NewModel):
    """The result of a retraining: its model, and the result of the nightly run after it.

    Attributes:
        warnings: what could not be done in the nightly run.
    """

    nightly: NightlyReport | None = None
    warnings: tuple[str, ...] = ()


def run_retrain(runner: Runner, *, force: bool = False, then_nightly: bool = True) -> RetrainReport:
    """Train a model if it is due, and then score with it and export the next queue.

    Args:
        force: train even with fewer new labels than `retrain.min_new_labels`.
        then_nightly: run `run_nightly` afterwards. Where another nightly run is active, that one or the next
            one scores with the model; where it fails, that is a warning, as the model is there.

    Raises:
        Busy: another process trains a model.
        UserError: a step cannot be done; the results of the steps before it are kept.
    """
    model = train_when_due(runner, force=force)
    made = {"new_labels": model.new_labels, "name": model.name, "promoted": model.promoted}
    if not then_nightly or round_state(runner.database) not in ("score", "select", "export"):
        return RetrainReport(summary=model.summary, **made)
    try:
        nightly = run_nightly(runner, train=False)
    except Busy as busy:
        text = f"{model.summary} {busy.problem} That run or the next one scores and exports the next queue."
        return RetrainReport(summary=text, **made)
    except UserError as error:
        if model.name is None:
            raise
        return RetrainReport(summary=model.summary, warnings=(str(error),), **made)
    return RetrainReport(
        summary=f"{model.summary} {nightly.summary}", nightly=nightly, warnings=nightly.warnings, **made
    )
