"""`data.labels` in each format: the same masks, from each tool's file."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image as Picture

from db.tables import Image
from pipeline.config import IGNORE
from pipeline.data.masks import Mask, read_mask
from pipeline.data.rendered_masks import mask_codec
from pipeline.errors import DataError
from pipeline.labeling.beginning import look_at
from pipeline.progress import silent
from pipeline.steps.ingest.label_files import read_label_files
from tests.memory import in_own_process, peak_above
from tests.pipeline.steps.ingest.folder import HELD_OUT, Folder
from tests.pipeline.steps.ingest.test_label_files import (
    HEIGHT,
    NAMES,
    WIDTH,
    coco_document,
    expected,
    ten,
)

__all__ = ["ten"]

COLORS = {"a": (10, 20, 30), "b": (200, 100, 0)}


def write_cvat(root: Path) -> Path:
    """CVAT for images 1.1, in a zip as CVAT makes it; the labels are declared in another order."""
    labels = "".join(
        f"<label><name>{name}</name><color>#{bytes(COLORS[name]).hex()}</color></label>" for name in "ba"
    )
    images = []
    for number, name in enumerate(NAMES):
        masks = ""
        for index, label in enumerate("ab"):
            flat = (expected(name) == index).ravel().tolist()
            runs = [(value, len(list(group))) for value, group in groupby(flat)]
            counts = [0] * bool(runs[0][0]) + [length for _, length in runs]
            masks += (
                f'<mask label="{label}" left="0" top="0" width="{WIDTH}" height="{HEIGHT}" '
                f'z_order="0" rle="{", ".join(map(str, counts))}"/>'
            )
        images.append(
            f'<image id="{number}" name={quoteattr(name)} width="{WIDTH}" height="{HEIGHT}">{masks}</image>'
        )
    text = (
        f"<annotations><version>1.1</version><meta><task><id>1</id><labels>{labels}</labels></task></meta>"
        f"{''.join(images)}</annotations>"
    )
    path = root / "cvat.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("annotations.xml", text)
    return path


def write_voc(root: Path) -> Path:
    """Pascal VOC's folder, with a label map, and black for what is not labeled."""
    folder = root / "voc" / "SegmentationClass"
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::"]
    lines += [f"{name}:{','.join(map(str, color))}::" for name, color in COLORS.items()]
    for name in NAMES:
        colors = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
        for index, color in enumerate(COLORS.values()):
            colors[expected(name) == index] = color
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Picture.fromarray(colors).save(folder / name)
    (root / "voc" / "labelmap.txt").write_text("\n".join(lines) + "\n")
    return root / "voc"


def data_url(inside: npt.NDArray[np.bool_]) -> str:
    """A PNG of opaque and transparent pixels, as Label Studio's bitmasks are."""
    pixels = np.zeros((*inside.shape, 4), dtype=np.uint8)
    pixels[inside] = 255
    content = io.BytesIO()
    Picture.fromarray(pixels).save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def write_label_studio(root: Path) -> Path:
    """Label Studio's JSON export of a project that segcurate has not set up: bitmasks, which are PNGs, and
    the lower class of the first image as a polygon."""
    tasks = []
    for number, name in enumerate(NAMES, 1):
        results = [
            {
                "id": f"{number}{label}",
                "type": "bitmasklabels",
                "from_name": "tag",
                "to_name": "picture",
                "original_width": WIDTH,
                "original_height": HEIGHT,
                "image_rotation": 0,
                "value": {"imageDataURL": data_url(expected(name) == index), "bitmasklabels": [label]},
            }
            for index, label in enumerate("ab")
        ]
        if number == 1:
            points = [[0, 50], [100, 50], [100, 100], [0, 100]]
            results[1] |= {"type": "polygonlabels", "value": {"points": points, "polygonlabels": ["b"]}}
        address = f"/data/local-files/?d=set/images/{name}"
        annotation = {"id": number, "completed_by": 1, "was_cancelled": False, "result": results}
        tasks.append({"id": number, "data": {"picture": address}, "annotations": [annotation]})
    path = root / "project-1.json"
    path.write_text(json.dumps(tasks))
    return path


def write_panoptic(root: Path) -> Path:
    """COCO panoptic: segments of other numbers than the categories, in PNGs beside the JSON file."""
    folder = root / "panoptic"
    annotations = []
    for number, name in enumerate(NAMES):
        colors = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
        for index in range(2):
            colors[expected(name) == index] = (50 + index, number, 0)
        file = name.replace("/", "_")
        folder.mkdir(exist_ok=True)
        Picture.fromarray(colors).save(folder / file)
        segments = [{"id": 50 + index + 256 * number, "category_id": 8 - index} for index in range(2)]
        annotations.append({"image_id": 7 + number, "file_name": file, "segments_info": segments})
    document = coco_document() | {
        "annotations": annotations,
        "categories": [
            {"id": 8 - index, "name": name, "color": COLORS[name]} for index, name in enumerate("ab")
        ],
    }
    path = root / "panoptic.json"
    path.write_text(json.dumps(document))
    return path


def write_instances(root: Path) -> Path:
    path = root / "instances.json"
    path.write_text(json.dumps(coco_document()))
    return path


FORMATS: dict[str, Callable[[Path], Path]] = {
    "coco": write_instances,
    "coco-panoptic": write_panoptic,
    "cvat": write_cvat,
    "label-studio": write_label_studio,
    "voc": write_voc,
    "cvat-masks": write_voc,
}


def found(folder: Folder, **data: Any) -> dict[str, Mask]:
    project = folder.project(**data)
    return {
        uri.removeprefix("images/"): read_mask(project.path(mask), mask_codec(project), size=(WIDTH, HEIGHT))
        for uri, mask in folder.rows(Image.uri, Image.mask_uri)
    }


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_gives_the_same_masks(ten: Folder, name: str) -> None:
    path = FORMATS[name](ten.root)
    labels = {"format": name, "path": path.name}
    report = ten.ingest(splits=HELD_OUT, labels=labels)
    assert (report.masks, report.labeled_images, report.failures) == (10, 6, 0), ten.failures()
    masks = found(ten, labels=labels)
    assert all((masks[one] == expected(one)).all() for one in NAMES)
    again = ten.ingest(splits=HELD_OUT, labels=labels)
    assert (again.labeled_images, again.masks, again.failures) == (0, 10, 0)


@pytest.mark.parametrize("name", FORMATS)
def test_the_classes_and_images_are_read_from_the_file(ten: Folder, name: str) -> None:
    beginning = look_at(FORMATS[name](ten.root), tool=name)
    assert sorted(item.name for item in beginning.classes) == ["a", "b"]
    assert beginning.unlabeled == "ignore"
    if name != "label-studio":
        assert beginning.images == ten.root / "images"
    if name in ("cvat", "voc", "cvat-masks", "coco-panoptic"):
        assert {item.name: item.color for item in beginning.classes} == COLORS


def test_several_annotators_of_an_image_vote(ten: Folder) -> None:
    path = write_label_studio(ten.root)
    tasks = json.loads(path.read_text())
    other = json.loads(json.dumps(tasks[0]["annotations"][0])) | {"id": 90, "completed_by": 2}
    other["result"] = other["result"][:1]
    other["result"][0]["value"]["imageDataURL"] = data_url(np.ones((HEIGHT, WIDTH), dtype=bool))
    third = json.loads(json.dumps(other)) | {"id": 91, "completed_by": 3}
    tasks[0]["annotations"] += [other, third]
    path.write_text(json.dumps(tasks))
    ten.ingest(splits=HELD_OUT, labels={"format": "label-studio", "path": path.name})
    assert (found(ten)[NAMES[0]] == 0).all()


def test_two_masks_of_an_image_in_one_source_are_refused_with_both(ten: Folder) -> None:
    write_voc(ten.root)
    with zipfile.ZipFile(ten.root / "voc" / "more.zip", "w") as archive:
        archive.write(ten.root / "voc" / "labelmap.txt", "labelmap.txt")
        archive.write(ten.root / "voc" / "SegmentationClass" / NAMES[1], f"SegmentationClass/{NAMES[0]}")
    ten.ingest(splits=HELD_OUT, labels={"format": "voc", "path": "voc"})
    (reason,) = ten.failures().values()
    assert "It has two masks: in SegmentationClass/a/f0.png, and in more.zip" in reason


def test_a_polygon_far_outside_of_the_image_is_refused_and_one_at_its_border_cut(ten: Folder) -> None:
    document = coco_document()
    document["annotations"][0]["segmentation"] = [[-1e7, 0, 1e7, 0, 1e7, 5, 0, 5]]
    document["annotations"][2]["segmentation"] = [[-5, -5, 40, -5, 40, 40, -5, 40]]
    del document["annotations"][3]
    path = ten.root / "instances.json"
    path.write_text(json.dumps(document))
    ten.ingest(splits=HELD_OUT, labels={"format": "coco", "path": path.name})
    (reason,) = ten.failures().values()
    assert "corners that are far outside of the image" in reason
    assert (ten_mask := read_mask(*_stored(ten, NAMES[1]), size=None)).max() == 0
    assert ten_mask.shape == (HEIGHT, WIDTH)


def _stored(folder: Folder, name: str) -> tuple[Path, Any]:
    project = folder.project()
    (uri,) = {mask for uri, mask in folder.rows(Image.uri, Image.mask_uri) if uri == f"images/{name}"}
    return project.path(uri), mask_codec(project)


def test_a_format_that_is_none_of_labels_is_refused_by_name(ten: Folder) -> None:
    with pytest.raises(DataError, match="There is no file or folder"):
        look_at(ten.root / "missing.json", tool="coco")
    with pytest.raises(DataError, match="which names no classes"):
        look_at(ten.root / "images", tool=None)


def test_one_class_gets_a_background_of_what_is_not_drawn(ten: Folder) -> None:
    document = coco_document()
    document["categories"] = [{"id": 2, "name": "b"}]
    document["annotations"] = [one for one in document["annotations"] if one["category_id"] == 2]
    path = ten.root / "instances.json"
    path.write_text(json.dumps(document))
    beginning = look_at(path, tool=None)
    assert [item.name for item in beginning.classes] == ["background", "b"]
    assert beginning.unlabeled == "background"
    labels = {"format": "coco", "path": path.name, "unlabeled": "background"}
    report = ten.ingest(splits=HELD_OUT, labels=labels, classes=["background", "b"])
    assert report.failures == 0
    assert (found(ten)[NAMES[3]] == (expected(NAMES[3]) == 1)).all()
    assert IGNORE not in found(ten)[NAMES[3]]


LARGE = 1500
"""Side of the images below."""


def _peak_of_many(root: Path, count: int) -> int:
    folder = Folder(root)
    images, annotations = [], []
    (root / "images").mkdir()
    for number in range(count):
        Picture.new("L", (LARGE, LARGE), number).save(root / "images" / f"i{number}.png")
        images.append({"id": number, "file_name": f"i{number}.png", "width": LARGE, "height": LARGE})
        corners = [0, 0, LARGE, 0, LARGE, 700 + number, 0, 700 + number]
        annotations.append({"id": number, "image_id": number, "category_id": 1, "segmentation": [corners]})
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "b"}]}
    (root / "labels.json").write_text(json.dumps(document))
    project = folder.project(labels={"format": "coco", "path": "labels.json", "unlabeled": "a"})
    read_label_files(project, progress=silent)  # what is loaded once is no part of it
    for path in (project.workdir / "rendered" / "files").iterdir():
        path.unlink()
    return peak_above(lambda: read_label_files(project, progress=silent))


def test_memory_is_that_of_one_image_whatever_their_number(tmp_path: Path) -> None:
    few, many = (in_own_process(_peak_of_many, tmp_path / str(count), count) for count in (4, 40))
    assert many < few + 8 * LARGE**2
