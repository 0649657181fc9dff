"""The train step: what it may look at, what it leaves behind, and that it can be killed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from sqlalchemy import select
from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import models
from db.tables import Failure, Image, Model, Queue, Round
from pipeline import rounds
from pipeline.data.project import Project
from pipeline.errors import CheckpointError, NotYourTurn, UserError
from pipeline.model.checkpoints import load_model
from pipeline.steps import train as step
from pipeline.steps.train import train
from pipeline.training import loop
from tests.factories import (
    Workspace,
    add_label,
    ask,
    configured,
    fetch,
    fetch_one,
    make_project,
    new_image,
    new_queue,
    put,
)

CPU = torch.device("cpu")
SIZE = 36

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def made(tmp_path: Path) -> Workspace:
    return make_training_project(tmp_path)


@pytest.fixture
def project(made: Workspace) -> Project:
    return made.project


@pytest.fixture
def database(made: Workspace) -> Database:
    return made.database


def make_training_project(root: Path, **training: Any) -> Workspace:
    quick = {"iterations": 4, "batch_size": 2, "crop": [32, 32], "checkpoint_every": 2}
    return make_project(
        root,
        data={"classes": ["ground", "thing"]},
        model={"architecture": "linknet", "decoder": {}},
        training=quick | training,
    )


def add_image(session: Session, root: Path, name: str, *, seed: int | None = None, **values: Any) -> Image:
    (root / "images").mkdir(exist_ok=True)
    path = root / "images" / f"{name}.png"
    rng = np.random.default_rng(int.from_bytes(name.encode()) % 1000 if seed is None else seed)
    PillowImage.fromarray(rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)).save(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return put(session, new_image(f"images/{name}.png", sha256=digest, width=SIZE, height=SIZE, **values))


def add_mask(
    session: Session,
    project: Project,
    image: Image,
    queue: Queue,
    *,
    value: int = 1,
    rows: int = SIZE,
    **by: Any,
) -> int:
    mask = np.full((SIZE, SIZE), 255, dtype=np.uint8)
    mask[:rows] = 0
    mask[: rows // 2] = value
    return add_label(session, project, image.id, queue.id, mask, regions=[(0, 0, SIZE, rows)], **by).id


def fill(project: Project, database: Database) -> None:
    """Two labeled images of the pool, and round 1."""
    with database.session() as session:
        queue = put(session, new_queue("initial"))
        for name in ("a", "b"):
            add_mask(session, project, add_image(session, project.root, name), queue)
        rounds.open_first(session)


def test_a_class_that_no_label_shows_is_named(project: Project, database: Database) -> None:
    with database.session() as session:
        image = add_image(session, project.root, "a")
        add_mask(session, project, image, put(session, new_queue("initial")), value=0)
        rounds.open_first(session)
    assert train(project, database).lines()[1:] == [
        "warning: No label shows thing, so r01 never predicts it. Label images that show it."
    ]


def test_a_model_is_trained_saved_and_on_record(project: Project, database: Database) -> None:
    fill(project, database)
    report = train(project, database)
    model = report.model
    assert report.lines() == ["Trained r01: 4 iterations, seed 0."]
    assert (model.name, model.status, model.iterations) == ("r01", "trained", 4)

    folder = project.path(model.checkpoint_uri)
    _, card = load_model(folder, device=CPU, class_names=["ground", "thing"])
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    row = fetch_one(database, Model)
    assert row.status == "trained"
    assert row.finished_at is not None
    assert row.checkpoint_sha256 == card.weights_sha256 == weights
    assert (card.config_hash, card.labels_hash) == (row.config_hash, row.labels_hash)
    assert [label.image_id for label in ask(database, models.model_labels, row.id)] == [1, 2]
    assert fetch_one(database, Round).state == "calibrate"
    assert not (folder / "resume.safetensors").exists()
    with pytest.raises(NotYourTurn, match="segcurate calibrate"):
        train(project, database)


@pytest.mark.parametrize("split", ["calibration", "test", "guard"])
def test_held_out_images_are_never_trained_on_even_when_they_have_labels(
    project: Project, database: Database, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(project, database)
    with database.session() as session:
        queue = session.scalars(select(Queue)).one()
        held_out = add_image(session, project.root, "held_out", split=split, seed=1)
        copy = add_image(session, project.root, "copy_in_the_pool", seed=1)
        assert copy.sha256 == held_out.sha256
        linked = add_image(session, project.root, "linked")
        linked.duplicate_of = 1
        for image in (held_out, copy, linked):
            add_mask(session, project, image, queue)
    read: set[str] = set()
    original = step.LabeledImage

    def watch(**arguments: Any) -> Any:
        read.add(arguments["path"].stem)
        return original(**arguments)

    monkeypatch.setattr(step, "LabeledImage", watch)
    train(project, database)
    assert read == {"a", "b"}
    assert {image.uri for image in ask(database, models.training_labels)} == {"images/a.png", "images/b.png"}
    assert {label.image_id for label in ask(database, models.model_labels, 1)} == {1, 2}


def test_the_latest_version_of_each_queue_is_painted_in_the_order_of_queues(
    project: Project, database: Database
) -> None:
    with database.session() as session:
        image = add_image(session, project.root, "a")
        first, second = put(session, new_queue("initial")), put(session, new_queue("round-01"))
        later = add_mask(session, project, image, second, value=0)
        add_mask(session, project, image, first, value=1)
        corrected = add_mask(session, project, image, first, value=0, rows=10)
    (found,) = ask(database, models.training_labels)
    assert [label.id for label in found.labels] == [corrected, later]


def test_the_newest_label_of_every_annotator_is_in_force_in_the_order_of_their_versions(
    project: Project, database: Database
) -> None:
    with database.session() as session:
        image = add_image(session, project.root, "a")
        queue, later = put(session, new_queue("initial")), put(session, new_queue("round-01"))
        first = add_mask(session, project, image, queue, annotator="Ann")
        agreeing = add_mask(session, project, image, queue, annotator="Bo")
        corrected = add_mask(session, project, image, queue, annotator="Ann", rows=10)
        elsewhere = add_mask(session, project, image, later, annotator="Ann", value=0, rows=4)
    (found,) = ask(database, models.training_labels)
    assert first != corrected
    assert [label.id for label in found.labels] == [agreeing, corrected, elsewhere]
    assert [label.annotator for label in found.labels] == ["Bo", "Ann", "Ann"]


def test_the_same_mask_again_is_a_vote_only_when_it_is_another_one_s(
    project: Project, database: Database
) -> None:
    with database.session() as session:
        image, queue = add_image(session, project.root, "a"), put(session, new_queue("initial"))
        add_mask(session, project, image, queue, annotator="Ann")
        for nobody in (None, "Ann"):
            with pytest.raises(AssertionError):
                add_mask(session, project, image, queue, annotator=nobody)
        add_mask(session, project, image, queue, annotator="Bo")


@pytest.mark.parametrize("annotators", ["majority", "soft"])
def test_training_on_votes_is_another_model_and_its_lineage_names_every_vote(
    project: Project, database: Database, annotators: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = configured(project, training={"annotators": annotators, "loss": {"class_weights": "balanced"}})
    fill(project, database)
    with database.session() as session:
        image, queue = session.get_one(Image, 1), session.get_one(Queue, 1)
        for name in ("Bo", "Cy"):
            add_mask(session, project, image, queue, annotator=name, value=0)
    seen: list[torch.Tensor] = []
    original = loop.segmentation_loss

    def watch(logits: torch.Tensor, target: torch.Tensor, *others: Any) -> torch.Tensor:
        seen.append(target)
        return original(logits, target, *others)

    monkeypatch.setattr(loop, "segmentation_loss", watch)
    model = train(project, database).model
    values = sorted({round(float(value), 3) for target in seen for value in target.unique()})
    assert values == ([0.0, 0.333, 0.667, 1.0] if annotators == "soft" else [0, 1])
    votes = [(label.image_id, label.annotator) for label in ask(database, models.model_labels, model.id)]
    assert votes == [(1, None), (1, "Bo"), (1, "Cy"), (2, None)]


def test_a_killed_training_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    project, database = make_training_project(tmp_path / "one", iterations=5)
    other, second = make_training_project(tmp_path / "two", iterations=5)
    fill(project, database)

    with pytest.raises(Killed):
        train(project, database, progress=kill)
    assert fetch_one(database, Model).status == "training"
    assert fetch_one(database, Round).state == "train"
    seen: list[int] = []
    resumed = train(project, database, progress=lambda title, done, *_: _note(seen, title, done)).model
    assert seen == [3, 4, 5]

    fill(other, second)
    assert train(other, second).model.checkpoint_sha256 == resumed.checkpoint_sha256


class Killed(BaseException):
    pass


def kill(title: str, done: int, total: int | None, note: str = "") -> None:
    if title == "train r01" and done == 3:
        raise Killed


def _note(seen: list[int], title: str, done: int) -> None:
    if title == "train r01":
        seen.append(done)


def test_a_killed_training_starts_again_when_labels_have_changed(
    project: Project, database: Database
) -> None:
    fill(project, database)

    with pytest.raises(Killed):
        train(project, database, progress=kill)
    with database.session() as session:
        image, queue = session.get_one(Image, 1), session.get_one(Queue, 1)
        corrected = add_mask(session, project, image, queue, rows=8)
    seen: list[int] = []
    train(project, database, progress=lambda title, done, *_: _note(seen, title, done))
    assert seen == [1, 2, 3, 4]
    assert corrected in {label.id for label in ask(database, models.model_labels, 1)}


def test_files_that_cannot_be_read_are_recorded_and_the_rest_is_trained_on(
    project: Project, database: Database
) -> None:
    fill(project, database)
    with database.session() as session:
        queue = session.get_one(Queue, 1)
        for name in ("gone", "cut"):
            add_mask(session, project, add_image(session, project.root, name), queue)
    (project.root / "images" / "gone.png").unlink()
    cut = project.root / "images" / "cut.png"
    cut.write_bytes(cut.read_bytes()[:2000])
    train(project, database)
    failures = {row.subject: row.reason for row in fetch(database, Failure)}
    assert failures.keys() == {"images/gone.png", "images/cut.png"}
    assert all(subject.split("/")[1] in reason for subject, reason in failures.items())


def test_without_labels_there_is_nothing_to_train_on(project: Project, database: Database) -> None:
    ask(database, rounds.open_first)
    with pytest.raises(UserError, match="no label to train on"):
        train(project, database)
    assert fetch(database, Model) == []


def test_a_warm_start_begins_at_the_promoted_model(project: Project, database: Database) -> None:
    fill(project, database)
    first = train(project, database).model
    with database.session() as session:
        session.get_one(Model, first.id).status = "promoted"
        current = session.scalars(select(Round)).one()
        current.state = "closed"
        session.add(Round(number=2, state="train"))
    warm = configured(project, training={"warm_start": True, "learning_rate": 1e-12, "iterations": 1})
    second = train(warm, database).model
    assert (second.name, second.parent_id) == ("r02", first.id)
    before, _ = load_model(project.path(first.checkpoint_uri), device=CPU, class_names=None)
    after, _ = load_model(project.path(second.checkpoint_uri), device=CPU, class_names=None)
    theirs = dict(after.network.named_parameters())
    for name, value in before.network.named_parameters():
        torch.testing.assert_close(value, theirs[name], atol=1e-6, rtol=1e-6)

    with database.session() as session:
        session.get_one(Model, second.id).status = "promoted"
        session.scalars(select(Round).where(Round.number == 2)).one().state = "train"
    other = configured(project, model={"architecture": "unet"}, training={"warm_start": True})
    with pytest.raises(CheckpointError, match=r"model\.architecture"):
        train(other, database)


def test_the_card_is_plain_json(project: Project, database: Database) -> None:
    project = configured(project, training={"loss": {"class_weights": "balanced", "dice": 0.3}})
    fill(project, database)
    model = train(project, database).model
    card = json.loads((project.path(model.checkpoint_uri) / "model.json").read_text())
    assert card["class_names"] == ["ground", "thing"]
    assert card["metrics"]["training_loss"] > 0
    assert card["class_shares"] == [0.5, 0.5]
