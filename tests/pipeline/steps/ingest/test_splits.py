"""Held-out splits that wait until they are large enough, and grow by versions."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select

from db.queries import images as image_queries
from db.queries import models
from db.tables import Image, Label, Queue, Round
from db.tables import Project as ProjectRow
from pipeline.errors import ConfigError
from tests.factories import ask, fetch, fetch_one
from tests.pipeline.steps.ingest.folder import HELD_OUT, Folder

SINGLE = {"by": "block", "block": 1, "guard": 0}
TEN: dict[str, Any] = {
    "test": {"fraction": 0.2, **SINGLE},
    "calibration": {"fraction": 0.15, **SINGLE},
    "minimum_units": 10,
    "every_class": True,
}


def held(folder: Folder, split: str) -> set[str]:
    return {uri for uri, name in folder.splits().items() if name == split}


def ingest(folder: Folder, **splits: Any) -> list[str]:
    """What an ingest says of the held-out splits."""
    report = folder.ingest(splits=TEN | splits, independent=True)
    assert {*report.grown, *(f"Warning: {text}" for text in report.warnings)} <= set(report.lines())
    return [*report.grown, *report.warnings]


def test_three_masks_lock_no_split_and_thirty_make_a_test_split_of_ten(folder: Folder) -> None:
    folder.sequence("s", 30, masks=False)
    for number in range(3):
        folder.mask(f"s/f{number}.png")
    lines = ingest(folder)
    assert set(folder.splits().values()) == {"pool"}
    assert len(fetch(folder.database, Label.image_id)) == 3
    [test] = [line for line in lines if "the test split yet" in line]
    assert "needs 10 independent units with masks that no model has learned from" in test
    assert "there are 3. Draw images to label with `segcurate select --for test`" in test
    assert "or put masks of 17 more units into `data.masks`" in test
    assert "`splits.minimum_units`" in test
    assert fetch_one(folder.database, ProjectRow.open_splits)["test"] in test
    _begin_training(folder)
    for number in range(3, 30):
        folder.mask(f"s/f{number}.png")
    lines = ingest(folder)
    assert "The test split is at version 1: 10 images with masks, 10 of them new, in at most 10 " in lines[0]
    assert len(held(folder, "test")) == 10
    assert [line for line in lines if "the calibration split yet" in line]
    assert not held(folder, "test") & {f"images/s/f{number}.png" for number in range(3)}
    learned = set(fetch(folder.database, select(Image.split).join(Label, Label.image_id == Image.id)))
    assert learned == {"pool"}
    assert ask(folder.database, image_queries.split_versions) == {"test": 1, "calibration": 0}


def test_the_calibration_split_counts_the_masks_that_the_test_split_takes_first(folder: Folder) -> None:
    folder.sequence("s", 40, masks=False)
    for number in range(3):
        folder.mask(f"s/f{number}.png")
    [calibration] = [line for line in ingest(folder) if "the calibration split yet" in line]
    assert "and as many others for the test split and for training; there are 3" in calibration
    assert "put masks of 37 more units into `data.masks`" in calibration
    for number in range(3, 40):
        folder.mask(f"s/f{number}.png")
    ingest(folder)
    assert len(held(folder, "test")) == len(held(folder, "calibration")) == 10


def test_initial_labels_that_no_model_has_learned_from_do_not_keep_an_image_from_a_split(
    folder: Folder,
) -> None:
    folder.sequence("s", 40)
    report = folder.ingest(splits=TEN, independent=False)
    [test] = [line for line in report.warnings if "the test split yet" in line]
    assert "there are 4, in 40 images: neighbours in a sequence are one unit, unless `data.indep" in test
    assert len(fetch(folder.database, Label.image_id)) == 40
    report = folder.ingest(splits=TEN, independent=True)
    assert [len(held(folder, split)) for split in ("test", "calibration")] == [10, 10]
    learned = fetch(folder.database, select(Image.split).join(Label, Label.image_id == Image.id))
    assert (report.labeled_images, learned) == (20, ["pool"] * 20)
    assert len(fetch(folder.database, Queue.id)) == 1
    again = folder.ingest(splits=TEN, independent=True)
    assert (again.labeled_images, again.grown) == (0, ())


def test_the_initial_labels_may_be_chosen_anew_until_a_training_has_begun(folder: Folder) -> None:
    folder.sequence("s", 40)
    ingest(folder)
    assert len(fetch(folder.database, Label.image_id)) == 20
    for count in (5, 8):
        ingest(folder, initial={"count": count})
        assert len(fetch(folder.database, Label.image_id)) == count
    assert len(fetch(folder.database, Queue.id)) == 1
    _begin_training(folder)
    with pytest.raises(ConfigError, match=r"`splits\.initial` has changed since splits were locked"):
        ingest(folder, initial={"count": 6})
    assert len(fetch(folder.database, Label.image_id)) == 8


def test_labels_that_a_training_has_begun_with_keep_their_images_out_of_the_splits(folder: Folder) -> None:
    folder.sequence("s", 40)
    folder.ingest(splits=TEN, independent=False)
    _begin_training(folder)
    report = folder.ingest(splits=TEN, independent=True)
    assert (report.grown, set(folder.splits().values())) == ((), {"pool"})
    assert [line for line in report.warnings if "the test split yet" in line and "there are 0. " in line]
    assert len(fetch(folder.database, Label.image_id)) == 40


def _begin_training(folder: Folder) -> None:
    with folder.database.session() as session:
        [round_id], label_ids = (
            session.scalars(select(Round.id)).all(),
            session.scalars(select(Label.id)).all(),
        )
        models.start_model(
            session,
            round_id=round_id,
            name="r01",
            label_ids=label_ids,
            checkpoint_uri="r01",
            config={},
            config_hash="",
            labels_hash="",
            seed=0,
            iterations=1,
        )


def test_too_few_masks_of_a_class_lock_nothing_until_it_is_shown_or_waived(folder: Folder) -> None:
    folder.sequence("s", 40, masks=False)
    for number in range(40):
        folder.mask(f"s/f{number}.png", value=int(number == 7))
    with pytest.raises(ConfigError, match="The calibration split cannot be drawn: .* shows b") as caught:
        ingest(folder)
    assert "splits.every_class: false" in caught.value.remedy
    assert fetch(folder.database, Label.id) == []
    assert fetch_one(folder.database, ProjectRow.splits_locked_at) is None
    folder.sequence("t", 2)
    ingest(folder)
    with_b = {"images/s/f7.png", "images/t/f0.png", "images/t/f1.png"}
    for split in ("test", "calibration"):
        assert len(held(folder, split)) == 10
        assert held(folder, split) & with_b


def test_a_list_that_is_too_short_is_held_out_but_not_measured_until_it_is_longer(folder: Folder) -> None:
    folder.sequence("s", 40)
    folder.write("test.txt", *(f"s/f{number}.png" for number in range(3)))
    folder.write("calibration.txt", *(f"s/f{number}.png" for number in range(10, 20)))
    lines = ingest(folder, **HELD_OUT)
    assert [line for line in lines if "name the images in `splits.test.list`" in line]
    assert ask(folder.database, image_queries.split_versions) == {"test": 0, "calibration": 1}
    assert ask(folder.database, image_queries.measured_images, "test") == []
    assert "images/s/f0.png" not in set(
        fetch(folder.database, select(Image.uri).join(Label, Label.image_id == Image.id))
    )
    folder.sequence("t", 9)
    named = [f"t/f{number}.png" for number in range(9)]
    folder.write("test.txt", *(f"s/f{number}.png" for number in range(4)), *named)
    lines = ingest(folder, **HELD_OUT)
    assert len(ask(folder.database, image_queries.measured_images, "test")) == 12
    assert [line for line in lines if "`splits.test` now names 1 known images that are labeled" in line]


def test_a_small_split_of_an_earlier_version_grows_and_keeps_its_images(folder: Folder) -> None:
    few = {"minimum_units": 1}
    folder.sequence("s", 4)
    ingest(folder, **few)
    first = held(folder, "test")
    assert len(first) == 1
    folder.sequence("s", 36, first=4)
    lines = ingest(folder)
    assert "The test split is at version 2: 10 images with masks, 9 of them new" in lines[0]
    assert first < held(folder, "test")
    versions = fetch(folder.database, select(Image.split_version).where(Image.split == "test"))
    assert sorted(versions) == [1] + [2] * 9
    assert not [line for line in ingest(folder) if "test" in line]
