"""What a mask's values and colours mean on the way to the annotator and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from pipeline.config import IGNORE, DataConfig
from pipeline.labeling.encoding import LabelMap, is_whole_image

MASK = np.array([[0, 1, 2], [2, IGNORE, 0]], dtype=np.uint8)


def data(classes: list[Any], **settings: Any) -> DataConfig:
    return DataConfig.model_validate({"images": ["images"], "classes": classes, **settings})


@pytest.mark.parametrize(
    "config",
    [
        data(["a", "b", "c"]),
        data([{"name": "a", "id": 255}, {"name": "b", "id": 3}, "c"], ignore_index=[0]),
        data([{"name": "a", "id": 70}, {"name": "b", "id": 4000}, {"name": "c", "id": 1}]),
        data([{"name": name, "color": (n, 0, 0)} for n, name in enumerate("abc")], mask_encoding="rgb"),
        data(["a", "b", {"name": "c", "color": (230, 25, 75)}], mask_encoding="palette", ignore_index=[]),
    ],
)
def test_what_is_written_is_read_back_as_values_and_as_colours(tmp_path: Path, config: DataConfig) -> None:
    label_map = LabelMap(config)
    label_map.write(tmp_path / "mask.png", MASK)
    np.testing.assert_array_equal(label_map.read(tmp_path / "mask.png", size=(3, 2)), MASK)
    document = label_map.document()
    colors = np.zeros((256, 3), dtype=np.uint8)
    colors[:3] = [item["color"] for item in document["classes"]]
    colors[IGNORE] = document["not_labeled"]["color"]
    PillowImage.fromarray(colors[MASK]).save(tmp_path / "rgb.png")
    np.testing.assert_array_equal(label_map.read(tmp_path / "rgb.png", size=(3, 2)), MASK)


def test_the_written_values_are_those_of_the_label_map(tmp_path: Path) -> None:
    config = data([{"name": "a", "id": 70}, {"name": "b", "id": 4000}, {"name": "c", "id": 1}])
    LabelMap(config).write(tmp_path / "mask.png", MASK)
    values = np.asarray(PillowImage.open(tmp_path / "mask.png"))
    assert values.tolist() == [[70, 4000, 1], [1, 255, 70]]


def test_no_class_shares_its_colour_or_value_with_what_is_not_labeled() -> None:
    config = data(
        [
            {"name": "a", "color": (224, 224, 192)},
            {"name": "b", "color": (255, 0, 255)},
            {"name": "c", "id": 255},
        ],
        ignore_index=[],
    )
    document = LabelMap(config).document()
    colors = [tuple(item["color"]) for item in document["classes"]]
    assert len({*colors, tuple(document["not_labeled"]["color"])}) == 4
    assert document["not_labeled"]["id"] not in [item["id"] for item in document["classes"]]


def test_a_mask_is_of_the_whole_image_when_most_of_the_rest_is_painted_too() -> None:
    boxes = np.array([[0, 0, 2, 2]], dtype=np.int32)
    mask = np.zeros((4, 4), dtype=np.uint8)
    assert is_whole_image(mask, boxes)
    mask[2:] = IGNORE  # 8 of the 12 pixels outside the box
    assert not is_whole_image(mask, boxes)
    mask = np.zeros((4, 4), dtype=np.uint8)
    mask[:2, :2] = IGNORE
    assert not is_whole_image(mask, boxes)


def test_a_premask_shows_the_classes_in_their_colours_in_8_bits(tmp_path: Path) -> None:
    label_map = LabelMap(data(["a", "b", {"name": "c", "id": 255}], ignore_index=[]))
    label_map.write(tmp_path / "mask.png", MASK)
    with PillowImage.open(tmp_path / "mask.png") as image:
        assert image.mode == "P"
        shown = np.asarray(image.convert("RGB"))
    assert tuple(shown[0, 0].tolist()) == label_map.colors[0] == (72, 72, 72)
    assert tuple(shown[0, 2].tolist()) == label_map.colors[2]
    assert tuple(shown[1, 1].tolist()) == label_map.unpainted_color


def test_masks_of_a_queue_of_an_earlier_version_come_back(tmp_path: Path) -> None:
    label_map = LabelMap(data(["a", "b", {"name": "c", "id": 255}], ignore_index=[]))
    former = np.zeros((256, 3), dtype=np.uint8)
    former[:3] = [(230, 25, 75), (60, 180, 75), (255, 225, 25)]
    former[IGNORE] = label_map.unpainted_color
    PillowImage.fromarray(former[MASK]).save(tmp_path / "rgb.png")
    np.testing.assert_array_equal(label_map.read(tmp_path / "rgb.png", size=(3, 2)), MASK)
    values = np.zeros(256, dtype=np.uint16)
    values[[0, 1, 2, IGNORE]] = (0, 1, 255, 65535)
    PillowImage.fromarray(values[MASK]).save(tmp_path / "index.png")
    np.testing.assert_array_equal(label_map.read(tmp_path / "index.png", size=(3, 2)), MASK)
