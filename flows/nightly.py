"""The nightly flow: `segcurate nightly`, with each step as a task."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import State, StateType
from prefect.states import Completed

from flows.artifacts import link_export, show_queue, show_round
from flows.runner import FlowRunner, run_flow, this_run, today
from pipeline.format import counted
from pipeline.operation.nightly import NightlyReport, run_nightly

LATE = timedelta(hours=1)
"""A run that starts later than this after its due time is skipped when a newer run is due."""
SOON = timedelta(minutes=10)
"""Runs that are due within this time count as due; a run that waits for a slot is delayed by less."""


@flow(name="nightly", flow_run_name=lambda: f"nightly {today()}", persist_result=False)
def nightly(config: Path) -> State[Any]:
    """Ingest and score new images, train a model that is due, and update the active queue.

    A run with nothing to do writes nothing. While one run is active, a second one ends as `Skipped`.

    Args:
        config: The project's segcurate.yaml, by its absolute path.
    """
    newer = newer_run_is_due()
    if newer:
        return Completed(name="Skipped", message=newer)

    def work(runner: FlowRunner) -> NightlyReport:
        report = run_nightly(runner)
        show_nightly(runner, report)
        if report.model is not None:
            images = counted(report.scored, "image") if report.scored else "nothing new"
            runner.name_run(f"model {report.model}", images)
        return report

    return run_flow(config, work, title="nightly")


def show_nightly(runner: FlowRunner, report: NightlyReport) -> None:
    """The artifacts of a nightly run: the queue, the exported folder, and the round."""
    if report.folder is not None:
        show_queue(runner.project, runner.database)
        link_export(runner.project, runner.database, report.folder)
    if report.changed:
        show_round(runner.project, runner.database)


def newer_run_is_due() -> str:
    """Why this late run is skipped in favour of a newer run of its deployment; empty when it is not."""
    run, now = this_run(), datetime.now(UTC)
    if run is None or run.deployment_id is None:
        return ""
    expected = run.expected_start_time
    if expected is None or now - expected < LATE:
        return ""
    waiting = [StateType.SCHEDULED, StateType.PENDING]
    with get_client(sync_client=True) as client:
        newer = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                deployment_id=FlowRunFilterDeploymentId(any_=[run.deployment_id]),
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=waiting)),
                expected_start_time=FlowRunFilterExpectedStartTime.model_validate(
                    {"after_": expected + timedelta(seconds=1), "before_": now + SOON}
                ),
            ),
            limit=1,
        )
    if not newer:
        return ""
    return (
        f"This run was due at {expected:%Y-%m-%d %H:%M} UTC and is skipped: "
        f"the newer run {newer[0].name} is due."
    )
