"""Steps as Prefect tasks, and a project whose log lines are shown in the flow run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger
from prefect.tasks import Task, exponential_backoff
from sqlalchemy.exc import DBAPIError

from db.engine import Database, connection_lost
from pipeline.data.project import Project, load_project
from pipeline.ownership import open_database

Result = TypeVar("Result")

LOGGED = ("pipeline", "db")
"""The packages whose log lines a flow run shows."""
FIRST_DELAY = 2.0
"""Seconds before the first retry of a step after a lost connection; each further wait is twice as long."""


@contextmanager
def opened(config: Path) -> Generator[tuple[Project, Database]]:
    """The project and its database, which is closed at the end; the flow run shows what the steps log."""
    project = load_project(config)
    database = open_database(project)
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


def as_task(step: Callable[..., Result], project: Project, database: Database, **options: Any) -> Result:
    """Run a step as a task of the current flow run. Nothing is cached or stored; the task is retried only
    when a connection was lost."""
    name = step.__name__.replace("_", "-")
    return of_step(_run, name)(lambda: step(project, database, **options))


def of_step(work: Callable[..., Result], name: str) -> Task[..., Result]:
    """A function as a task with segcurate's task settings."""
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


def log_line(line: str) -> None:
    """Write a line into the flow run's log."""
    get_run_logger().info("%s", line)


def _run(work: Callable[[], Result]) -> Result:
    return work()


def _may_work_again(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a connection was lost; a retry would not help after any other error."""
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
    """Shows a log line in the flow run, whichever thread it comes from."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._run = get_run_logger()

    def emit(self, record: logging.LogRecord) -> None:
        self._run.log(record.levelno, "%s", record.getMessage())
