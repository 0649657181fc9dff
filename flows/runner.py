"""The runner of a flow: steps run as Prefect tasks, and the report becomes the state of the flow run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed

from db.errors import StoreError
from flows.automations import WITH_WARNINGS
from flows.tasks import as_task, log_line, opened
from pipeline.errors import Busy, UserError
from pipeline.format import agree, counted
from pipeline.operation.runner import Runner
from pipeline.progress import LoggedProgress

Result = TypeVar("Result")


class Summarised(Protocol):
    """The report of a flow."""

    @property
    def summary(self) -> str:
        """One or two sentences, the message of the flow's state."""
        ...

    @property
    def warnings(self) -> tuple[str, ...]:
        """What could not be done, or not with every file."""
        ...


@dataclass(frozen=True)
class Done:
    """The report of a flow whose result is in the database."""

    summary: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class FlowRunner(Runner):
    """Runs each step as a task of the current flow run, and scoring as several.

    Attributes:
        title: the flow run's name before the date.
    """

    title: str = ""

    def call(self, step: Callable[..., Result], **options: Any) -> Result:
        """Run a step as a task."""
        from pipeline.steps.score import score

        if step is not score:
            shown = LoggedProgress(log_line)
            return as_task(step, self.project, self.database, progress=shown, **options)
        from flows.scoring import score_pool
        from pipeline.steps.score.step import ScoringPlan

        def planned(plan: ScoringPlan) -> None:
            self.name_run(f"model {plan.model}", counted(plan.images, "image"))
            waits = agree(plan.images, "waits", "wait")
            images = counted(plan.images, "image")
            log_line(f"{images} in {counted(plan.shards, 'shard')} {waits} for {plan.model}.")

        return score_pool(self.project, self.database, planned=planned, **options)  # type: ignore[return-value]

    def name_run(self, *parts: str) -> None:
        """Name the flow run after what it does: `nightly 2026-11-21 · model r07 · 1 240 images`."""
        rename_run(f"{self.title} {today()}", *parts)


def run_flow(config: Path, work: Callable[[FlowRunner], Summarised], *, title: str) -> State[Any]:
    """Run a flow's work on a project, and return the state that the flow ends in.

    An error that the user can correct fails the run with its problem and remedy, and without a traceback.
    Where another process has the lease before any work is done, the run ends as `Skipped`, which is no
    failure. A report with warnings ends it as `Completed with warnings`.
    """
    logger = get_run_logger()
    try:
        with opened(config) as (project, database):
            report = work(FlowRunner(project, database, log=log_line, title=title))
    except Busy as busy:
        logger.warning("%s", busy)
        return Completed(name="Skipped", message=str(busy))
    except (UserError, StoreError) as error:
        logger.error("%s", error)
        return Failed(message=str(error), data=error)
    logger.info("%s", report.summary)
    if not report.warnings:
        return Completed(message=report.summary, data=report)
    for warning in report.warnings:
        logger.warning("%s", warning)
    return Completed(name=WITH_WARNINGS, message=" ".join((report.summary, *report.warnings)), data=report)


def rename_run(*parts: str) -> None:
    """Name the flow run by these parts."""
    run = this_run()
    if run is not None:
        with get_client(sync_client=True) as client:
            client.update_flow_run(run.id, name=" · ".join(parts))


def this_run() -> FlowRun | None:
    """The current flow run."""
    context = FlowRunContext.get()
    return None if context is None else context.flow_run


def today() -> str:
    """The local date, as the names of flow runs show it."""
    return f"{datetime.now().astimezone():%Y-%m-%d}"
