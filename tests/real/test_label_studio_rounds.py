"""Rounds of a project whose annotators work in a real Label Studio: commands as a person types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as Picture
from sqlalchemy import select

from db.engine import Database
from db.tables import Image, Label, Model, ModelLabel, QueueItem
from pipeline.data.project import load_project
from pipeline.labeling.label_studio.tasks import mask_results
from tests.conftest import CLASSES, QUICK, draw, write_config
from tests.real.label_studio_server import EMAIL, TOKEN, RunningLabelStudio, executable

COMMAND = executable()
pytestmark = [
    pytest.mark.skipif(COMMAND is None, reason="no Label Studio: SEGCURATE_LABEL_STUDIO names none"),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def server(label_studio_server: RunningLabelStudio) -> RunningLabelStudio:
    return label_studio_server


class House:
    """A project's folder, and the commands that are typed in it."""

    def __init__(self, root: Path, server: RunningLabelStudio) -> None:
        self.root = root
        self.server = server
        (root / "images").mkdir(parents=True)
        for index in range(14):
            size = (64, 48) if index % 3 else (48, 64)
            draw(root / "images", root / "masks", name=f"frame {index:03d} ü.png", seed=index, size=size)
        write_config(
            root,
            **QUICK | {"export": {"overlays": True}},
            labeling={"tool": "label-studio", "sync": True, "label_studio": {"url": server.url}},
        )

    def run(self, *arguments: str) -> str:
        """What a command prints; it must succeed."""
        environment = {**os.environ, "LABEL_STUDIO_API_KEY": TOKEN, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", *arguments],
            cwd=self.root,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def opened(self) -> Generator[Any]:
        database = Database(load_project(self.root / "segcurate.yaml").database_url)
        with database.session(write=False) as session:
            yield session
        database.close()

    def truth(self, uri: str) -> npt.NDArray[np.uint8]:
        return np.asarray(Picture.open((self.root / uri.replace("images/", "masks/")).with_suffix(".png")))

    def stored(self) -> list[tuple[str, int, str | None, float | None, npt.NDArray[np.uint8]]]:
        """Image, version, annotator, seconds and mask of every label that was imported, oldest first."""
        with self.opened() as session:
            rows = session.execute(
                select(Label, Image.uri)
                .join(Image, Image.id == Label.image_id)
                .where(Label.source == "import")
                .order_by(Label.id)
            ).all()
            return [
                (
                    uri,
                    label.version,
                    label.annotator,
                    label.seconds,
                    np.asarray(Picture.open(self.root / label.mask_uri)),
                )
                for label, uri in rows
            ]

    def tasks(self) -> list[dict[str, Any]]:
        (project,) = self.server.get("/api/projects/", title="squares")["results"]
        return self.server.tasks(str(project["id"]))


def answer(task: dict[str, Any], mask: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """What the front end sends when a person has painted this mask and submits."""
    looks = [region for region in task["predictions"][0]["result"] if region["from_name"] == "look"]
    kind = "bitmask" if "bitmasklabels" in json.dumps(task["predictions"]) else "brush"
    painted = mask_results(mask, CLASSES, image_id=task["id"], masks=kind)
    return {"result": [*looks, *painted], "lead_time": 36.0}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, server: RunningLabelStudio) -> House:
    made = House(tmp_path_factory.mktemp("house") / "squares", server)
    for command in ("ingest", "train", "calibrate", "evaluate", "score", "select"):
        made.run(command)
    return made


def test_rounds_in_label_studio(house: House) -> None:
    """One round after the other, as each step needs the one before."""
    said = house.run("export")
    assert "images pushed to" in said
    tasks = house.tasks()
    with house.opened() as session:
        queued = select(QueueItem).where(QueueItem.slice != "initial").order_by(QueueItem.rank)
        best: dict[int, int] = {}
        for item in session.scalars(queued):
            best.setdefault(item.image_id, item.rank)
    assert [(task["data"]["image_id"], task["data"]["rank"]) for task in tasks] == list(best.items())
    assert all(task["predictions"][0]["model_version"] == "round-01 r01" for task in tasks)

    # everything but the last two: one of them skipped, one left alone
    *labeled, skipped, _left = tasks
    numbers: dict[str, int] = {}
    for task in labeled:
        mask = house.truth(task["data"]["uri"])
        sent = house.server.post(f"/api/tasks/{task['id']}/annotations/", answer(task, mask))
        numbers[task["data"]["uri"]] = sent["id"]
    house.server.post(
        f"/api/tasks/{skipped['id']}/annotations/", {"result": [], "was_cancelled": True, "lead_time": 2.0}
    )
    said = house.run("import", "--from", "label-studio")
    assert f"round-01: {len(labeled)} masks imported, 0 unchanged." in said
    assert "1 image was skipped by their annotator" in said
    came = house.stored()
    assert len(came) == len(labeled)
    for uri, version, annotator, seconds, mask in came:
        assert (version, annotator, seconds) == (1, EMAIL, 36.0)
        np.testing.assert_array_equal(mask, house.truth(uri))

    # once each; and a mask that somebody changes is the next version
    said = house.run("sync")
    assert "masks imported" not in said or "0 masks imported" in said
    assert len(house.stored()) == len(labeled)
    uri, number = next(iter(numbers.items()))
    changed = house.truth(uri).copy()
    changed[:4, :4] = 2
    first = next(task for task in tasks if task["data"]["uri"] == uri)
    house.server.patch(f"/api/annotations/{number}/", answer(first, changed))
    assert "1 mask imported" in house.run("import")
    *_, (last_uri, version, _, _, mask) = house.stored()
    assert (last_uri, version) == (uri, 2)
    np.testing.assert_array_equal(mask, changed)

    # trained on
    assert "The round is closed" in house.run("import", "--close")
    house.run("train")
    with house.opened() as session:
        model = session.scalars(select(Model).order_by(Model.id.desc())).first()
        trained = set(session.scalars(select(ModelLabel.label_id).where(ModelLabel.model_id == model.id)))
        newest = select(Label.id).where(Label.source == "import").order_by(Label.id.desc())
        assert session.scalars(newest).first() in trained
        statuses = set(
            session.scalars(select(QueueItem.status).where(QueueItem.image_id == skipped["data"]["image_id"]))
        )
    assert "skipped" in statuses
    house.run("calibrate")
    house.run("evaluate")
    (_, second) = json.loads(house.run("rounds", "--json"))
    assert second["hours"] == pytest.approx((len(labeled) - 1 + 1) * 36.0 / 3600)

    # the next night sends the next queue into the same project, and takes what is left of the last one away
    house.run("nightly")
    queues = [task["data"]["queue"] for task in house.tasks()]
    assert queues.count("round-01") == len(tasks) - 1
    assert queues.count("round-02") > 0
    (project,) = house.server.get("/api/projects/", title="squares")["results"]
    assert project["model_version"].startswith("round-02 ")
