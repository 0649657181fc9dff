"""What a victim does, by name; each takes the path of a project's configuration."""

from __future__ import annotations

import json
import shutil
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
from pipeline.labeling.manifest import MANIFEST
from pipeline.steps.annotate import annotate
from pipeline.steps.calibrate import calibrate
from pipeline.steps.evaluate import evaluate
from pipeline.steps.export import export
from pipeline.steps.import_labels import import_labels
from pipeline.steps.ingest import ingest
from pipeline.steps.score import score
from pipeline.steps.select import select
from pipeline.steps.select.held_out import select_held_out
from pipeline.steps.train import train
from tests.real.kill.projects import ASIDE

torch.set_num_threads(1)
HELD_OUT_IMAGES = 3
IMPORTED_FOR_THE_FORKS = (export, score, select)
"""The flows import these when they come to them."""


def first_round(config: Path) -> None:
    """From nothing to a model that is ready to score."""
    with _opened(config) as (project, database):
        ingest(project, database)
        train(project, database)
        calibrate(project, database)
        evaluate(project, database)


def ingest_again(config: Path) -> None:
    """What came since is registered."""
    with _opened(config) as (project, database):
        ingest(project, database)


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


def held_out(config: Path) -> None:
    """Images for the test split: drawn, exported, painted and imported, each step that is not done yet."""
    with _opened(config) as (project, database):
        with database.session(write=False) as session:
            drawn = [(queue.name, queue.exported_at) for queue in queues.held_out_queues(session)]
        if not drawn:
            drawn = [(select_held_out(project, database, split="test", budget=HELD_OUT_IMAGES).name, None)]
        name, exported_at = drawn[0]
        if exported_at is None:
            export(project, database, queue=name)
        folder = project.path(f"queues/{name}")
        for line in (folder / MANIFEST).read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            shutil.copyfile(config.parent / ASIDE / f"{Path(entry['uri']).stem}.png", folder / entry["mask"])
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
    "ingest": ingest_again,
    "annotator": annotator,
    "held_out": held_out,
    "nightly": nightly,
    "retrain": retrain,
}
