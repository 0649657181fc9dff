"""What every flow is made of: steps as tasks, their words in the run's log, an end that says what came."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State, TaskRun
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed
from prefect.tasks import Task, exponential_backoff
from sqlalchemy.exc import DBAPIError

from db.engine import Database, connection_lost
from db.errors import StoreError
from pipeline.data.project import Project, load_project
from pipeline.errors import Busy, UserError

Result = TypeVar("Result")

LOGGED = ("pipeline", "db")
"""The packages whose log lines a run shows."""
FIRST_DELAY = 2.0
"""Seconds before a step is tried again when the connection was lost; then twice and four times as many."""


@contextmanager
def opened(config: Path) -> Generator[tuple[Project, Database]]:
    """The project and its database, which is closed again; what the steps log is shown in the run."""
    project = load_project(config)
    database = Database(project.database_url)
    handler = _ToRun()
    loggers = [logging.getLogger(name) for name in LOGGED]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield project, database
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
        database.close()


def ended(work: Callable[[], Any]) -> State[Any]:
    """Do a flow's work; the state that it ends in says in words what came of it.

    What the user can mend fails the run with problem and remedy, and no traceback. Where another process is
    at the same work, the run ends well, as `Skipped`.

    Args:
        work: returns a report with a `summary`.
    """
    logger = get_run_logger()
    try:
        report = work()
    except Busy as busy:
        logger.warning("%s", busy)
        return Completed(name="Skipped", message=str(busy))
    except (UserError, StoreError) as error:
        logger.error("%s", error)
        return Failed(message=str(error), data=error)
    logger.info("%s", report.summary)
    return Completed(message=report.summary, data=report)


def as_task(step: Callable[..., Result], project: Project, database: Database, **options: Any) -> Result:
    """Perform a step as a task of the flow that runs now. Nothing is cached or stored, and it is tried again
    only when a connection was lost."""
    name = step.__name__.replace("_", "-")
    return of_step(_run, name)(lambda: step(project, database, **options))


def of_step(work: Callable[..., Result], name: str) -> Task[..., Result]:
    """A function as a task with the settings that all have."""
    return task(
        name=name,
        task_run_name=name,
        retries=3,
        retry_delay_seconds=exponential_backoff(FIRST_DELAY),
        retry_jitter_factor=0.5,
        retry_condition_fn=_may_work_again,
        cache_policy=NO_CACHE,
        persist_result=False,
    )(work)


def say(line: str) -> None:
    """Write a line into the run's log."""
    get_run_logger().info("%s", line)


def rename_run(*parts: str) -> None:
    """Call the flow run what it turned out to be: `nightly 2026-11-21 · model r07 · 1 240 images`."""
    run = this_run()
    if run is not None:
        with get_client(sync_client=True) as client:
            client.update_flow_run(run.id, name=" · ".join(parts))


def this_run() -> FlowRun | None:
    """The flow run that this is in."""
    context = FlowRunContext.get()
    return None if context is None else context.flow_run


def _run(work: Callable[[], Result]) -> Result:
    return work()


def _may_work_again(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a connection was lost; what is wrong otherwise stays wrong."""
    try:
        state.result()
    except ConnectionError:
        return True
    except DBAPIError as error:
        return connection_lost(error)
    except Exception:
        return False
    return False


class _ToRun(logging.Handler):
    """Shows a log line in the run, from whatever thread it comes."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._run = get_run_logger()

    def emit(self, record: logging.LogRecord) -> None:
        self._run.log(record.levelno, "%s", record.getMessage())
