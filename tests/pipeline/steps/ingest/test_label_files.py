"""Labels that exist in a labeling tool's format, as the masks that a project begins with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from sqlalchemy import select

from db.tables import Failure, Image, Label
from pipeline.config import IGNORE
from pipeline.data.masks import Mask, read_mask
from pipeline.data.rendered_masks import mask_codec
from pipeline.errors import DataError
from pipeline.format import count
from tests.pipeline.steps.ingest.folder import HELD_OUT, Folder, count_opens

WIDTH, HEIGHT = 24, 16
NAMES = [f"{group}/f{number}.png" for group in "ab" for number in range(5)]
CATEGORIES = ("a", "b")


def expected(name: str) -> Mask:
    """The mask that is drawn of an image: class a above, b below, and a corner without a class."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[8 + NAMES.index(name) % 4 :] = 1
    mask[:3, :4] = IGNORE
    return mask


def rle(inside: np.ndarray) -> dict[str, Any]:
    encoded: Any = coco_mask.encode(np.asfortranarray(inside.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}


def coco_document(
    names: list[str] = NAMES, *, categories: tuple[str, ...] = CATEGORIES, first_id: int = 1
) -> dict[str, Any]:
    """COCO instances of `expected`, encoded by pycocotools."""
    images = [
        {"id": id_, "file_name": name, "width": WIDTH, "height": HEIGHT} for id_, name in enumerate(names, 7)
    ]
    annotations = [
        {
            "id": 1,
            "image_id": image["id"],
            "category_id": index + first_id,
            "segmentation": rle(expected(str(image["file_name"])) == index),
            "iscrowd": 0,
        }
        for image in images
        for index in range(2)
    ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": first_id + index, "name": name} for index, name in enumerate(categories)],
    }


def write_coco(root: Path, document: dict[str, Any] | None = None) -> None:
    (root / "labels.json").write_text(json.dumps(document or coco_document()))


COCO = {"format": "coco", "path": "labels.json"}


@pytest.fixture
def ten(tmp_path: Path) -> Folder:
    """Ten images in two folders, without masks."""
    folder = Folder(tmp_path / "p")
    folder.sequence("a", 5, masks=False)
    folder.sequence("b", 5, masks=False)
    folder.write("test.txt", "images/a/f4.png", "images/b/f4.png")
    folder.write("calibration.txt", "images/a/f3.png", "images/b/f3.png")
    return folder


def masks_of(folder: Folder, **data: Any) -> dict[str, Mask]:
    """The masks that the store has, by the image's path below `images`."""
    project = folder.project(**data)
    return {
        uri.removeprefix("images/"): read_mask(project.path(mask_uri), mask_codec(project), size=None)
        for uri, mask_uri in folder.rows(Image.uri, Image.mask_uri)
        if mask_uri is not None
    }


def test_coco_instances_become_the_masks_of_a_project(ten: Folder) -> None:
    write_coco(ten.root)
    report = ten.ingest(splits=HELD_OUT, labels=COCO)
    assert (report.masks, report.labeled_images, report.failures) == (10, 6, 0)
    assert report.splits == {"pool": 6, "test": 2, "calibration": 2}
    found = masks_of(ten)
    assert set(found) == set(NAMES)
    for name, mask in found.items():
        assert (mask == expected(name)).all()
    pixels = sum(int((expected(name) == 0).sum()) for name in NAMES)
    assert any(line.split()[0] == "a" and count(pixels) in line for line in report.classes)


def test_ids_of_categories_and_their_order_do_not_matter(ten: Folder) -> None:
    write_coco(ten.root, coco_document(first_id=0))
    ten.ingest(splits=HELD_OUT, labels=COCO, classes=["b", "a"])
    mask = masks_of(ten)["a/f0.png"]
    swapped = np.array([1, 0] + [0] * 253 + [IGNORE], dtype=np.uint8)
    assert (mask == swapped[expected("a/f0.png")]).all()


def test_what_a_mask_made_from_labels_means_does_not_depend_on_ids(ten: Folder) -> None:
    write_coco(ten.root)
    classes = [{"name": "a", "id": 7}, {"name": "b", "id": 255}]
    settings: dict[str, Any] = {"labels": COCO, "classes": classes, "ignore_index": [0]}
    ten.ingest(splits=HELD_OUT, **settings)
    assert (masks_of(ten, **settings)["a/f0.png"] == expected("a/f0.png")).all()


def test_an_unchanged_file_is_not_read_again(ten: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    write_coco(ten.root)
    ten.ingest(splits=HELD_OUT, labels=COCO)
    tables = (Image, Label, Failure)
    before = [ten.rows(*table.__table__.columns) for table in tables]
    opens = count_opens(monkeypatch, ten.root)
    report = ten.ingest(splits=HELD_OUT, labels=COCO)
    assert (report.added, report.labeled_images) == (0, 0)
    assert [ten.rows(*table.__table__.columns) for table in tables] == before
    assert not [name for name in opens if name.startswith(("images/", "labels"))]


def test_a_changed_file_changes_the_labels_that_it_changed(ten: Folder) -> None:
    write_coco(ten.root)
    ten.ingest(splits=HELD_OUT, labels=COCO)
    document = coco_document()
    document["annotations"][0]["segmentation"] = rle(expected(NAMES[0]) != 1)
    write_coco(ten.root, document)
    report = ten.ingest(splits=HELD_OUT, labels=COCO)
    assert (report.labeled_images, report.failures) == (1, 0)
    assert sorted(version for (version,) in ten.rows(Label.version)) == [1, 1, 1, 1, 1, 1, 2]
    assert int((masks_of(ten)[NAMES[0]] == IGNORE).sum()) == 0


def test_an_image_that_comes_later_gets_its_label(ten: Folder) -> None:
    write_coco(ten.root, coco_document([*NAMES, "a/f9.png"][:10]))
    later = coco_document(NAMES)
    later["images"].append({"id": 99, "file_name": "a/f9.png", "width": WIDTH, "height": HEIGHT})
    later["annotations"].append(
        {"id": 1, "image_id": 99, "category_id": 2, "segmentation": rle(np.ones((HEIGHT, WIDTH)))}
    )
    write_coco(ten.root, later)
    first = ten.ingest(splits=HELD_OUT, labels=COCO)
    assert any("1 image that labels.json annotates is not among" in text for text in first.warnings)
    ten.image("a/f9.png")
    report = ten.ingest(splits=HELD_OUT, labels=COCO)
    assert (report.added, report.labeled_images) == (1, 1)
    assert not any("labels.json" in text for text in report.warnings)
    assert (masks_of(ten)["a/f9.png"] == 1).all()


def test_pixels_where_nothing_is_drawn_are_the_class_that_unlabeled_names(ten: Folder) -> None:
    document = coco_document()
    document["annotations"] = [one for one in document["annotations"] if one["category_id"] == 2]
    write_coco(ten.root, document)
    with pytest.raises(DataError, match="unlabeled: a` into the entry of `data.labels`"):
        ten.ingest(splits=HELD_OUT, labels=COCO)
    assert ten.rows(Image.id) == []
    ten.ingest(splits=HELD_OUT, labels=COCO | {"unlabeled": "a"})
    assert (masks_of(ten)["b/f1.png"] == (expected("b/f1.png") == 1)).all()


def test_names_are_mapped_many_to_one_and_null_stays_ignored(ten: Folder) -> None:
    document = coco_document(categories=("soil", "sea"))
    document["categories"] += [{"id": 3, "name": "lake"}, {"id": 4, "name": "dirt"}]
    for number, one in enumerate(document["annotations"]):
        if one["category_id"] == 2 and number % 4 == 1:
            one["category_id"] = 3
    document["annotations"].append(
        {
            "id": 5,
            "image_id": 7,
            "category_id": 4,
            "segmentation": [[0, 0, WIDTH, 0, WIDTH, 2, 0, 2]],
        }
    )
    write_coco(ten.root, document)
    with pytest.raises(DataError) as error:
        ten.ingest(splits=HELD_OUT, labels=COCO | {"classes": {"soil": "a", "sea": "b"}})
    assert "Its classes are soil, sea, lake, dirt; those of the project are a, b." in error.value.problem
    assert "`classes: {soil: a, sea: b, lake: null, dirt: null}`" in error.value.remedy
    labels = COCO | {
        "classes": {"soil": "a", "sea": "b", "lake": "b", "dirt": None},
        "unlabeled": "a",
    }
    ten.ingest(splits=HELD_OUT, labels=labels)
    masks = masks_of(ten)
    drawn = np.where(expected(NAMES[0]) == IGNORE, 0, expected(NAMES[0]))
    drawn[:2] = IGNORE
    assert (masks[NAMES[0]] == drawn).all()
    assert (masks["a/f2.png"] == (expected("a/f2.png") == 1)).all()


def test_what_cannot_be_used_is_listed_and_the_rest_goes_on(ten: Folder) -> None:
    document = coco_document()
    images = document["images"]
    images[1]["width"] = 99
    document["annotations"][4]["category_id"] = 0
    document["annotations"].append({"id": 6, "image_id": 500, "category_id": 1, "segmentation": []})
    images += [{"id": 90 + n, "file_name": f"gone/{n}.png", "width": 1, "height": 1} for n in range(5)]
    document["annotations"] += [
        {"id": 9, "image_id": 90 + n, "category_id": 1, "segmentation": rle(np.ones((1, 1)))}
        for n in range(5)
    ]
    write_coco(ten.root, document)
    report = ten.ingest(splits=HELD_OUT, labels=COCO)
    assert (report.masks, report.failures) == (8, 3)
    failures = ten.failures()
    assert "There is no category 0." in failures["labels.json: images/a/f2.png"]
    assert "99×16 pixels, and the image 24×16" in failures["labels.json: images/a/f1.png"]
    assert "There is no image 500 for 1 of them." in failures["labels.json: annotations of image 500"]
    assert any(
        "5 images that labels.json annotates are not among `data.images`, such as gone/0.png" in text
        for text in report.warnings
    )
    again = ten.ingest(splits=HELD_OUT, labels=COCO)
    assert (ten.failures(), again.warnings) == (failures, report.warnings)


def test_a_mask_in_two_places_is_refused_with_both(ten: Folder) -> None:
    write_coco(ten.root)
    ten.mask("a/f0.png")
    report = ten.ingest(splits=HELD_OUT, labels=COCO)
    assert report.masks == 9
    assert ten.failures() == {
        "masks/a/f0.png": "images/a/f0.png has its mask in masks/a/f0.png and in labels.json. "
        "Leave one of them."
    }


def test_masks_and_label_files_can_be_mixed(ten: Folder) -> None:
    write_coco(ten.root, coco_document(NAMES[:5]))
    (ten.root / "more.json").write_text(json.dumps(coco_document(NAMES[5:8])))
    for name in NAMES[8:]:
        ten.mask(name)
    report = ten.ingest(splits=HELD_OUT, labels=[COCO, {"format": "coco", "path": "more.json"}])
    assert (report.masks, report.failures) == (10, 0)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "there is no file or folder"),
        ("no JSON", "labels.json, of `data.labels`: It is no COCO file"),
        ('{"images": [], "annotations": [], "categories": []}', "It lists no images that can be used"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error_that_names_it(
    ten: Folder, content: str | None, problem: str
) -> None:
    if content is not None:
        (ten.root / "labels.json").write_text(content)
    with pytest.raises(DataError, match=problem):
        ten.ingest(labels=COCO)
    assert ten.rows(Image.id) == []


def test_an_annotation_that_goes_leaves_what_was_read(ten: Folder) -> None:
    write_coco(ten.root)
    ten.ingest(splits=HELD_OUT, labels=COCO)
    write_coco(ten.root, coco_document(NAMES[1:]))
    report = ten.ingest(splits=HELD_OUT, labels=COCO)
    assert report.masks == 10
    assert "1 image is no longer in `data.labels`, such as images/a/f0.png" in report.warnings[0]


def test_the_masks_are_made_again_where_the_work_folder_lost_them(ten: Folder) -> None:
    write_coco(ten.root)
    ten.ingest(splits=HELD_OUT, labels=COCO)
    for (uri,) in ten.rows(Image.mask_uri):
        (ten.root / uri).unlink(missing_ok=True)
    report = ten.ingest(splits=HELD_OUT, labels=COCO)
    assert (report.masks, report.failures, report.warnings) == (10, 0, ())
    assert len(masks_of(ten)) == 10
    with ten.database.session(write=False) as session:
        assert session.execute(select(Label.version)).scalars().all() == [1] * 6
