"""What segcurate writes is read by Datumaro, and the reverse, pixel for pixel.

Datumaro pins older libraries, so that it has an environment of its own: SEGCURATE_DATUMARO_PYTHON is its
interpreter, `.venv-datumaro/bin/python` by default.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.masks import Mask
from pipeline.labeling.coco import COCO
from pipeline.labeling.coco_panoptic import COCO_PANOPTIC
from pipeline.labeling.cvat import CVAT
from pipeline.labeling.cvat.labels import label_names
from pipeline.labeling.exchange import Annotation, Tool
from pipeline.labeling.voc import CVAT_MASKS, VOC
from tests.pipeline.labeling.small_queue import NAMES, label_map, outgoing_queue, shapes, write_queue

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("SEGCURATE_DATUMARO_PYTHON", ROOT / ".venv-datumaro" / "bin" / "python"))
SCRIPT = Path(__file__).with_name("datumaro_reader.py")

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(not PYTHON.exists(), reason=f"Datumaro's environment is not there: {PYTHON}"),
]

FORMATS = pytest.mark.parametrize(
    ("tool", "kind"),
    [
        (CVAT, "cvat"),
        (VOC, "voc_segmentation"),
        (CVAT_MASKS, "voc_segmentation"),
        (COCO, "coco_instances"),
        (COCO_PANOPTIC, "coco_panoptic"),
    ],
    ids=["cvat", "voc", "cvat-masks", "coco", "coco-panoptic"],
)
WRITTEN = pytest.mark.parametrize(
    ("tool", "kind"),
    [
        (CVAT, "cvat"),
        (VOC, "voc_segmentation"),
        (COCO, "coco_instances"),
        (COCO_PANOPTIC, "coco_panoptic"),
    ],
    ids=["cvat", "voc", "coco", "coco-panoptic"],
)
SPOKEN = [name for name in NAMES if name != "background"]
"""Names of classes that mean no more to Datumaro than a name."""


def awkward_masks(classes: int) -> list[Mask]:
    """Holes, parts that touch at corners, single pixels, absent classes; one pixel, one class."""
    generator = np.random.default_rng(3)
    noise = generator.choice([*range(classes), 255], size=(9, 13)).astype(np.uint8)
    ring = np.full((40, 60), 255, dtype=np.uint8)
    ring[5:35, 5:55], ring[10:30, 10:50], ring[15:20, 20:25] = 1, 255, 0
    sparse = np.full((33, 129), 255, dtype=np.uint8)
    sparse[32, 128] = classes - 1
    drawn = shapes(generator, height=257, width=191)
    drawn[(drawn != 255) & (drawn >= classes)] = 0
    return [noise, ring, sparse, drawn, np.zeros((1, 1), np.uint8), np.full((7, 5), 2, np.uint8)]


def datumaro(*arguments: object) -> None:
    """Run the script in Datumaro's environment."""
    command = [str(PYTHON), str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def as_datumaro_sees(kind: str, folder: Path, scratch: Path, names: Sequence[str]) -> dict[str, Mask]:
    """The masks of a folder by the names of their items, in indices of `names`."""
    datumaro("read", kind, folder, scratch / "seen.npz")
    loaded = dict(np.load(scratch / "seen.npz"))
    labels = json.loads(str(loaded.pop("labels")))
    table = np.full(256, 254, dtype=np.uint8)  # what is in no list of names is no class
    table[255] = 255
    for index, label in enumerate(labels):
        if label in names:
            table[index] = list(names).index(label)
    return {item: table[mask] for item, mask in loaded.items()}


@FORMATS
def test_datumaro_sees_the_masks_that_go_out(tool: Tool, kind: str, tmp_path: Path) -> None:
    masks = awkward_masks(len(NAMES))
    # as copies: Datumaro follows no link that leads out of the folder
    folder = write_queue(tool, tmp_path, masks, queue=replace(outgoing_queue(), how="copy"))
    names = NAMES if kind.startswith("coco") else label_names(NAMES)
    seen = as_datumaro_sees(kind, folder, tmp_path, names)
    assert sorted(seen) == sorted(Path(path).stem for path in (folder / _images(folder)).iterdir())
    for mask, item in zip(masks, sorted(seen), strict=True):
        assert np.array_equal(seen[item], mask), item


@WRITTEN
def test_what_datumaro_writes_comes_in(tool: Tool, kind: str, tmp_path: Path) -> None:
    masks = {f"frame {number}": mask for number, mask in enumerate(awkward_masks(len(SPOKEN)))}
    np.savez(tmp_path / "out.npz", labels=np.array(json.dumps(SPOKEN)), **masks)  # pyright: ignore[reportArgumentType]
    datumaro("write", kind, tmp_path / "out.npz", tmp_path / "written")
    assert tool.recognises(tmp_path / "written")
    found: dict[str, Mask] = {}
    for answer in tool.read(tmp_path / "written", label_map(SPOKEN)):
        assert isinstance(answer, Annotation), answer
        name = Path(str(answer.image)).stem
        found[name] = answer.read(*masks[name].shape[::-1]).mask
    assert found.keys() == masks.keys()
    for name, mask in masks.items():
        assert np.array_equal(found[name], mask), name


def test_datumaro_sees_a_class_of_the_backgrounds_colour(tmp_path: Path) -> None:
    labels = label_map(["sky", "road"])
    labels.colors[0] = (0, 0, 0)
    mask = np.array([[0, 1, 255], [255, 0, 0]], dtype=np.uint8)
    folder = write_queue(VOC, tmp_path, [mask], queue=outgoing_queue(labels=labels))
    (seen,) = as_datumaro_sees("voc_segmentation", folder, tmp_path, labels.names).values()
    assert np.array_equal(seen, mask)


def _images(folder: Path) -> str:
    return next(name for name in ("images", "JPEGImages") if (folder / name).is_dir())
