from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture
from pydantic import ValidationError

from db.queries import images as image_queries
from db.tables import Failure, Image, Label
from pipeline.errors import DataError
from tests.factories import ask, fetch
from tests.pipeline.steps.ingest.folder import HELD_OUT, Folder


def repaint(folder: Folder, table: dict[int, int]) -> None:
    """Replace the values 0 and 1 of all masks."""
    for path in sorted((folder.root / "masks").rglob("*.png")):
        values = np.asarray(Picture.open(path))
        Picture.fromarray(np.vectorize(table.__getitem__)(values).astype(np.uint8)).save(path)


def assert_nothing_is_stored(folder: Folder) -> None:
    assert ask(folder.database, image_queries.project_row) is None
    for table in (Image, Label, Failure):
        assert fetch(folder.database, table) == []


def test_ingest_prints_pixels_share_and_images_of_each_class(five: Folder) -> None:
    five.mask("a/f0.png", value=255)
    report = five.ingest(splits=HELD_OUT)
    at = report.lines().index("Masks read: 10.")
    assert report.lines()[at : at + 5] == [
        "Masks read: 10.",
        "  class        pixels  share  images",
        "  a             1 728   45 %       9",
        "  b             1 728   45 %       9",
        "  not labeled     384   10 %       1",
    ]


def test_white_foreground_is_refused_with_what_to_write(five: Folder) -> None:
    repaint(five, {0: 0, 1: 255})
    with pytest.raises(DataError, match="hold only 0 and 255, and 255 means not labeled, so b has") as caught:
        five.ingest(splits=HELD_OUT)
    assert "`{name: b, id: 255}`" in caught.value.remedy
    assert "`ignore_index: []`" in caught.value.remedy
    assert "`absent_classes: [b]`" in caught.value.remedy
    assert_nothing_is_stored(five)
    report = five.ingest(splits=HELD_OUT, classes=["a", {"name": "b", "id": 255}], ignore_index=[])
    assert (report.masks, report.failures) == (10, 0)


def test_masks_of_1_and_2_are_one_line_with_three_examples(five: Folder) -> None:
    repaint(five, {0: 1, 1: 2})
    with pytest.raises(DataError) as caught:
        five.ingest(splits=HELD_OUT)
    assert caught.value.problem == (
        "10 of 10 masks hold values that are neither a class nor ignored: 2 (1 920 px). For example "
        "masks/a/f0.png, masks/a/f1.png, masks/b/f0.png."
    )
    assert "`classes: [{name: a, id: 1}, {name: b, id: 2}]`" in caught.value.remedy
    assert_nothing_is_stored(five)


def test_one_odd_mask_among_good_ones_does_not_make_its_values_the_classes(five: Folder) -> None:
    path = five.mask("c/f0.png")
    Picture.fromarray(np.asarray(Picture.open(path)) + np.uint8(7)).save(path)
    with pytest.raises(DataError, match=r"1 of 10 masks .* ignored: 7 \(192 px\), 8 \(192 px\)") as caught:
        five.ingest(splits=HELD_OUT)
    assert caught.value.remedy.startswith("The ids of `data.classes` are 0, 1.")


def test_masks_that_no_image_claims_are_named_while_an_image_lacks_one(five: Folder) -> None:
    assert five.ingest(splits=HELD_OUT).skipped == ()
    five.image("d/lacks.png")
    five.mask("d/lacks_label.png")
    (five.root / "masks" / "d" / ".hidden.png").write_bytes(b"")
    (five.root / "masks" / "d" / "notes.txt").write_bytes(b"")
    [line] = five.ingest(splits=HELD_OUT).skipped
    assert line == (
        "1 picture in `data.masks` is the mask of no image: masks/d/lacks_label.png. A mask is called "
        "`{parent}/{stem}.png` after its image, as `data.mask_template` says."
    )
    five.mask("d/lacks.png")
    assert five.ingest(splits=HELD_OUT).skipped == ()


def test_more_values_than_classes_are_refused_with_the_ids(five: Folder) -> None:
    five.mask("c/f0.png", value=7)
    with pytest.raises(DataError, match=r"1 of 10 masks .* ignored: 7 \(384 px\)") as caught:
        five.ingest(splits=HELD_OUT)
    assert "`ignore_index: [7, 255]`" in caught.value.remedy
    assert_nothing_is_stored(five)
    assert five.ingest(splits=HELD_OUT, ignore_index=[7, 255]).failures == 0


def test_a_class_without_a_pixel_is_refused_unless_the_configuration_says_so(five: Folder) -> None:
    with pytest.raises(DataError, match="No mask has a pixel of c") as caught:
        five.ingest(splits=HELD_OUT, classes=["a", "b", "c"])
    assert "`absent_classes: [c]`" in caught.value.remedy
    assert_nothing_is_stored(five)
    report = five.ingest(splits=HELD_OUT, classes=["a", "b", "c"], absent_classes=["c"])
    assert report.labeled_images == 6
    with pytest.raises(ValidationError, match="`absent_classes` names d, which"):
        five.project(absent_classes=["d"])


def test_once_splits_are_locked_a_bad_mask_stops_nothing(five: Folder) -> None:
    five.ingest(splits=HELD_OUT)
    five.image("c/new.png")
    five.mask("c/new.png", value=7)
    report = five.ingest(splits=HELD_OUT)
    assert (report.added, report.failures) == (1, 1)
    assert "7 (384 px)" in five.failures()["masks/c/new.png"]


def test_masks_of_which_none_can_be_used_are_not_taken_for_none(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for name in ("x.png", "y.png"):
        folder.image(name)
        folder.mask(name)
        Picture.new("LA", (24, 16)).save(folder.root / "masks" / name)
    (warning,) = [line for line in folder.ingest().warnings if "None of the 2 masks can be used" in line]
    assert "has transparent pixels. Flatten it, then save it without transparency." in warning


def test_a_mask_of_two_images_is_neithers(five: Folder) -> None:
    five.image("c/x.png")
    five.image("c/x.jpg")
    five.mask("c/x.png")
    report = five.ingest(splits=HELD_OUT)
    assert report.failures == 1
    assert "belongs to two images, images/c/x.jpg and images/c/x.png" in five.failures()["masks/c/x.png"]
    masks = dict(five.rows(Image.uri, Image.mask_uri))
    assert masks["images/c/x.png"] is masks["images/c/x.jpg"] is None
