"""What a victim does, by name; each takes the path of a project's configuration."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from prefect.client.schemas.objects import State

from db.engine import Database
from db.queries import queues
from flows.nightly import nightly as nightly_flow
from flows.retrain import retrain as retrain_flow
from pipeline.data.project import Project, load_project
from pipeline.steps.annotate import annotate
from pipeline.steps.calibrate import calibrate
from pipeline.steps.evaluate import evaluate
from pipeline.steps.export import export
from pipeline.steps.import_labels import import_labels
from pipeline.steps.ingest import ingest
from pipeline.steps.score import score
from pipeline.steps.select import select
from pipeline.steps.train import train

torch.set_num_threads(1)
IMPORTED_FOR_THE_FORKS = (export, score, select)
"""The flows import these when they come to them."""


def first_round(config: Path) -> None:
    """From nothing to a model that is ready to score."""
    with _opened(config) as (project, database):
        ingest(project, database)
        train(project, database)
        calibrate(project, database)
        evaluate(project, database)


def annotator(config: Path) -> None:
    """The annotator's part: masks for the exported queue, and their import."""
    with _opened(config) as (project, database):
        with database.session(write=False) as session:
            queue = queues.current_queue(session)
        if queue is None or queue.export_uri is None:
            raise RuntimeError("There is no exported queue.")
        folder = project.path(queue.export_uri)
        annotate(project, database, folder)
        import_labels(project, database, source=folder)


def nightly(config: Path) -> None:
    """The flow, on the Prefect server that the environment names."""
    _expect_done(nightly_flow(config, return_state=True))


def retrain(config: Path) -> None:
    """The flow, and the night that follows it."""
    _expect_done(retrain_flow(config, return_state=True))


def _expect_done(state: State[Any]) -> None:
    if not state.is_completed() or state.name == "Skipped":
        raise RuntimeError(f"The flow ended as {state.name}: {state.message}")


@contextmanager
def _opened(config: Path) -> Generator[tuple[Project, Database]]:
    project = load_project(config)
    database = Database(project.database_url)
    try:
        yield project, database
    finally:
        database.close()


WORKS: dict[str, Callable[[Path], None]] = {
    "first_round": first_round,
    "annotator": annotator,
    "nightly": nightly,
    "retrain": retrain,
}
