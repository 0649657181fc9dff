"""Labels that the model doubts: planted errors are found, looked at, and come back corrected."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as PillowImage
from sqlalchemy import select, update

from db.queries import models, queue_items, queues
from db.tables import Image, Model, QueueItem, Round
from pipeline.data.labels import compose_labels
from pipeline.errors import UserError
from pipeline.steps.export import export
from pipeline.steps.import_labels import import_labels
from pipeline.steps.review import review
from tests.factories import (
    CLASSES,
    HEIGHT,
    WIDTH,
    Workspace,
    add_label,
    ask,
    change,
    count_rows,
    new_queue,
    put,
    round_state,
)
from tests.textures import add_images, add_trained_model, make_segmenter, textured_project

CELL = 16
COLUMNS = WIDTH // CELL
IMAGES = 10
PLANTED = [(image, cell) for image in range(IMAGES) for cell in (7 + image, 15)][:14]
"""Images, and cells of them, whose label is wrong."""


class Labeled(Workspace):
    """A project in which a model serves, some labels of which are wrong."""

    image_ids: list[int]
    truth: list[npt.NDArray[np.uint8]]

    def planted(self) -> set[tuple[int, int]]:
        return {(self.image_ids[image], cell) for image, cell in PLANTED}

    def in_force(self) -> list[npt.NDArray[np.uint8]]:
        """The labels as training would see them."""
        images = ask(self.database, models.training_labels)
        return [
            compose_labels([self.project.path(label.mask_uri) for label in image.labels], (WIDTH, HEIGHT))
            for image in images
        ]

    def state(self) -> tuple[str, int]:
        return round_state(self.database)[1], count_rows(self.database, Round)

    def items(self, name: str) -> list[QueueItem]:
        queue = ask(self.database, queues.queue_by_name, name)
        assert queue is not None
        return list(ask(self.database, queue_items.queue_items, queue.id))


def part(cell: int) -> tuple[slice, slice]:
    y, x = divmod(cell, COLUMNS)
    return slice(y * CELL, (y + 1) * CELL), slice(x * CELL, (x + 1) * CELL)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Labeled:
    """Made once: each test gets a copy."""
    root = tmp_path_factory.mktemp("labeled")
    made = textured_project(root)
    project, database = made.configured(scoring={"regions": {"kind": "grid", "cell": CELL}}), made.database
    add_images(project, database, "pool", IMAGES)
    add_trained_model(project, database, make_segmenter(project))
    with database.session() as session:
        session.execute(update(Model).values(status="promoted"))
        session.execute(update(Round).values(state="select"))
        images = session.scalars(select(Image).order_by(Image.id)).all()
        for image in images:
            image.sha256 = hashlib.sha256((root / image.uri).read_bytes()).hexdigest()
        queue = put(session, new_queue("initial"))
        truth: list[npt.NDArray[np.uint8]] = []
        for place, image in enumerate(images):
            mask = np.asarray(PillowImage.open(project.root / f"masks/pool_{place}.png")).copy()
            truth.append(mask.copy())
            for cell in (cell for planted, cell in PLANTED if planted == place):
                window = mask[part(cell)]
                window[window != 255] = (window[window != 255] + 1) % len(CLASSES)
            add_label(session, project, image.id, queue.id, mask, source="initial")
    labeled = Labeled(project, database)
    labeled.image_ids, labeled.truth = [image.id for image in images], truth
    return labeled


@pytest.fixture
def labeled(template: Labeled, tmp_path: Path) -> Labeled:
    return template.copied_to(tmp_path)


def test_planted_errors_are_found_far_more_often_than_by_chance_and_named(labeled: Labeled) -> None:
    report = review(*labeled, budget=len(PLANTED))
    found = [(item.image_id, item.region_index) for item in report.items]
    chance = len(PLANTED) / (IMAGES * 24)
    precision = sum(place in labeled.planted() for place in found) / len(found)
    assert precision > 6 * chance  # with a small head on a random encoder
    first = report.items[0]
    label, predicted = (CLASSES[index] for index in (first.label, first.predicted))
    stored = labeled.items("review-01")
    assert [(item.image_id, item.region_index) for item in stored] == found
    assert stored[0].reason.startswith(f"labeled {label}, predicted {predicted} with ")
    assert stored[0].reason.endswith(" of the region")
    assert {item.slice for item in stored} == {"review"}
    assert [item.score for item in stored] == sorted((item.score or 0 for item in stored), reverse=True)
    words = list(report.lines())
    assert "doubts the labels of" in words[0]
    assert "review-01" in words[1]


def test_the_current_label_goes_out_as_the_premask_and_the_corrected_one_comes_back(labeled: Labeled) -> None:
    before, wrong = labeled.state(), labeled.in_force()
    report = review(*labeled, budget=len(PLANTED))
    assert report.folder is not None
    entries = [json.loads(line) for line in (report.folder / "manifest.jsonl").read_text().splitlines()]
    assert {entry["queue"] for entry in entries} == {"review-01"}
    assert "start from the label as it is now" in (report.folder / "README.md").read_text()
    for entry in entries:
        place = labeled.image_ids.index(entry["image_id"])
        premask = np.asarray(PillowImage.open(report.folder / entry["premask"]))
        expected = np.full_like(premask, 255)
        for region in entry["regions"]:
            window = (
                slice(region["y"], region["y"] + region["h"]),
                slice(region["x"], region["x"] + region["w"]),
            )
            expected[window] = wrong[place][window]
        assert np.array_equal(premask, expected)
        corrected = np.where(expected == 255, 255, labeled.truth[place]).astype(np.uint8)
        PillowImage.fromarray(corrected).save(report.folder / entry["mask"])
    result = import_labels(*labeled, source=report.folder, annotator="second")
    assert (result.queue, result.imported, result.closed) == ("review-01", len(entries), False)
    assert labeled.state() == before
    assert {item.status for item in labeled.items("review-01")} == {"labeled"}
    now = labeled.in_force()
    reviewed = {(item.image_id, item.region_index) for item in report.items}
    for place, image_id in enumerate(labeled.image_ids):
        for cell in range(24):
            expected = labeled.truth if (image_id, cell) in reviewed else wrong
            assert np.array_equal(now[place][part(cell)], expected[place][part(cell)])


def test_what_was_reviewed_is_not_asked_again_until_it_is_released(labeled: Labeled) -> None:
    first = review(*labeled, budget=6)
    second = review(*labeled, budget=6)
    assert (first.queue, second.queue) == ("review-01", "review-02")
    places = [{(item.image_id, item.region_index) for item in report.items} for report in (first, second)]
    assert not places[0] & places[1]
    change(labeled.database, QueueItem, status="released")
    third = review(*labeled, budget=6)
    assert {(item.image_id, item.region_index) for item in third.items} == places[0]


def test_a_review_that_was_never_exported_is_replaced(labeled: Labeled) -> None:
    occupied = labeled.project.root / "elsewhere"
    occupied.mkdir()
    (occupied / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="contains other files"):
        review(*labeled, budget=6, folder=occupied)
    report = review(*labeled, budget=4)
    assert report.queue == "review-01"
    assert len(labeled.items("review-01")) == 4


def test_a_queue_is_exported_again_by_its_name_without_touching_the_round(labeled: Labeled) -> None:
    report = review(*labeled, budget=3)
    before = labeled.state()
    again = labeled.project.root / "again"
    assert export(*labeled, queue="review-01", folder=again).folder == again
    assert labeled.state() == before
    assert report.folder is not None
    names = [
        sorted(path.name for path in (folder / "premasks").iterdir()) for folder in (report.folder, again)
    ]
    assert names[0] == names[1]
    with pytest.raises(UserError, match="no queue 'review-07'"):
        export(*labeled, queue="review-07")


def test_where_nothing_is_worth_a_look_there_is_no_queue(
    labeled: Labeled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.studies.label_review.LEAST_SHARE", 1.1)
    report = review(*labeled)
    assert (report.queue, report.folder, report.doubted, report.items) == (None, None, 0, [])
    assert [queue.name for queue in ask(labeled.database, queues.list_queues)] == ["initial"]


def test_a_damaged_label_is_told_and_the_rest_goes_on(labeled: Labeled) -> None:
    images = ask(labeled.database, models.training_labels)
    labeled.project.path(images[0].labels[0].mask_uri).write_bytes(b"no mask")
    report = review(*labeled, budget=4)
    assert [subject for subject, _ in report.failed] == [images[0].uri]
    assert (report.images, len(report.items)) == (IMAGES - 1, 4)


def test_without_a_model_or_labels_it_says_what_to_do(labeled: Labeled) -> None:
    change(labeled.database, Image, split="test")
    with pytest.raises(UserError, match="segcurate import"):
        review(*labeled)
    change(labeled.database, Model, status="refused")
    with pytest.raises(UserError, match="segcurate evaluate"):
        review(*labeled)
