"""A queue of awkward images on its way to Label Studio: mixed sizes, holes, specks, and hostile names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

from pipeline.config import DataConfig
from pipeline.labeling.encoding import LabelMap, only_inside
from pipeline.labeling.exchange import OutgoingImage, OutgoingQueue
from pipeline.labeling.label_studio import TasksWriter
from pipeline.labeling.label_studio.config import Masks
from pipeline.labeling.manifest import ManifestRegion, export_name

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
    return LabelMap(DataConfig(images=["images"], classes=list(names)))  # pyright: ignore[reportArgumentType]


def outgoing_queue(name: str = "round-03", *, overlays: bool = True) -> OutgoingQueue:
    return OutgoingQueue(
        name=name,
        round=3,
        kind="selected",
        project="streets",
        model="r02",
        labels=label_map(),
        overlays=overlays,
    )


def truth(width: int, height: int, *, seed: int = 0, classes: int = len(CLASSES)) -> npt.NDArray[np.uint8]:
    """A class for every pixel: a horizon, a disc with a hole in it, and objects of one pixel."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    mask = (rows > height * 0.55).astype(np.uint8)
    distance = np.hypot(rows - height * 0.4, columns - width * 0.4)
    radius = min(width, height) * 0.35
    mask[(distance < radius) & (distance > radius * 0.5)] = 2
    specks = generator.random((height, width)) < 0.02
    mask[specks] = generator.integers(0, classes, size=int(specks.sum()), dtype=np.uint8)
    return mask


def outgoing_images(folder: Path) -> list[OutgoingImage]:
    """The images, written into `folder`, in the order of their ranks."""
    made: list[OutgoingImage] = []
    rank = 1
    for place, (uri, (width, height)) in enumerate(SIZES.items()):
        mask = truth(width, height, seed=place)
        path = folder / uri.replace("/", "_")
        _write_picture(path, mask)
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
                place=place,
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


def _write_picture(path: Path, mask: npt.NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colors = np.array([[120, 160, 220], [90, 90, 90], [200, 60, 40], [40, 160, 60], [200, 200, 60]])
    pixels = colors[mask].astype(np.uint8)
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels[:, :, 0].astype(np.uint16) * 200)
    elif path.suffix == ".jpg":
        exif = Image.Exif()
        exif[274] = 6  # stored on its side: turned clockwise when it is shown
        Image.fromarray(np.rot90(pixels)).save(path, exif=exif, quality=95)
    else:
        Image.fromarray(pixels).save(path)
