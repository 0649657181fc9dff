"""The retraining flow: `segcurate retrain`, with each step as a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.artifacts import show_round
from flows.nightly import show_nightly
from flows.runner import FlowRunner, run_flow, today
from pipeline.operation.retrain import RetrainReport, run_retrain


@flow(name="retrain", flow_run_name=lambda: f"retrain {today()}", persist_result=False)
def retrain(config: Path, force: bool = False, then_nightly: bool = True) -> State[Any]:
    """Train, calibrate and evaluate a model once there are enough new labels; promote or refuse it.

    The unlabeled regions of the active queue go back to the pool. With too few labels, nothing is done.

    Args:
        config: The project's segcurate.yaml, by its absolute path.
        force: Train even with fewer new labels than `retrain.min_new_labels`.
        then_nightly: Score with the model and export the next queue now, not in the next nightly run.
    """

    def work(runner: FlowRunner) -> RetrainReport:
        report = run_retrain(runner, force=force, then_nightly=then_nightly)
        if report.nightly is not None:
            show_nightly(runner, report.nightly)
        if report.name is not None:
            if report.nightly is None or not report.nightly.changed:
                show_round(runner.project, runner.database)
            runner.name_run(f"model {report.name}", "promoted" if report.promoted else "refused")
        return report

    return run_flow(config, work, title="retrain")
