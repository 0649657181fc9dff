from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture
from sqlalchemy import select

from db.queries import images as image_queries
from db.queries import queues, rounds
from db.tables import Failure, Image, Label, LabelRegion, Queue, QueueItem
from db.tables import Project as ProjectRow
from pipeline.config import IGNORE
from pipeline.data.images import read_image
from pipeline.data.masks import MaskCodec, read_mask
from pipeline.errors import ConfigError, DataError
from tests.factories import ask, fetch, round_state
from tests.pipeline.steps.ingest.folder import HELD_OUT, Folder, count_opens


def test_the_first_ingest_registers_splits_labels_and_opens_round_one(five: Folder) -> None:
    report = five.ingest(splits=HELD_OUT)
    assert (report.found, report.added, report.failures, report.masks) == (10, 10, 0, 10)
    assert report.splits == {"pool": 6, "test": 2, "calibration": 2}
    assert (report.labeled_images, report.labeled_regions) == (6, 6)
    [labeled] = report.warnings
    assert labeled.startswith(
        "Every image of the pool has a mask, and is labeled: `select` will have nothing"
    )
    assert report.lines()[0] == "Found 10 image files, 10 of them new; 10 images have a mask."
    row = five.rows(
        Image.width, Image.height, Image.channels, Image.group_name, Image.position, Image.mask_uri
    )[1]
    assert row == (24, 16, 3, "images/a", 1, "masks/a/f1.png")
    current = ask(five.database, rounds.current_round)
    assert current is not None
    assert (current.number, current.state) == (1, "train")
    queue = ask(five.database, queues.initial_queue)
    assert queue is not None
    assert (queue.name, queue.round_id) == ("initial", None)
    label, *_ = fetch(five.database, Label)
    assert (label.source, label.labeled_pixels, label.version) == ("initial", 24 * 16, 1)
    mask = read_mask(
        five.root / label.mask_uri, MaskCodec.from_config(five.project().config.data), size=(24, 16)
    )
    assert mask[:8].max() == 0
    assert mask[8:].min() == 1
    assert set(five.rows(QueueItem.status, QueueItem.slice)) == {("labeled", "initial")}
    assert five.rows(LabelRegion.x, LabelRegion.y, LabelRegion.w, LabelRegion.h)[0] == (0, 0, 24, 16)


def test_a_new_image_is_opened_once_and_a_mask_once_to_look_and_once_to_label(
    five: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    opens = count_opens(monkeypatch, five.root)
    five.ingest(splits=HELD_OUT)
    assert {count for name, count in opens.items() if name.startswith("images/")} == {1}
    assert {count for name, count in opens.items() if name.startswith("masks/")} == {1, 2}
    opens.clear()
    five.ingest(splits=HELD_OUT)
    assert not [name for name in opens if name.startswith(("images/", "masks/"))]


def test_running_again_changes_nothing(five: Folder) -> None:
    five.ingest(splits=HELD_OUT)
    tables = (Image, Label, QueueItem, Queue, Failure, ProjectRow)
    before = [five.rows(*table.__table__.columns) for table in tables]
    report = five.ingest(splits=HELD_OUT)
    assert (report.found, report.added, report.labeled_images) == (10, 0, 0)
    assert [five.rows(*table.__table__.columns) for table in tables] == before


def test_labels_never_come_from_held_out_images(five: Folder) -> None:
    five.ingest(splits=HELD_OUT)
    with five.database.session(write=False) as session:
        labeled = session.execute(select(Image.split).join(Label, Label.image_id == Image.id)).scalars().all()
    assert set(labeled) == {"pool"}


def test_every_kind_of_bad_file_is_recorded_and_the_rest_is_used(five: Folder) -> None:
    five.ingest(splits=HELD_OUT)
    images, masks = five.root / "images", five.root / "masks"
    cut = five._save(Picture.effect_noise((90, 90), 90).convert("RGB"), images / "c" / "cut.jpg")
    cut.write_bytes(cut.read_bytes()[:2000])
    (images / "c" / "text.png").write_text("no image")
    five._save(Picture.new("CMYK", (4, 4)), images / "c" / "cmyk.jpg")
    five.image("c/unknown_id.png")
    five.mask("c/unknown_id.png", value=7)
    five.image("c/other_size.png")
    five.mask("c/other_size.png", size=(16, 24))
    five.image("c/blank_mask.png")
    five.mask("c/blank_mask.png", value=IGNORE)
    five.image("c/one_pixel.png", size=(1, 1))
    five.mask("c/one_pixel.png", size=(1, 1))
    five.image("c/large.png", size=(120, 100))
    odd = 'c/it\'s "odd" Straße 東京 (1).png'
    five.image(odd)
    five.mask(odd)
    report = five.ingest(splits=HELD_OUT, max_pixels=10_000)
    failures = five.failures()
    assert set(failures) == {
        "images/c/cut.jpg",
        "images/c/text.png",
        "images/c/large.png",
        "masks/c/unknown_id.png",
        "masks/c/other_size.png",
    }
    assert report.failures == 5
    assert "truncated" in failures["images/c/cut.jpg"]
    assert "120×100 pixels, more than `data.max_pixels`" in failures["images/c/large.png"]
    assert "7 (384 px)" in failures["masks/c/unknown_id.png"]
    assert "16×24 pixels, its image 24×16" in failures["masks/c/other_size.png"]
    masks = dict(five.rows(Image.uri, Image.mask_uri))
    assert masks["images/c/unknown_id.png"] is None
    assert masks["images/c/other_size.png"] is None
    assert masks["images/c/blank_mask.png"] is None
    assert masks[f"images/{odd}"] == f"masks/{odd}"
    assert masks["images/c/one_pixel.png"] == "masks/c/one_pixel.png"
    assert five.splits()["images/c/unknown_id.png"] == "pool"
    assert any("segcurate failures" in line for line in report.lines())


def test_mended_files_come_in_and_their_failures_go(five: Folder) -> None:
    bad = five.root / "images" / "c" / "new.png"
    bad.write_text("no image")
    five.ingest(splits=HELD_OUT)
    five.image("d/new.png")
    five.mask("d/new.png", value=9)
    five.ingest(splits=HELD_OUT)
    assert set(five.failures()) == {"images/c/new.png", "masks/d/new.png"}
    five.image("c/new.png")
    five.mask("d/new.png")
    report = five.ingest(splits=HELD_OUT)
    assert five.failures() == {}
    assert (report.added, report.labeled_images) == (1, 1)


def test_failures_of_files_that_are_gone_are_forgotten(five: Folder) -> None:
    bad = five.root / "images" / "c" / "bad.png"
    bad.write_text("no image")
    five.ingest(splits=HELD_OUT)
    bad.unlink()
    five.ingest(splits=HELD_OUT)
    assert five.failures() == {}


def test_an_empty_folder_is_an_error_that_names_it(folder: Folder) -> None:
    (folder.root / "images").mkdir()
    with pytest.raises(DataError, match="There is no image in images") as caught:
        folder.ingest()
    assert "data.images" in caught.value.remedy


def test_skipped_files_are_one_line_of_the_report(five: Folder) -> None:
    (five.root / "images" / "film.mp4").write_text("a film")
    assert "1 file is no image and was skipped: 1 .mp4." in five.ingest(splits=HELD_OUT).lines()


def test_a_folder_of_nothing_usable_is_an_error_and_the_reasons_stay(folder: Folder) -> None:
    (folder.root / "images").mkdir()
    (folder.root / "images" / "a.png").write_text("no image")
    with pytest.raises(DataError, match="The only file cannot be used as an image"):
        folder.ingest()
    assert set(folder.failures()) == {"images/a.png"}


def test_without_masks_splits_stay_open_and_the_round_without_a_model_opens(folder: Folder) -> None:
    for group in "abcd":
        folder.sequence(group, 2, masks=False)
    report = folder.ingest()
    assert report.splits == {"pool": 8}
    assert "`data.masks` is not set" in report.warnings[0]
    assert round_state(folder.database) == (0, "select")
    for group in "abc":
        folder.mask(f"{group}/f0.png")
    report = folder.ingest()
    assert (report.added, report.labeled_images) == (0, 1)
    assert {split for uri, split in folder.splits().items() if "/d/" in uri} == {"pool"}
    assert report.unmasked == {"test": 1, "calibration": 1}
    assert round_state(folder.database) == (1, "train")


def test_orientation_is_that_of_the_displayed_image_for_image_and_mask(folder: Folder) -> None:
    for group in "abcd":
        folder.sequence(group, 1)
    exif = Picture.Exif()
    exif[274] = 6
    stored = np.zeros((20, 40, 3), dtype=np.uint8)
    stored[:, :20] = 255  # the left half of the file is the upper half of the upright picture
    path = folder.root / "images" / "e" / "turned.jpg"
    path.parent.mkdir()
    Picture.fromarray(stored).save(path, exif=exif, quality=95)
    folder.mask("e/turned.png", size=(20, 40))
    report = folder.ingest()
    assert report.failures == 0
    assert (20, 40) in folder.rows(Image.width, Image.height)
    image = read_image(path, channels=3, max_pixels=10_000)
    mask = folder.read_mask("masks/e/turned.png", size=(20, 40))
    assert image.shape[:2] == mask.shape
    assert image[mask == 0].min() > 200
    assert image[mask == 1].max() < 50


def test_exact_copies_are_linked_to_the_first(five: Folder) -> None:
    five.image("c/one.png", seed=5)
    five.image("d/one.png", seed=5)
    five.image("e/two.png", seed=5)
    report = five.ingest(splits=HELD_OUT)
    assert report.splits["duplicate"] == 2
    links = {uri: (id, of) for uri, id, of in five.rows(Image.uri, Image.id, Image.duplicate_of)}
    first = links["images/c/one.png"][0]
    assert links["images/c/one.png"][1] is None
    assert links["images/d/one.png"][1] == links["images/e/two.png"][1] == first


def test_a_pool_copy_of_a_held_out_image_is_never_used(five: Folder) -> None:
    five.image("c/copy.png", seed=8)  # found before the held-out one of the same content
    five.mask("c/copy.png")
    five.image("e/held.png", seed=8)
    five.mask("e/held.png")
    five.write("test.txt", "e/held.png")
    five.ingest(splits=HELD_OUT)
    ids = dict(five.rows(Image.uri, Image.id))
    links = dict(five.rows(Image.uri, Image.duplicate_of))
    assert links["images/e/held.png"] is None
    assert links["images/c/copy.png"] == ids["images/e/held.png"]
    with five.database.session(write=False) as session:
        pool = {image.uri for image in image_queries.pool_images(session, limit=100)}
        assert "images/c/copy.png" not in pool
        assert [image.uri for image in image_queries.split_images(session, "test")] == ["images/e/held.png"]
        labeled = session.scalars(select(Image.uri).join(Label, Label.image_id == Image.id)).all()
    assert "images/c/copy.png" not in labeled
    five.image("d/late_copy.png", seed=8)
    five.ingest(splits=HELD_OUT)
    assert (
        dict(five.rows(Image.uri, Image.duplicate_of))["images/d/late_copy.png"] == ids["images/e/held.png"]
    )


def test_new_images_join_the_pool_or_the_side_of_their_group(folder: Folder) -> None:
    for group in "abcdef":
        folder.sequence(group, 3)
    folder.ingest()
    before = folder.splits()
    held = next(uri.split("/")[1] for uri, split in before.items() if split == "test")
    free = next(uri.split("/")[1] for uri, split in before.items() if split == "pool")
    folder.sequence(held, 1, first=7)
    folder.sequence(free, 1, first=7)
    folder.sequence("new", 2)
    report = folder.ingest()
    after = folder.splits()
    assert {uri: after[uri] for uri in before} == before
    assert after[f"images/{held}/f7.png"] == "test"
    assert after[f"images/{free}/f7.png"] == "pool"
    assert after["images/new/f0.png"] == "pool"
    assert report.labeled_images == 3


@pytest.mark.parametrize("position_regex", [None, "f([0-9]+)"])
def test_new_frames_beside_held_out_ones_are_guards(folder: Folder, position_regex: str | None) -> None:
    spec = {"fraction": 0.2, "by": "block", "block": 5, "guard": 1}
    for number in range(10, 300, 10):
        folder.image(f"s/f{number}.png")
        folder.mask(f"s/f{number}.png")
    splits = {"test": spec, "calibration": spec}
    folder.ingest(splits=splits, position_regex=position_regex)
    before = folder.splits()
    for number in range(5, 300, 10):
        folder.image(f"s/f{number}.png")
    folder.ingest(splits=splits, position_regex=position_regex)
    after = folder.splits()
    assert {uri: after[uri] for uri in before} == before
    for number in range(15, 295, 10):
        sides = {before[f"images/s/f{number - 5}.png"], before[f"images/s/f{number + 5}.png"]}
        expected = "guard" if sides & {"test", "calibration"} else "pool"
        assert after[f"images/s/f{number}.png"] == expected
    folder.image("s/f1000.png")
    folder.ingest(splits=splits, position_regex=position_regex)
    positions = dict(folder.rows(Image.uri, Image.position))
    assert positions["images/s/f1000.png"] > positions["images/s/f285.png"] >= positions["images/s/f280.png"]


def test_a_listed_image_that_comes_late_is_held_out(five: Folder) -> None:
    five.ingest(splits=HELD_OUT)
    five.sequence("e", 1, first=5)
    five.write("test.txt", "a/f0.png", "a/f1.png", "e/f5.png", "c/f0.png")
    report = five.ingest(splits=HELD_OUT)
    assert five.splits()["images/e/f5.png"] == "test"
    assert five.splits()["images/c/f0.png"] == "pool"
    assert "`splits.test` now names 1 known images that are labeled" in report.warnings[0]
    assert report.grown == (
        "The test split is at version 2: 3 images with masks, 1 of them new or corrected, in at most 2 "
        "independent units.",
    )


def test_splits_and_classes_cannot_change_once_locked(five: Folder) -> None:
    five.ingest(splits=HELD_OUT)
    with pytest.raises(ConfigError, match="`splits.seed` has changed"):
        five.ingest(splits={**HELD_OUT, "seed": 9})
    with pytest.raises(ConfigError, match="`splits.test` has changed"):
        five.ingest(splits={**HELD_OUT, "test": {"fraction": 0.3}})
    with pytest.raises(ConfigError, match=r"`data.classes` has changed.*\['a', 'b'\]"):
        five.ingest(splits=HELD_OUT, classes=["a", "b", "c"])
    with pytest.raises(ConfigError, match=r"`data.channels` has changed"):
        five.ingest(splits=HELD_OUT, channels=1)


def test_a_list_with_a_typing_error_locks_nothing(five: Folder) -> None:
    five.write("test.txt", "a/f0.png", "a/f1.pgn")
    with pytest.raises(ConfigError, match=r"1 lines of test.txt name no image: line 2"):
        five.ingest(splits=HELD_OUT)
    row = ask(five.database, image_queries.project_row)
    assert row is not None
    assert row.splits_locked_at is None
    assert ask(five.database, rounds.current_round) is None
    five.write("test.txt", "a/f0.png", "a/f1.png")
    assert five.ingest(splits=HELD_OUT).splits == {"pool": 6, "test": 2, "calibration": 2}


def test_regions_are_drawn_once_and_the_rest_of_the_mask_is_ignored(five: Folder) -> None:
    splits = {**HELD_OUT, "initial": {"fraction": 0.25, "unit": "region"}}
    report = five.ingest(splits=splits)
    assert report.labeled_regions == 9  # a quarter of 6 images with 3 × 2 cells of 8 pixels
    items = five.rows(
        QueueItem.image_id, QueueItem.x, QueueItem.y, QueueItem.w, QueueItem.h, QueueItem.region_index
    )
    for image_id, uri, pixels in five.rows(Label.image_id, Label.mask_uri, Label.labeled_pixels):
        mask = five.read_mask(uri)
        expected = np.full((16, 24), IGNORE, dtype=np.uint8)
        for item in items:
            if item[0] == image_id:
                _, x, y, w, h, index = item
                assert (index % 3 * 8, index // 3 * 8) == (x, y)
                expected[y : y + h, x : x + w] = y // 8
        np.testing.assert_array_equal(mask, expected)
        assert pixels == (expected != IGNORE).sum()
    five.sequence("new", 3)
    assert five.ingest(splits=splits).labeled_regions == 0
    assert (
        five.rows(
            QueueItem.image_id, QueueItem.x, QueueItem.y, QueueItem.w, QueueItem.h, QueueItem.region_index
        )
        == items
    )


def test_a_number_of_initial_images_is_drawn_by_the_seed(five: Folder) -> None:
    report = five.ingest(splits={**HELD_OUT, "initial": {"count": 4}})
    assert (report.labeled_images, report.labeled_regions) == (4, 4)


def test_more_initial_images_than_masks_takes_all_and_says_so(five: Folder) -> None:
    report = five.ingest(splits={**HELD_OUT, "initial": {"count": 40}})
    assert report.labeled_images == 6
    assert "asks for 40 images; only 6 have a mask" in report.warnings[0]


@pytest.mark.parametrize("initial", [{"list": "first.txt"}, {"folder": "images/c/*"}])
def test_named_initial_images_are_labeled_and_held_out_ones_never(
    five: Folder, initial: dict[str, str]
) -> None:
    five.write("first.txt", "c/f0.png", "c/f1.png", "a/f0.png")
    splits = {**HELD_OUT, "initial": initial}
    assert five.ingest(splits=splits).labeled_images == 2
    assert five.ingest(splits=splits).labeled_images == 0
    uris = fetch(five.database, select(Image.uri).join(Label, Label.image_id == Image.id))
    assert sorted(uris) == ["images/c/f0.png", "images/c/f1.png"]


@pytest.mark.skipif(os.name != "posix", reason="names are text elsewhere")
def test_a_name_that_is_no_text_is_recorded(five: Folder) -> None:
    name = os.path.join(os.fsencode(five.root / "images" / "c"), b"bad\xff.png")
    with open(five.root / "images" / "c" / "f0.png", "rb") as source, open(name, "wb") as target:
        target.write(source.read() + b" ")
    five.ingest(splits=HELD_OUT)
    assert "not UTF-8" in five.failures()["images/c/bad\\udcff.png"]


def test_an_image_without_a_group_is_recorded_and_not_guessed(five: Folder) -> None:
    five.image("odd.png")
    report = five.ingest(splits=HELD_OUT, group_regex="/([a-e])/")
    assert report.failures == 1
    assert "finds no group" in five.failures()["images/odd.png"]
    assert "images/odd.png" not in five.splits()


def test_held_out_images_without_a_mask_are_counted_in_the_report(five: Folder) -> None:
    (five.root / "masks" / "a" / "f0.png").unlink()
    report = five.ingest(splits=HELD_OUT)
    assert report.unmasked == {"test": 1}
    assert "Warning: 1 test image has no mask and cannot be evaluated." in report.lines()


def test_images_outside_the_projects_folder_keep_their_whole_path(tmp_path: Path) -> None:
    store = Folder(tmp_path / "data")
    for group in "abcd":
        store.sequence(group, 1)
    here = Folder(tmp_path / "project")
    report = here.ingest(images=["../data/images"], masks="../data/masks")
    assert report.added == 4
    assert set(here.splits()) == {f"{tmp_path}/data/images/{group}/f0.png" for group in "abcd"}
