"""What is written for Label Studio: its configuration, its tasks, and the pictures that they name."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import DataError
from pipeline.labeling.label_studio import bitmask, brush
from pipeline.labeling.label_studio.config import (
    Masks,
    label_values,
    labeling_config,
    masks_of,
    with_masks,
)
from pipeline.labeling.label_studio.tasks import LOCAL_FILES, TasksWriter, with_masks_as
from pipeline.labeling.manifest import read_manifest
from tests.pipeline.labeling.label_studio.synthetic import (
    CLASSES,
    export,
    label_map,
    outgoing_images,
    outgoing_queue,
)


@pytest.mark.parametrize("masks", ["bitmask", "brush"])
def test_tasks_hold_what_is_proposed_in_the_order_of_the_queue(tmp_path: Path, masks: Masks) -> None:
    images = outgoing_images(tmp_path / "source")
    folder = export(tmp_path / "out", outgoing_queue(), images, masks=masks)
    tasks = json.loads((folder / "tasks.json").read_text())
    assert [task["data"]["image_id"] for task in tasks] == [image.image_id for image in images]
    for task, image in zip(tasks, images, strict=True):
        (prediction,) = task["predictions"]
        mask = np.full((image.height, image.width), 255, dtype=np.uint8)
        boxes = []
        for region in prediction["result"]:
            assert (region["original_width"], region["original_height"]) == (image.width, image.height)
            value = region["value"]
            if region["type"] == "rectanglelabels":
                assert region["from_name"] == "look"
                scale = image.width / 100, image.height / 100
                x, width = value["x"] * scale[0], value["width"] * scale[0]
                y, height = value["y"] * scale[1], value["height"] * scale[1]
                boxes.append([round(side, 6) for side in (x, y, width, height)])
                continue
            size = {"width": image.width, "height": image.height}
            if masks == "brush":
                painted = brush.decode(value["rle"], **size)
            else:
                painted = bitmask.decode(value["imageDataURL"], **size)
            assert painted.any()
            (name,) = value[f"{masks}labels"]
            mask[painted] = CLASSES.index(name)
        np.testing.assert_array_equal(mask, image.mask)
        assert boxes == [[region.x, region.y, region.w, region.h] for region in image.regions]


def test_both_orders_of_label_studio_are_that_of_the_queue(tmp_path: Path) -> None:
    folder = export(tmp_path / "out", outgoing_queue(), outgoing_images(tmp_path / "source"))
    predictions = [task["predictions"][0] for task in json.loads((folder / "tasks.json").read_text())]
    scores = [prediction["score"] for prediction in predictions]
    assert all(0 <= low < high < 1 for low, high in pairwise(scores))
    assert {prediction["model_version"] for prediction in predictions} == {"round-03 r02"}


def test_every_picture_of_a_task_is_one_that_browsers_show_upright(tmp_path: Path) -> None:
    images = outgoing_images(tmp_path / "source")
    folder = export(tmp_path / "out", outgoing_queue(), images)
    for task, image in zip(json.loads((folder / "tasks.json").read_text()), images, strict=True):
        path = folder / unquote(task["data"]["image"].removeprefix(LOCAL_FILES))
        with Image.open(path) as picture:
            assert picture.size == (image.width, image.height)
            assert picture.getexif().get(274, 1) == 1
            assert picture.mode in ("RGB", "L")
        (heatmap,) = task["data"]["heatmaps"]
        with Image.open(folder / unquote(heatmap.removeprefix(LOCAL_FILES))) as picture:
            assert picture.mode == "RGB"


def test_the_manifest_names_the_same_files(tmp_path: Path) -> None:
    images = outgoing_images(tmp_path / "source")
    folder = export(tmp_path / "out", outgoing_queue(), images)
    for line, image in zip(read_manifest(folder / "manifest.jsonl"), images, strict=True):
        assert not hasattr(line, "number")
        assert (line.image_id, line.sha256) == (image.image_id, image.sha256)  # pyright: ignore[reportAttributeAccessIssue]
        assert (folder / line.image).is_file()  # pyright: ignore[reportAttributeAccessIssue]
    assert "7 images" in (folder / "README.md").read_text()


def test_without_overlays_there_are_no_pictures_beside_the_image(tmp_path: Path) -> None:
    queue = outgoing_queue(overlays=False)
    folder = export(tmp_path / "out", queue, outgoing_images(tmp_path / "source"))
    assert not (folder / "heatmaps").exists()
    assert "heatmap" not in (folder / "config.xml").read_text()
    assert json.loads((folder / "tasks.json").read_text())[0]["data"]["heatmaps"] == []


def test_an_image_that_cannot_be_read_leaves_the_tasks_whole(tmp_path: Path) -> None:
    images = outgoing_images(tmp_path / "source")
    (tmp_path / "out").mkdir()
    writer = TasksWriter(tmp_path / "out", outgoing_queue())
    for image in images:
        if image.position in (0, 2):
            assert isinstance(image.source, Path)
            image.source.write_bytes(b"this is not a picture")
            with pytest.raises(DataError):
                writer.add(image)
        else:
            writer.add(image)
    writer.finish()
    tasks = json.loads((tmp_path / "out" / "tasks.json").read_text())
    assert [task["data"]["place"] for task in tasks] == [1, 3, 4, 5, 6]


def test_a_queue_of_nothing_is_an_empty_list(tmp_path: Path) -> None:
    assert json.loads((export(tmp_path / "out", outgoing_queue(), []) / "tasks.json").read_text()) == []


def test_classes_are_called_in_results_what_they_are_called(tmp_path: Path) -> None:
    view = ElementTree.fromstring(labeling_config(label_map()))
    labels = view.findall("./BitmaskLabels/Label")
    assert [label.get("alias") or label.get("value") for label in labels] == CLASSES
    assert all("$" not in str(label.get("value")) for label in labels)
    colors = ["#" + bytes(color).hex() for color in label_map().colors]
    assert [label.get("background") for label in labels] == colors


def test_a_class_that_xml_cannot_hold_gets_a_name_that_is_no_other_class(tmp_path: Path) -> None:
    names = ["a\x01b", "class 0", "c\uffff"]
    assert label_values(names) == ["class 0'", "class 0", "class 2"]
    ElementTree.fromstring(labeling_config(label_map(names)))


def test_a_configuration_and_masks_turn_into_the_other_kind(tmp_path: Path) -> None:
    images = outgoing_images(tmp_path / "source")
    folders = {
        masks: export(tmp_path / masks, outgoing_queue(), images, masks=masks)
        for masks in ("brush", "bitmask")
    }
    configs = {masks: (folder / "config.xml").read_text() for masks, folder in folders.items()}
    results = {
        masks: json.loads((folder / "tasks.json").read_text())[0]["predictions"][0]["result"]
        for masks, folder in folders.items()
    }
    assert masks_of(configs["brush"]) == "brush"
    assert masks_of(configs["bitmask"]) == "bitmask"
    assert with_masks(configs["brush"], "bitmask") == configs["bitmask"]
    assert with_masks(configs["bitmask"], "brush") == configs["brush"]
    assert with_masks_as(results["brush"], "bitmask") == results["bitmask"]
    assert with_masks_as(results["bitmask"], "brush") == results["brush"]


@pytest.mark.parametrize(
    "config",
    ["", "<View", '<View><Labels name="mask"/></View>', '<!DOCTYPE a [<!ENTITY b "c">]><View>&b;</View>'],
)
def test_a_configuration_of_somebody_else_has_no_masks_of_ours(config: str) -> None:
    assert masks_of(config) is None
    assert with_masks(config, "brush") == config
