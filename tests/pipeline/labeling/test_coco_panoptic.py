"""A queue as COCO panoptic, and what strangers send back as such."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.masks import Mask
from pipeline.errors import DataError
from pipeline.labeling.coco import COCO
from pipeline.labeling.coco_panoptic import COCO_PANOPTIC
from pipeline.labeling.exchange import Annotation, DecodedMask
from pipeline.labeling.unchanged import PROPOSALS
from tests.pipeline.labeling.small_queue import MASKS, NAMES, label_map, read_masks, sizes_of, write_queue

LABELS = label_map()


def document_of(folder: Path) -> Path:
    return folder / "annotations" / "panoptic_default.json"


def reference(document: Path) -> list[npt.NDArray[np.int64]]:
    """The class index of every pixel, or 255, as the format's description says it."""
    content = json.loads(document.read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    masks: list[npt.NDArray[np.int64]] = []
    for annotation in content["annotations"]:
        rgb = np.array(Image.open(document.with_suffix("") / annotation["file_name"])).astype(np.int64)
        ids = rgb @ [1, 256, 65536]
        mask = np.full(ids.shape, 255)
        for segment in annotation["segments_info"]:
            mask[ids == segment["id"]] = NAMES.index(names[segment["category_id"]])
            rows, columns = np.nonzero(ids == segment["id"])
            x, y, w, h = segment["bbox"]
            assert segment["area"] == len(rows)
            assert (x, x + w - 1, y, y + h - 1) == (columns.min(), columns.max(), rows.min(), rows.max())
            assert segment["iscrowd"] == 0
        masks.append(mask)
    return masks


@settings(deadline=None, max_examples=60)
@given(st.lists(MASKS, min_size=1, max_size=3))
def test_masks_come_back_as_they_went_out_and_as_the_format_says(masks: list[Mask]) -> None:
    with tempfile.TemporaryDirectory() as root:
        folder = write_queue(COCO_PANOPTIC, Path(root), masks)
        for mask, seen in zip(masks, reference(document_of(folder)), strict=True):
            assert np.array_equal(mask, seen)
        (folder / PROPOSALS).unlink()
        found = dict(read_masks(COCO_PANOPTIC.read(folder, LABELS), sizes_of(masks)))
    for place, mask in enumerate(masks):
        painted = found[1000 + place]
        assert isinstance(painted, DecodedMask)
        assert np.array_equal(painted.mask, mask)


def write(folder: Path, **changes: Any) -> Path:
    """A file of one image of 8 × 6 pixels, of two segments of one class, and with changes."""
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 8, "height": 6}],
        "categories": [{"id": 3, "name": "road", "isthing": 0}, {"id": 5, "name": "unheard of"}],
        "annotations": [annotation()],
        **changes,
    }
    folder.mkdir(exist_ok=True)
    path = folder / "panoptic.json"
    path.write_text(json.dumps(document))
    (folder / "panoptic").mkdir(exist_ok=True)
    ids = np.zeros((6, 8), np.int64)
    ids[1:3], ids[4:] = 7, 70_000
    save(folder / "panoptic" / "a.png", ids)
    return path


def save(path: Path, ids: npt.NDArray[np.int64]) -> None:
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)).save(path)


def annotation(**changes: Any) -> dict[str, Any]:
    segments = [{"id": 7, "category_id": 3}, {"id": 70_000, "category_id": 3}]
    return {"image_id": 1, "file_name": "a.png", "segments_info": segments, **changes}


def read(path: Path) -> DecodedMask | str:
    answers = list(COCO_PANOPTIC.read(path, LABELS))
    sizes = {answer.image: (8, 6) for answer in answers if isinstance(answer, Annotation)}
    ((_, said),) = read_masks(answers, sizes)
    return said


def test_any_number_of_segments_of_a_class_are_that_class(tmp_path: Path) -> None:
    painted = read(write(tmp_path))
    assert isinstance(painted, DecodedMask)
    assert painted.mask[:, 0].tolist() == [255, 0, 0, 255, 0, 0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"segments_info": None}, "no segments"),
        ({"segments_info": {}}, "no segments"),
        ({"segments_info": [{"id": 7, "category_id": 3}]}, "a segment 70000 that"),
        ({"segments_info": [7]}, "invalid number"),
        ({"segments_info": [{"id": 0, "category_id": 3}]}, "invalid number"),
        ({"segments_info": [{"id": -7, "category_id": 3}]}, "invalid number"),
        ({"segments_info": [{"id": 1 << 24, "category_id": 3}]}, "invalid number"),
        ({"segments_info": [{"id": 7.0, "category_id": 3}]}, "invalid number"),
        ({"segments_info": [{"id": True, "category_id": 3}]}, "invalid number"),
        ({"segments_info": [{"id": 10**30, "category_id": 3}]}, "invalid number"),
        ({"segments_info": [{"id": 7, "category_id": 3}] * 2}, "twice"),
        ({"segments_info": [{"id": 7, "category_id": 5}]}, "no class 'unheard of'"),
        ({"segments_info": [{"id": 7, "category_id": 6}]}, "no category 6"),
        ({"file_name": None}, "names no PNG"),
        ({"file_name": "a\0.png"}, "names no PNG"),
        ({"file_name": "..\\a.png"}, "names no PNG"),
        ({"file_name": ""}, "is no PNG"),
        ({"file_name": "a.jpg"}, "is no PNG"),
        ({"file_name": "/etc/passwd.png"}, "is no PNG"),
        ({"file_name": "../panoptic/a.png"}, "is no PNG"),
        ({"file_name": "b.png"}, "There is no b.png"),
        ({"file_name": "\ud800.png"}, "There is no"),
        ({"file_name": "a" * 5000 + ".png"}, "There is no"),
        ({"file_name": "linked.png"}, "leads out"),
        ({"file_name": "folder/a.png"}, "leads out"),
        ({"file_name": "folder.png"}, "no plain file"),
    ],
)
def test_an_annotation_that_cannot_be_is_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    path = write(tmp_path / "sent", annotations=[annotation(**changes)])
    outside = tmp_path / "outside"
    outside.mkdir()
    save(outside / "a.png", np.full((6, 8), 7))
    (path.parent / "panoptic" / "linked.png").symlink_to(outside / "a.png")
    (path.parent / "panoptic" / "folder").symlink_to(outside)
    (path.parent / "panoptic" / "folder.png").mkdir()
    said = read(path)
    assert isinstance(said, str)
    assert reason in said


def _grey(path: Path) -> None:
    Image.fromarray(np.full((6, 8), 7, np.uint8)).save(path)


def _transparent(path: Path) -> None:
    Image.fromarray(np.full((6, 8, 4), 7, np.uint8)).save(path)


def _of_another_size(path: Path) -> None:
    save(path, np.full((8, 6), 7))


def _bomb(path: Path) -> None:
    """Says that it is of a million pixels a side."""
    save(path, np.full((6, 8), 7))
    content = bytearray(path.read_bytes())
    content[16:24] = (10**6).to_bytes(4, "big") * 2
    path.write_bytes(content)


def _cut_off(path: Path) -> None:
    save(path, np.full((6, 8), 7))
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize("spoil", [_grey, _transparent, _of_another_size, _bomb, _cut_off])
def test_a_png_that_is_none_of_this_image_is_refused(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = write(tmp_path)
    spoil(path.parent / "panoptic" / "a.png")
    said = read(path)
    assert isinstance(said, str)
    assert any(part in said for part in ("PNG", "a.png", "The mask has 6×8 pixels"))


def test_two_pngs_of_an_image_are_refused(tmp_path: Path) -> None:
    assert "more than one PNG" in str(read(write(tmp_path, annotations=[annotation(), annotation()])))


def test_an_exported_folder_holds_labels_once_a_png_is_corrected(tmp_path: Path) -> None:
    masks: list[Mask] = [np.zeros((4, 5), np.uint8), np.ones((3, 3), np.uint8)]
    folder = write_queue(COCO_PANOPTIC, tmp_path, masks)
    with pytest.raises(DataError, match="proposals, not labels"):
        list(COCO_PANOPTIC.read(folder, LABELS))
    (corrected, _) = sorted((folder / "annotations" / "panoptic_default").iterdir())
    save(corrected, np.zeros((4, 5), np.int64))
    found = dict(read_masks(COCO_PANOPTIC.read(folder, LABELS), sizes_of(masks)))
    painted = found[1000]
    assert isinstance(painted, DecodedMask)
    assert (painted.mask == 255).all()


def test_each_of_cocos_formats_is_recognised_as_itself(tmp_path: Path) -> None:
    instances = write_queue(COCO, tmp_path / "instances", [np.zeros((4, 4), np.uint8)])
    panoptic = write_queue(COCO_PANOPTIC, tmp_path / "panoptic", [np.zeros((4, 4), np.uint8)])
    for source in (panoptic, document_of(panoptic)):
        assert COCO_PANOPTIC.recognises(source)
        assert not COCO.recognises(source)
    for source in (instances, instances / "annotations" / "instances_default.json"):
        assert COCO.recognises(source)
        assert not COCO_PANOPTIC.recognises(source)


def test_the_folder_of_pngs_may_not_be_a_link(tmp_path: Path) -> None:
    path = write(tmp_path / "sent")
    (path.parent / "panoptic").rename(tmp_path / "elsewhere")
    (path.parent / "panoptic").symlink_to(tmp_path / "elsewhere")
    assert not COCO_PANOPTIC.recognises(path)
    assert "link" in str(read(path))
