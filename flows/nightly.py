"""The nightly flow: what `segcurate nightly` does, with each step as a task."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

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

from db.engine import Database
from flows.artifacts import link_export, show_queue, show_round
from flows.tasks import as_task, ended, opened, rename_run, say, this_run
from pipeline.acquisition.reasons import grouped
from pipeline.data.project import Project
from pipeline.operation.nightly import NightReport, night

Result = TypeVar("Result")

LATE = timedelta(hours=1)
"""A run that begins so long after its time gives way to a newer one that is due."""
SOON = timedelta(minutes=10)
"""A run that waits for the slot of the one before it is put off by less."""


@flow(name="nightly", flow_run_name=lambda: f"nightly {today()}", persist_result=False)
def nightly(config: Path) -> State[Any]:
    """Ingest and score what is new, and bring the queue that people label from up to date.

    A run with nothing to do only looks. Two at once: the second ends at once, as `Skipped`.

    Args:
        config: The project's segcurate.yaml, by its absolute path.
    """
    newer = newer_run_is_due()
    if newer:
        return Completed(name="Skipped", message=newer)

    def work() -> NightReport:
        with opened(config) as (project, database):
            report = night(project, database, perform=perform_night("nightly"), say=say)
            show_night(project, database, report)
            rename_night("nightly", report)
            return report

    return ended(work)


def perform_night(title: str) -> Callable[..., Any]:
    """How a flow performs the steps of a night: as tasks, and scoring as several.

    Args:
        title: of the flow run, which is named after what is scored.
    """

    def perform(step: Callable[..., Result], project: Project, database: Database, **options: Any) -> Result:
        from pipeline.steps.score import score
        from pipeline.steps.score.step import ScoringPlan

        if step is not score:
            return as_task(step, project, database, **options)
        from flows.scoring import score_pool

        def planned(plan: ScoringPlan) -> None:
            rename_run(f"{title} {today()}", f"model {plan.model}", f"{grouped(plan.images)} images")
            say(f"{grouped(plan.images)} images in {grouped(plan.shards)} shards wait for {plan.model}.")

        return score_pool(project, database, planned=planned, **options)  # type: ignore[return-value]

    return perform


def rename_night(title: str, report: NightReport) -> None:
    """Name the flow run after what it has done."""
    if report.model is not None:
        images = f"{grouped(report.scored)} images" if report.scored else "nothing new"
        rename_run(f"{title} {today()}", f"model {report.model}", images)


def show_night(project: Project, database: Database, report: NightReport) -> None:
    """The artifacts of a night: the queue, the round, and where it was exported."""
    if report.folder is not None:
        show_queue(project, database)
        link_export(project, report.folder)
    if report.changed:
        show_round(project, database)


def newer_run_is_due() -> str:
    """Why this run, which is late, gives way to a newer one of its deployment; empty when it does not."""
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
        f"This run was due at {expected:%Y-%m-%d %H:%M} UTC; {newer[0].name}, which is newer, does its work."
    )


def today() -> str:
    """The date here, as run names have it."""
    return f"{datetime.now().astimezone():%Y-%m-%d}"
