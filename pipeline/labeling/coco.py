"""COCO: instances, each with its mask (Lin et al. 2014, `instances_*.json`).

An export has one annotation for each connected part of a class, with a compressed run-length mask. An import
may have run lengths or polygons, of any number of instances; the later one in the file has the pixel.

Legend: H height, W width, P parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco

from pipeline.config import IGNORE
from pipeline.data.masks import Mask
from pipeline.errors import DataError
from pipeline.labeling.coco_document import (
    ANNOTATIONS,
    CocoQueueWriter,
    declared_classes,
    documents,
    is_coco_zip,
    read_documents,
    recognises,
    unpacked,
)
from pipeline.labeling.encoding import LabelMap
from pipeline.labeling.exchange import Annotation, DecodedMask, Rejected, Tool, shown
from pipeline.labeling.outgoing import OutgoingImage
from pipeline.labeling.untrusted.canvas import Canvas
from pipeline.labeling.untrusted.coco_index import CocoImage, CocoIndex
from pipeline.labeling.untrusted.coco_shapes import read_shape

INSTANCES = "instances_default.json"

_README = """# {name}: {regions} in {images}, as COCO instances

`{file}` lists the images in the order in which they are to be labeled, the most
useful first, with {annotated}. Load it, with
`{images_folder}/`, into your labeling tool; correct the masks inside of the regions that `regions.csv` lists;
export COCO with masks from there, and run `segcurate import` with the exported file. Keep the names of the
images, and leave out images that nobody has checked: every mask in the file is imported as a label.

Where annotations overlap, the later one in the file has the pixels. A pixel without an annotation stays "not
labeled", and so does an image without any.
"""


class CocoWriter(CocoQueueWriter):
    """Writes a queue as COCO instances."""

    file = f"{ANNOTATIONS}/{INSTANCES}"
    text = _README

    def annotations(self, image: OutgoingImage, image_id: int) -> Iterator[dict[str, Any]]:
        """The connected parts of the image's classes."""
        return instances(image.mask, image_id=image_id)


def instances(mask: Mask, *, image_id: int) -> Iterator[dict[str, Any]]:
    """The annotations of a mask [H, W], without ids yet: one for each connected part, class by class."""
    height, width = mask.shape
    for class_index in np.unique(mask[mask != IGNORE]).tolist():
        count, parts, stats, _ = cv2.connectedComponentsWithStats(
            (mask == class_index).view(np.uint8), connectivity=8
        )
        for part, counts in enumerate(_run_lengths(parts, count), 1):
            x, y, w, h, area = stats[part].tolist()
            runs: Any = {"size": [height, width], "counts": counts}
            encoded: Any = coco.frPyObjects(runs, height, width)
            yield {
                "id": None,
                "image_id": image_id,
                "category_id": class_index + 1,
                "segmentation": {"size": [height, width], "counts": encoded["counts"].decode("ascii")},
                "area": area,
                "bbox": [x, y, w, h],
                "iscrowd": 0,
            }


def _run_lengths(parts: cv2.typing.MatLike, count: int) -> Iterator[list[int]]:
    """COCO's run lengths of each part except 0, in an image [H, W] of part numbers."""
    flat = parts.ravel(order="F")
    starts = np.concatenate(([0], np.flatnonzero(np.diff(flat)) + 1))
    ends = np.append(starts[1:], len(flat))
    of_run = flat[starts]
    order = np.argsort(of_run, kind="stable")
    borders = np.searchsorted(of_run[order], np.arange(count + 1))
    for part in range(1, count):
        mine = order[borders[part] : borders[part + 1]]
        edges = np.stack([starts[mine], ends[mine]], axis=1).ravel()
        counts = np.diff(edges, prepend=0, append=len(flat)).tolist()
        yield counts if counts[-1] else counts[:-1]


def read_coco(source: Path, labels: LabelMap) -> Iterator[Annotation | Rejected]:
    """The masks of a file of COCO instances, or of those of a folder or zip archive: one for each image that
    has annotations. Each can be read until the iterator moves to the next.

    Raises:
        DataError: it is not a COCO file, or is an unchanged export.
    """
    with unpacked(source) as files:
        yield from read_documents(documents(files, panoptic=False), partial(_paint, labels))


def _paint(labels: LabelMap, index: CocoIndex, image: CocoImage, width: int, height: int) -> DecodedMask:
    canvas, classes = Canvas(width=width, height=height), labels.meanings
    for annotation in index.annotations(image):
        try:
            value = index.class_of(annotation, classes)
            canvas.paint(read_shape(annotation.get("segmentation"), width=width, height=height), value)
        except DataError as error:
            problem = f"Annotation {shown(annotation.get('id'))}: {error.problem}"
            raise DataError(problem, error.remedy) from error
    return canvas.decoded()


def _recognises(source: Path) -> bool:
    return is_coco_zip(source) or recognises(source, panoptic=False)


COCO = Tool(
    name="coco",
    title="COCO instances",
    writer=CocoWriter,
    read=read_coco,
    recognises=_recognises,
    classes=partial(declared_classes, panoptic=False),
)
