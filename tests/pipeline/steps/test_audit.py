"""Where there is no calibration split, the audit slices calibrate, and are not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from db.engine import Database
from db.queries.audits import audit_regions, unseen
from db.tables import Image, Label, Model, ModelLabel, Queue, QueueItem, Round
from pipeline import rounds
from pipeline.data.masks import store_mask
from pipeline.data.project import Project
from pipeline.errors import UserError
from pipeline.regions.outlines import encode_outline
from pipeline.steps.calibrate import calibrate
from pipeline.steps.held_out import audited_images, calibration_source
from pipeline.steps.train import train
from pipeline.training.dataset import LabeledImage, read_masks
from tests.factories import (
    HEIGHT,
    WIDTH,
    Workspace,
    add_label,
    add_model,
    ask,
    change,
    configured,
    new_item,
    new_queue,
    new_run,
    put,
)
from tests.textures import add_images, add_trained_model, make_segmenter, read_pair, textured_project

Box = tuple[int, int, int, int]
HALF: Box = (0, 0, WIDTH // 2, HEIGHT)
OTHER: Box = (WIDTH // 2, 0, WIDTH // 2, HEIGHT)


@pytest.fixture
def pool(tmp_path: Path) -> Workspace:
    """Eight pool images and no calibration split."""
    made = textured_project(tmp_path)
    add_images(*made, "pool", 8)
    return made


def add_audit(
    project: Project,
    database: Database,
    image_id: int,
    box: Box = HALF,
    *,
    name: str = "round-01",
    probability: float = 0.25,
    outline: str | None = None,
    wrong: bool = False,
    selected: Box = OTHER,
) -> int:
    """A queue with an audit region and a selected one of an image, both labeled; with `wrong`, the audit
    region by one class more than the truth."""
    _, truth = read_pair(project, f"pool_{image_id - 1}.png")
    mask = np.full_like(truth, 255)
    for x, y, w, h in (box, selected):
        mask[y : y + h, x : x + w] = truth[y : y + h, x : x + w]
    if wrong:
        x, y, w, h = box
        part = mask[y : y + h, x : x + w]
        part[part != 255] = (part[part != 255] + 1) % 3
    drawn = {"slice": "audit", "inclusion_probability": probability, "outline": outline}
    with database.session() as session:
        queue = session.scalars(select(Queue).where(Queue.name == name)).one_or_none()
        if queue is None:
            number = int(name.removeprefix("round-")) - 100  # before the rounds of the test
            queue = put(session, new_queue(name, round_id=_round(session, number)))
        known = session.scalars(select(QueueItem.rank).where(QueueItem.queue_id == queue.id)).all()
        for index, (part, values) in enumerate(((box, drawn), (selected, {}))):
            rank = 10 * image_id + index
            values |= {"region_index": index, "status": "labeled"}
            if rank not in known:
                session.add(new_item(queue.id, rank, image_id, part, **values))
        return add_label(session, project, image_id, queue.id, mask, regions=[box, selected]).id


def _round(session: Session, number: int) -> int:
    """The round of this number, its labels imported."""
    known = session.scalars(select(Round).where(Round.number == number)).one_or_none()
    return (known or put(session, Round(number=number, state="closed"))).id


def test_the_source_is_the_split_where_it_has_masks_unless_another_one_is_asked_for(
    pool: Workspace,
) -> None:

    def source(named: str) -> str:
        return ask(pool.database, calibration_source, configured(pool.project, calibration={"source": named}))

    assert [source(name) for name in ("auto", "split", "audit")] == ["audit", "calibration", "audit"]
    add_images(*pool, "calibration", 2)
    assert [source(name) for name in ("auto", "split", "audit")] == ["calibration", "calibration", "audit"]
    change(pool.database, Image, Image.split == "calibration", mask_uri=None)
    assert source("auto") == "audit"


def test_the_labels_of_audit_regions_change_nothing_in_training_where_they_calibrate(
    pool: Workspace,
) -> None:
    project, database = pool
    training = {"iterations": 3, "batch_size": 2, "crop": (32, 32)}
    project = configured(project, training=training)
    for image_id in (1, 2):
        add_audit(project, database, image_id)
    ask(database, rounds.open_first)

    def digest(source: str) -> tuple[str | None, str | None]:
        change(database, Round, state="train")
        model = train(configured(project, calibration={"source": source}), database).model
        return model.checkpoint_sha256, model.config.get("held_out")

    right = {source: digest(source) for source in ("auto", "split")}
    for image_id in (1, 2):
        add_audit(project, database, image_id, wrong=True)
    wrong = {source: digest(source) for source in ("auto", "split")}
    assert right["auto"] == wrong["auto"]
    assert right["auto"][1] == "audit"
    assert right["split"][1] is None
    assert right["split"][0] != wrong["split"][0]
    assert right["split"][0] != right["auto"][0]


def test_a_setting_keeps_audit_regions_out_of_training_or_takes_them_and_says_what_that_costs(
    pool: Workspace,
) -> None:
    project, database = pool
    project = configured(project, training={"iterations": 1, "batch_size": 2, "crop": (32, 32)})
    for image_id in (1, 2):
        add_audit(project, database, image_id)

    def trained(setting: str, source: str) -> Model:
        asked = configured(project, selection={"audit_training": setting}, calibration={"source": source})
        change(database, Round, state="train")
        return train(asked, database).model

    def new_to(model: Model) -> list[int]:
        regions = ask(database, audit_regions)
        return [region.image_id for region in ask(database, unseen, regions, model_ids=[model.id])]

    found = {key: trained(*key) for key in (("auto", "split"), ("always", "split"))}
    assert found["auto", "split"].labels_hash == found["always", "split"].labels_hash
    always = found["always", "split"]
    assert (new_to(always), ask(database, audited_images, project, always.id)) == ([], [])
    change(database, Round, state="calibrate")
    unfit = configured(project, selection={"audit_training": "always"})
    assert all(
        "`selection.audit_training: always`" in str(row.warning) for row in calibrate(unfit, database).rows
    )

    left_out = [trained(*key) for key in (("auto", "audit"), ("never", "audit"), ("never", "split"))]
    assert len({model.labels_hash for model in left_out} - {always.labels_hash}) == 1
    assert len({model.checkpoint_sha256 for model in left_out} - {always.checkpoint_sha256}) == 1
    assert [new_to(model) for model in left_out] == [[1, 2]] * 3
    assert len(ask(database, audited_images, project, left_out[0].id)) == 2


def test_audits_that_were_trained_on_stay_seen_by_the_models_that_start_from_there(pool: Workspace) -> None:
    project, database = pool
    training = {"iterations": 1, "batch_size": 2, "crop": (32, 32), "warm_start": True}
    project = configured(project, training=training, calibration={"source": "split"})
    add_audit(project, database, 1)
    change(database, Round, state="train")
    first = train(configured(project, selection={"audit_training": "always"}), database).model
    never = configured(project, selection={"audit_training": "never"})
    change(database, Model, status="promoted")
    change(database, Round, state="closed")
    with database.session() as session:
        put(session, Round(number=2, state="train"))
    second = train(never, database).model
    assert (second.parent_id, second.config["held_out"]) == (first.id, "audit")
    assert ask(database, audited_images, never, second.id) == []


def test_an_ensemble_has_seen_what_any_of_its_members_has(pool: Workspace) -> None:
    seen = add_audit(*pool, 1)
    add_audit(*pool, 2)
    segmenter = make_segmenter(pool.project)
    serving, member = (add_trained_model(*pool, segmenter, number=number) for number in (1, 2))
    with pool.database.session() as session:
        session.add(ModelLabel(model_id=member.id, label_id=seen))

    def new_to(**scoring: Any) -> list[int]:
        project = configured(pool.project, scoring=scoring)
        return [item.ref.id for item in ask(pool.database, audited_images, project, serving.id)]

    assert new_to() == [1, 2]
    for name in (member.name, member.checkpoint_uri):
        assert new_to(sampler="ensemble", ensemble=[name]) == [2]


def test_where_all_labels_are_of_audits_that_are_left_out_training_says_so(pool: Workspace) -> None:
    project = configured(pool.project, selection={"audit_training": "never"})
    add_audit(project, pool.database, 1, selected=HALF)
    change(pool.database, Round, state="train")
    with pytest.raises(UserError, match="besides those of audit regions") as error:
        train(project, pool.database)
    assert "selection.audit_training: always" in str(error.value)


def test_a_held_out_region_is_unlabeled_for_every_annotator_and_by_its_outline(tmp_path: Path) -> None:
    masks = [np.full((6, 8), value, dtype=np.uint8) for value in (0, 1)]
    paths = tuple(store_mask(tmp_path, mask)[0] for mask in masks)
    inside = np.array([[True, False], [True, True]])
    image = LabeledImage(
        tmp_path / "x.png",
        8,
        6,
        paths,
        ("Ann", "Bo"),
        held_out=(((2, 1, 2, 2), encode_outline(inside)), ((6, 4, 2, 2), None)),
    )
    expected = np.zeros((6, 8), dtype=bool)
    expected[1:3, 2:4] = inside
    expected[4:, 6:] = True
    for found, annotators in (
        (read_masks(image, "latest"), 1),
        (read_masks(image, "majority"), 1),
        (read_masks(image, "soft"), 2),
    ):
        assert found.shape == (annotators, 6, 8)
        assert ((found == 255) == expected).all()


def test_calibrators_are_fitted_on_the_pixels_of_unseen_audit_regions(
    pool: Workspace,
) -> None:
    for image_id in range(1, 9):
        add_audit(*pool, image_id)
    model = add_trained_model(*pool, make_segmenter(pool.project, overconfident=5))
    rows = calibrate(*pool).rows
    for row in rows:
        assert row.calibrator == "temperature"
        assert row.parameters["temperature"] > 2
        assert row.report is not None
        assert (row.report["source"], row.images) == ("audit", 8)
        assert "Fitted on 8 images of the newest audit only" in (row.warning or "")
    audited = 8 * min(HEIGHT * WIDTH // 2, pool.project.config.calibration.pixels_per_image)
    assert audited * 0.9 < rows[0].pixels <= audited

    with pool.database.session() as session:
        labels = session.scalars(select(Label)).all()
        session.add_all(ModelLabel(model_id=model.id, label_id=label.id) for label in labels)
    for row in calibrate(*pool).rows:
        assert row.calibrator == "identity"
        assert row.warning is not None
        assert "no region drawn at random that the model has not seen" in row.warning

    change(pool.database, Model, config={"held_out": "audit"})
    assert [row.parameters for row in calibrate(*pool).rows] == [row.parameters for row in rows]


def test_a_model_that_started_from_one_that_saw_the_regions_has_seen_them_too(
    pool: Workspace,
) -> None:
    seen = add_audit(*pool, 1)
    add_audit(*pool, 2)
    segmenter = make_segmenter(pool.project)
    parent, child = (add_trained_model(*pool, segmenter, number=number) for number in (1, 2))
    with pool.database.session() as session:
        session.add(ModelLabel(model_id=parent.id, label_id=seen))
        row = session.get_one(Model, child.id)
        row.parent_id, row.config = parent.id, {"held_out": "audit"}
    regions = ask(pool.database, audit_regions)
    assert [region.image_id for region in regions] == [1, 2]
    assert [region.image_id for region in ask(pool.database, unseen, regions, model_ids=[child.id])] == [2]


def test_only_labeled_audit_regions_with_a_known_probability_count(pool: Workspace) -> None:
    for image_id in (1, 2, 3, 4):
        add_audit(*pool, image_id)
    with pool.database.session() as session:
        items = {item.image_id: item for item in session.scalars(select(QueueItem)) if item.slice == "audit"}
        items[1].status = "released"
        items[2].inclusion_probability = None
        session.get_one(Image, 3).split = "guard"
    assert [(region.image_id, region.x, region.w) for region in ask(pool.database, audit_regions)] == [
        (4, 0, WIDTH // 2)
    ]


def test_the_newest_audit_stands_for_what_was_unlabeled_then_and_earlier_ones_for_themselves(
    pool: Workspace,
) -> None:
    for image_id in (1, 2, 3):
        add_audit(*pool, image_id, probability=3 / 30)
    for image_id in (4, 5):
        add_audit(*pool, image_id, name="round-02", probability=4 / 20)
    add_audit(*pool, 1, (0, 8, 16, 16), name="round-02", probability=4 / 20)
    add_audit(*pool, 6, name="round-02", probability=4 / 20)
    change(pool.database, QueueItem, QueueItem.image_id == 6, status="released")

    def heaviest() -> dict[int, float]:
        found = ask(pool.database, audited_images, pool.project, 1)
        return {item.ref.id: float(item.weights().max()) for item in found}

    assert heaviest() == pytest.approx({1: 20 / 3, 2: 1, 3: 1, 4: 20 / 3, 5: 20 / 3})
    current = {item.ref.id for item in ask(pool.database, audited_images, pool.project, 1) if item.newest}
    assert current == {1, 4, 5}
    one = next(item for item in ask(pool.database, audited_images, pool.project, 1) if item.ref.id == 1)
    assert (one.weights() > 1).sum() == 16 * 16
    assert (one.weights() == 1).sum() > 0
    assert (one.weights()[:, WIDTH // 2 :] == 0).all()

    run = new_run(1, scorer={"keep_regions": 3})
    with pool.database.session() as session:
        add_model(session, 9)
        run_id = put(session, run).id
        session.scalars(select(Queue).where(Queue.name == "round-02")).one().run_id = run_id
    assert heaviest() == pytest.approx({1: 10, 2: 10, 3: 10})  # that audit saw a part of the regions only
    change(pool.database, Queue, run_id=None)
    change(pool.database, Queue, Queue.name == "round-02", round_id=None)
    assert heaviest() == pytest.approx({1: 10, 2: 10, 3: 10})  # that queue was withdrawn
    change(pool.database, Queue, round_id=None)
    assert heaviest() == {}
