"""A project that begins with a labeling tool's file, from the command line to its first round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools import mask as coco

from tests.factories import TINY
from tests.flows.console import Console


@pytest.fixture
def console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Console:
    return Console(tmp_path, monkeypatch, capsys)


def unwrapped(text: str) -> str:
    """What was said, on one line."""
    return " ".join(text.split())


def write_squares(root: Path, count: int) -> None:
    """Pictures of a bright square on a dark ground, and COCO instances of the squares alone."""
    images, annotations = [], []
    generator = np.random.default_rng(0)
    (root / "pictures").mkdir()
    for number in range(count):
        pixels = generator.integers(0, 60, (40, 48, 3), dtype=np.uint8)
        x, y = generator.integers(4, 24, 2).tolist()
        pixels[y : y + 12, x : x + 14] += 150
        Image.fromarray(pixels).save(root / "pictures" / f"p{number:02d}.png")
        inside = np.zeros((40, 48), dtype=np.uint8, order="F")
        inside[y : y + 12, x : x + 14] = 1
        runs: Any = coco.encode(inside)
        images.append({"id": number, "file_name": f"p{number:02d}.png", "width": 48, "height": 40})
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": 5,
                "segmentation": {"size": [40, 48], "counts": runs["counts"].decode()},
            }
        )
    document = {"images": images, "annotations": annotations, "categories": [{"id": 5, "name": "square"}]}
    (root / "annotations.json").write_text(json.dumps(document))


def test_from_a_coco_file_to_the_end_of_the_first_training(console: Console) -> None:
    write_squares(console.folder, 24)
    said = console.run("init", "--from", "coco", "annotations.json", "--independent")
    assert "COCO instances with 2 classes: background, square." in said
    assert "Pixels where nothing is drawn are background." in said
    data = console.json("config", "show")["data"]
    assert (data["images"], data["masks"]) == (["pictures"], None)
    assert data["labels"] == [
        {"format": "coco", "path": "annotations.json", "classes": {}, "unlabeled": "background"}
    ]
    file = console.folder / "segcurate.yaml"
    document = yaml.safe_load(file.read_text())
    training = {"iterations": 2, "batch_size": 2, "crop": [32, 32], "transforms": []}
    document |= {"model": TINY, "training": training, "device": "cpu"}
    document["splits"]["minimum_units"] = 3
    file.write_text(yaml.safe_dump(document))
    said = unwrapped(console.run("import", "--from", "coco", "annotations.json", code=1))
    assert "files of a labeling tool by `data.labels`, which `segcurate init --from` writes" in said
    said = console.run("ingest")
    assert "24 images have a mask" in said
    assert "Next: segcurate train" in said
    console.run("train")
    models = console.json("models")
    assert [model["name"] for model in models] == ["r01"]
    assert "segcurate calibrate" in console.run("status")


def test_images_that_are_not_found_are_asked_for(console: Console) -> None:
    write_squares(console.folder, 2)
    (console.folder / "pictures").rename(console.folder.parent / "elsewhere")
    said = unwrapped(console.run("init", "annotations.json", code=1))
    assert "The images of annotations.json, such as p00.png, are not in a folder beside it." in said
    assert "--images FOLDER" in said
    console.run("init", "annotations.json", "--images", "../elsewhere")
    assert console.json("config", "show")["data"]["images"] == ["../elsewhere"]


def test_a_format_without_a_file_is_an_error(console: Console) -> None:
    assert "`--from` names a format, and no file." in console.run("init", "--from", "coco", code=1)


def test_a_file_of_no_format_is_an_error_that_names_it(console: Console) -> None:
    (console.folder / "notes.txt").write_text("no labels")
    said = console.run("init", "notes.txt", code=1)
    assert "notes.txt is in none of the formats that segcurate reads" in said
    assert not (console.folder / "segcurate.yaml").exists()
