"""A tiny project of real files, one Prefect server for all tests, and projects that have come some way."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import settings
from PIL import Image
from sqlalchemy import Engine, inspect

from db import migrations
from db.engine import Database
from db.queries import leases
from pipeline.data.project import Project, load_project

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")

CLASSES = ["ground", "red", "blue"]
COLOURS = np.array([[30, 30, 30], [200, 40, 40], [40, 60, 210]])


def draw(images: Path, masks: Path | None, *, name: str, seed: int, size: tuple[int, int] = (64, 48)) -> None:
    """A picture with a red and a blue square on a dark ground, and its index mask. `size` is (w, h)."""
    generator = np.random.default_rng(seed)
    width, height = size
    mask = np.zeros((height, width), dtype=np.uint8)
    for index in (1, 2):
        side = int(generator.integers(12, 22))
        x, y = int(generator.integers(0, width - 12)), int(generator.integers(0, height - 12))
        mask[y : y + side, x : x + side] = index
    picture = COLOURS[mask] + generator.integers(0, 40, (height, width, 1))
    images.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture.astype(np.uint8)).save(images / name)
    if masks is not None:
        masks.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(masks / f"{Path(name).stem}.png")


def write_config(folder: Path, **changes: Any) -> Path:
    """A configuration that trains in a second or two; `changes` replace whole sections."""
    document: dict[str, Any] = {
        "name": "squares",
        "device": "cpu",
        "data": {"images": "images", "masks": "masks", "classes": CLASSES},
        "splits": {
            "calibration": {"fraction": 0.2, "by": "block", "block": 2, "guard": 0},
            "test": {"fraction": 0.25, "by": "block", "block": 2, "guard": 0},
            "initial": {"fraction": 0.2, "unit": "region"},
            "minimum_units": 1,
            "every_class": False,
        },
        "model": QUICK["model"],
        "training": {
            "iterations": 12,
            "batch_size": 2,
            "crop": [32, 32],
            "checkpoint_every": 4,
            "transforms": [{"name": "HorizontalFlip", "p": 0.5}],
        },
        "calibration": {"pixels_per_image": 100},
        "evaluation": {"block": 2, "resamples": 100},
        "scoring": {
            "samples": 4,
            "regions": {"kind": "grid", "cell": 16},
            "batch_size": 4,
            "shard_images": 4,
            "workers": 0,
            "heatmaps": {"images": "all"},
        },
        "selection": {"budget": 12},
    }
    document.update(changes)
    path = folder / "segcurate.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


@pytest.fixture
def one_thread() -> Generator[None]:
    """As each of two processes has on two cores: with the threads, the last digit of sums changes."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _closed(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Closes what a test has opened."""
    opened: list[Database] = []
    whole = Database.__init__

    def noted(database: Database, url: str) -> None:
        whole(database, url)
        opened.append(database)

    monkeypatch.setattr(Database, "__init__", noted)
    yield
    for database in opened:
        database.close()


QUICK = {
    "model": {
        "architecture": "fpn",
        "encoder": "tu-mobilenetv3_small_050",
        "encoder_weights": "none",
        "decoder": {"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32},
    },
    "training": {"iterations": 3, "batch_size": 2, "crop": [32, 32], "transforms": []},
    "evaluation": {"block": 2, "resamples": 100},
    "scoring": {
        "sampler": "none",
        "regions": {"kind": "grid", "cell": 16},
        "batch_size": 8,
        "shard_images": 8,
        "workers": 0,
        "heatmaps": {"images": "none"},
    },
    "selection": {"budget": 6},
    "export": {"overlays": False},
    "retrain": {"min_new_labels": 4},
}
"""Settings with which a whole round takes a second or two."""


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite store that the migrations have filled, without a row."""
    path = tmp_path_factory.mktemp("store") / "empty.db"
    Database(f"sqlite:///{path}").close()
    return path


@pytest.fixture(autouse=True)
def new_stores_are_copies(empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new SQLite store is a copy of the empty one: the migrations take most of the time of a small test."""
    prepare = migrations.prepare

    def copy_and_prepare(engine: Engine) -> None:
        if engine.dialect.name == "sqlite" and not inspect(engine).get_table_names():
            with closing(sqlite3.connect(empty_store)) as source, engine.connect() as connection:
                source.backup(connection.connection.driver_connection)  # pyright: ignore[reportArgumentType]
        prepare(engine)

    monkeypatch.setattr(migrations, "prepare", copy_and_prepare)


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """A project folder with 24 images of two sizes, their masks, and a configuration."""
    for index in range(24):
        size = (64, 48) if index % 3 else (48, 64)
        draw(tmp_path / "images", tmp_path / "masks", name=f"frame_{index:03d}.png", seed=index, size=size)
    write_config(tmp_path, model=QUICK["model"])
    return tmp_path


@pytest.fixture(scope="session")
def prefect_server() -> Generator[str]:
    """The API of a Prefect server that all tests share; its database is empty at first."""
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield str(PREFECT_API_URL.value())


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipeline.operation.retrain import run_retrain
    from pipeline.operation.runner import Runner
    from pipeline.steps.ingest import ingest

    folder = tmp_path_factory.mktemp("trained")
    for index in range(16):
        draw(folder / "images", folder / "masks", name=f"frame_{index:03d}.png", seed=index)
    write_config(folder, **QUICK)
    with opened(folder) as (project, database):
        ingest(project, database)
        run_retrain(Runner(project, database), then_nightly=False)
    return folder


@pytest.fixture(scope="session")
def out_once(trained_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipeline.operation.nightly import run_nightly
    from pipeline.operation.runner import Runner

    folder = tmp_path_factory.mktemp("out") / "project"
    shutil.copytree(trained_once, folder)
    with opened(folder) as (project, database):
        run_nightly(Runner(project, database))
    return folder


@pytest.fixture
def trained(trained_once: Path, tmp_path: Path) -> Path:
    """A project with a promoted model, and nothing scored yet."""
    return Path(shutil.copytree(trained_once, tmp_path / "trained"))


@pytest.fixture
def out(out_once: Path, tmp_path: Path) -> Path:
    """The project after its first nightly run: its queue, `round-01`, is active."""
    return Path(shutil.copytree(out_once, tmp_path / "out"))


@contextmanager
def opened(folder: Path) -> Generator[tuple[Project, Database]]:
    """The project in a folder, and its database."""
    project = load_project(folder / "segcurate.yaml")
    database = Database(project.database_url)
    try:
        yield project, database
    finally:
        database.close()


@contextmanager
def another_process(database: Database, *, at: str) -> Generator[int]:
    """Another process that is alive and at this work, by its number; dead after the block."""
    names_itself = "from pipeline.processes import this_process as t; print(t(), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", names_itself], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        owner = process.stdout.readline().strip()
        with database.session() as session:
            leases.take_lease(session, name=at, owner=owner, seconds=600)
        try:
            yield process.pid
        finally:
            process.kill()


def set_option(folder: Path, section: str, key: str, value: Any) -> None:
    """Change a setting of the project's configuration."""
    path = folder / "segcurate.yaml"
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    document.setdefault(section, {})[key] = value
    path.write_text(yaml.safe_dump(document), encoding="utf-8")


def label_regions(folder: Path, *, at_least: int, close: bool = False) -> int:
    """Labels come back for the best images of the active queue, until so many regions have one.

    Returns:
        How many regions have one.
    """
    from pipeline.steps.annotate import annotate
    from pipeline.steps.import_labels import import_labels
    from pipeline.summaries.project import project_status

    with opened(folder) as (project, database):
        with database.session(write=False) as session:
            uri = project_status(session).export_folder
        assert uri is not None
        queue = folder / uri
        annotate(project, database, queue)
        labeled = 0
        for line in (queue / "manifest.jsonl").read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if labeled >= at_least:
                (queue / entry["mask"]).unlink()
            else:
                labeled += len(entry["regions"])
        import_labels(project, database, source=queue, origin="simulation", close=close)
        return labeled
