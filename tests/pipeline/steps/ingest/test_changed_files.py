from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from db.queries import labels as label_queries
from db.tables import Image, Label
from pipeline.errors import ConfigError, DataError
from pipeline.steps.held_out import held_out_images, labels_to_train_on
from pipeline.steps.ingest import mask_census
from tests.factories import ask
from tests.pipeline.steps.ingest.folder import HELD_OUT, Folder


def an_hour_ago(folder: Folder) -> None:
    """As if the last ingest had been an hour ago."""
    with folder.database.session() as session:
        for image in session.query(Image):
            image.ingested_at -= timedelta(hours=1)


def test_a_corrected_mask_is_the_next_version_of_its_label(five: Folder) -> None:
    five.ingest(splits=HELD_OUT)
    an_hour_ago(five)
    five.mask("c/f0.png", value=1)
    report = five.ingest(splits=HELD_OUT)
    assert (report.failures, report.labeled_images) == (0, 1)
    image_id = dict(five.rows(Image.uri, Image.id))["images/c/f0.png"]
    (label,) = ask(five.database, label_queries.labels_in_force, image_id=image_id)
    assert label.version == 2
    assert (five.read_mask(label.mask_uri) == 1).all()
    before = five.rows(Label.id)
    five.ingest(splits=HELD_OUT)
    assert five.rows(Label.id) == before


def test_a_corrected_held_out_mask_makes_the_next_version_of_its_split(five: Folder) -> None:
    five.ingest(splits=HELD_OUT)
    before = dict(five.rows(Image.uri, Image.split_version))
    held = next(uri for uri, split in five.rows(Image.uri, Image.split) if split == "test")
    an_hour_ago(five)
    five.mask(held.removeprefix("images/"), value=1)
    report = five.ingest(splits=HELD_OUT)
    assert before[held] == 1
    assert dict(five.rows(Image.uri, Image.split_version)) == {**before, held: 2}
    assert "test split is at version 2: 2 images with masks, 1 of them new or corrected" in report.grown[0]


def test_masks_that_were_only_copied_change_neither_labels_nor_splits(five: Folder) -> None:
    five.ingest(splits=HELD_OUT)
    columns = (Image.uri, Image.split_version, Image.mask_sha256)
    before, labels = five.rows(*columns), five.rows(Label.id)
    an_hour_ago(five)
    paths = list((five.root / "masks").rglob("*.png"))
    for path in paths:
        path.write_bytes(path.read_bytes())
    report = five.ingest(splits=HELD_OUT)
    assert (report.grown, report.labeled_images, report.failures) == ((), 0, 0)
    assert (five.rows(*columns), five.rows(Label.id)) == (before, labels)
    assert f"Masks read: {len(paths)}." in report.lines()
    assert not any("Masks read" in line for line in five.ingest(splits=HELD_OUT).lines())


def test_a_mask_that_is_written_while_ingest_runs_is_read_by_the_next_one(
    five: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = mask_census.read_mask

    def paint_after(path: Path, *args: Any, **options: Any) -> Any:
        mask = read(path, *args, **options)
        if path.name == "f0.png" and path.parent.name == "c":
            five.mask("c/f0.png", value=1)
        return mask

    monkeypatch.setattr(mask_census, "read_mask", paint_after)
    five.ingest(splits=HELD_OUT)
    monkeypatch.undo()
    assert "Masks read: 1." in five.ingest(splits=HELD_OUT).lines()


def test_a_replaced_image_is_refused_and_one_that_was_only_copied_is_not(five: Folder) -> None:
    five.ingest(splits=HELD_OUT)
    an_hour_ago(five)
    five.image("c/f0.png", seed=4711)
    path = five.root / "images" / "c" / "f1.png"
    path.write_bytes(path.read_bytes())
    os.utime(path)
    report = five.ingest(splits=HELD_OUT)
    assert report.failures == 1
    assert "has changed since it was ingested" in five.failures()["images/c/f0.png"]


@pytest.mark.parametrize(("value", "words"), [(7, "7 (384 px)"), (255, "has no labeled pixel any more")])
def test_a_corrected_mask_that_is_strange_or_blank_is_a_failure_and_the_label_stays(
    five: Folder, value: int, words: str
) -> None:
    five.ingest(splits=HELD_OUT)
    an_hour_ago(five)
    five.mask("c/f0.png", value=value)
    before = five.rows(Label.id)
    assert five.ingest(splits=HELD_OUT).failures == 1
    assert words in five.failures()["masks/c/f0.png"]
    assert five.rows(Label.id) == before


def test_masks_that_are_gone_are_named(five: Folder) -> None:
    five.ingest(splits=HELD_OUT)
    (five.root / "masks" / "c" / "f0.png").unlink()
    (warning,) = five.ingest(splits=HELD_OUT).warnings
    assert warning.startswith("A mask that was read is gone: masks/c/f0.png. ")
    for path in (five.root / "masks" / "b").iterdir():
        path.unlink()
    (warning,) = five.ingest(splits=HELD_OUT).warnings
    assert warning.startswith(
        "3 masks that were read are gone: masks/b/f0.png, masks/b/f1.png, masks/c/f0.png."
    )


def test_a_mask_in_another_place_is_read(five: Folder) -> None:
    five.ingest(splits=HELD_OUT)
    five.mask("new/c/f0.png", value=1)
    report = five.ingest(splits=HELD_OUT, mask_template="new/{parent}/{stem}.png")
    assert report.labeled_images == 1
    assert dict(five.rows(Image.uri, Image.mask_uri))["images/c/f0.png"] == "masks/new/c/f0.png"


def test_other_ids_after_ingest_let_every_mask_be_read_again(five: Folder) -> None:
    """Masks of 0 and 1: with the ids swapped, each label has the other class."""
    five.ingest(splits=HELD_OUT)
    swapped = [{"name": "a", "id": 1}, {"name": "b", "id": 0}]
    project = five.project(splits=HELD_OUT, classes=swapped)
    changed = r"ids of data\.classes from \[0, 1\] to \[1, 0\]"
    with pytest.raises(ConfigError, match=changed):
        ask(five.database, held_out_images, project, "test")
    with pytest.raises(ConfigError, match=changed):
        ask(five.database, labels_to_train_on, project)
    report = five.ingest(splits=HELD_OUT, classes=swapped)
    assert report.labeled_images == 6
    assert report.read_again.endswith("from [0, 1] to [1, 0]. All masks were read again.")
    assert [line.split(" is at")[0] for line in report.grown] == ["The test split", "The calibration split"]
    image_id = dict(five.rows(Image.uri, Image.id))["images/c/f0.png"]
    (label,) = ask(five.database, label_queries.labels_in_force, image_id=image_id)
    assert label.version == 2
    mask = five.read_mask(label.mask_uri)
    assert (mask[:8] == 1).all()
    assert (mask[8:] == 0).all()
    assert len(ask(five.database, held_out_images, project, "test")) == 2
    again = five.ingest(splits=HELD_OUT, classes=swapped)
    assert (again.read_again, again.classes, again.labeled_images) == ("", (), 0)


def test_a_class_id_that_is_only_written_out_lets_no_mask_be_read_again(five: Folder) -> None:
    five.ingest(splits=HELD_OUT)
    written = [{"name": "a", "id": 0}, {"name": "b", "id": 1}]
    assert five.ingest(splits=HELD_OUT, classes=written).classes == ()


def test_other_ids_that_no_mask_has_are_refused_and_nothing_changes(five: Folder) -> None:
    five.ingest(splits=HELD_OUT)
    before = five.rows(Label.id)
    with pytest.raises(DataError, match="10 of 10 masks hold values"):
        five.ingest(splits=HELD_OUT, classes=[{"name": "a", "id": 0}, {"name": "b", "id": 200}])
    assert five.rows(Label.id) == before
    assert five.ingest(splits=HELD_OUT).read_again == ""
