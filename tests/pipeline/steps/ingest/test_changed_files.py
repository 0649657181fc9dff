from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from db.queries import labels as label_queries
from db.tables import Image, Label
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


def test_a_corrected_mask_with_strange_values_is_a_failure_and_the_label_stays(five: Folder) -> None:
    five.ingest(splits=HELD_OUT)
    an_hour_ago(five)
    five.mask("c/f0.png", value=7)
    before = five.rows(Label.id)
    assert five.ingest(splits=HELD_OUT).failures == 1
    assert "7 (384 px)" in five.failures()["masks/c/f0.png"]
    assert five.rows(Label.id) == before


def test_a_mask_that_was_blanked_is_a_failure_and_the_label_stays(five: Folder) -> None:
    five.ingest(splits=HELD_OUT)
    an_hour_ago(five)
    five.mask("c/f0.png", value=255)
    before = five.rows(Label.id)
    assert five.ingest(splits=HELD_OUT).failures == 1
    assert "has no labeled pixel any more" in five.failures()["masks/c/f0.png"]
    assert five.rows(Label.id) == before
