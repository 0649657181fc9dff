"""A queue of awkward images on its way to Label Studio: mixed sizes, holes, specks, and hostile names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.labeling.encoding import LabelMap, only_inside
from pipeline.labeling.label_studio import TasksWriter
from pipeline.labeling.label_studio.config import Masks
from pipeline.labeling.manifest import ManifestRegion, export_name
from pipeline.labeling.outgoing import OutgoingImage, OutgoingQueue
from tests.pipeline.labeling import small_queue
from tests.pipeline.labeling.exported_project import scene, write_image

CLASSES = ["sky & <cloud>", 'a "quoted" road', "US$ price$tag", "柱 ' pole", " odd  spaces "]
SIZES = {
    "left/frame 1.png": (96, 64),
    "日本/景色 (noon).jpg": (64, 96),
    'it\'s a "quoted" näme.png': (70, 50),
    "nested/deep/a.b..c.png": (33, 129),
    "sixteen bits.tif": (64, 64),
    "tiny.png": (1, 1),
    "<script>alert(1)</script>.png": (320, 240),
}
"""Width and height of each image as it is displayed."""


def label_map(names: Sequence[str] = CLASSES) -> LabelMap:
    return small_queue.label_map(names)


def outgoing_queue(name: str = "round-03", *, overlays: bool = True) -> OutgoingQueue:
    return small_queue.outgoing_queue(name, labels=label_map(), overlays=overlays)


def truth(width: int, height: int, *, seed: int = 0, classes: int = len(CLASSES)) -> npt.NDArray[np.uint8]:
    """A class for every pixel: a horizon, a disc with a hole in it, and objects of one pixel."""
    return scene(np.random.default_rng(seed), width=width, height=height, classes=classes)


def outgoing_images(folder: Path) -> list[OutgoingImage]:
    """The images, written into `folder`, in the order of their ranks."""
    made: list[OutgoingImage] = []
    rank = 1
    for place, (uri, (width, height)) in enumerate(SIZES.items()):
        mask = truth(width, height, seed=place)
        path = folder / uri.replace("/", "_")
        write_image(path, mask, np.random.default_rng(place))
        boxes = [
            (0, 0, -(-width // 2), height),
            (width // 2, height // 3, width - width // 2, -(-height // 2)),
        ]
        regions = [
            ManifestRegion(
                item=100 + rank + index,
                rank=rank + index,
                x=x,
                y=y,
                w=w,
                h=h,
                measure="entropy",
                score=1 / (rank + index),
                slice="selected",
                reason=f'entropy {1 / (rank + index):.2f}; "mostly" <b>pole</b>, a boundary',
            )
            for index, (x, y, w, h) in enumerate(boxes)
        ]
        image_id = 40 + 7 * place
        made.append(
            OutgoingImage(
                image_id=image_id,
                uri=uri,
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
                width=width,
                height=height,
                name=export_name(rank=rank, image_id=image_id, uri=uri),
                rank=rank,
                position=place,
                source=path,
                scores={"entropy": 1 / rank},
                mask=only_inside(mask, np.array(boxes, dtype=np.int32)),
                map=np.linspace(0, 1, width * height, dtype=np.float32).reshape(height, width),
                title="entropy",
                regions=regions,
            )
        )
        rank += len(boxes)
    return made


def export(
    folder: Path,
    queue: OutgoingQueue,
    images: Sequence[OutgoingImage],
    *,
    masks: Masks = "bitmask",
) -> Path:
    """The queue as the writer writes it, in the new folder `folder`."""
    folder.mkdir(parents=True)
    writer = TasksWriter(folder, queue, masks=masks)
    for image in images:
        writer.add(image)
    writer.finish()
    return folder
