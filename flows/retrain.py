"""The retraining flow: what `segcurate retrain` does, with each step as a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.artifacts import show_round
from flows.nightly import perform_night, show_night, today
from flows.tasks import ended, opened, rename_run, say
from pipeline.operation.retrain import RetrainReport, retraining


@flow(name="retrain", flow_run_name=lambda: f"retrain {today()}", persist_result=False)
def retrain(config: Path, force: bool = False, then_nightly: bool = True) -> State[Any]:
    """Train, calibrate and evaluate a model once enough labels have come; promote or refuse it.

    What is left of the queue that is out goes back to the pool. With too few labels, nothing is done.

    Args:
        config: The project's segcurate.yaml, by its absolute path.
        force: Train even if fewer labels than `retrain.min_new_labels` have come.
        then_nightly: Score with the model and bring the next queue out at once, not in the next night.
    """

    def work() -> RetrainReport:
        with opened(config) as (project, database):
            report = retraining(
                project,
                database,
                force=force,
                then_nightly=then_nightly,
                perform=perform_night("retrain"),
                say=say,
            )
            if report.night is not None:
                show_night(project, database, report.night)
            if report.model is not None:
                if report.night is None or not report.night.changed:
                    show_round(project, database)
                verdict = "promoted" if report.promoted else "refused"
                rename_run(f"retrain {today()}", f"model {report.model}", verdict)
            return report

    return ended(work)
