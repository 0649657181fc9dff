"""Writes a queue in the layout of Pascal VOC's segmentations, also as CVAT's "Segmentation mask 1.1"."""

from __future__ import annotations

import zipfile
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.config import IGNORE
from pipeline.data.images import encode_png
from pipeline.data.masks import Mask
from pipeline.files import append_text, atomic_write_bytes, writing
from pipeline.format import counted
from pipeline.labeling.cvat.labels import BACKGROUND_COLOR, label_colors, raw_labels, voc_colors
from pipeline.labeling.cvat.pieces import number_pieces
from pipeline.labeling.manifest import IMAGES
from pipeline.labeling.outgoing import OutgoingImage, OutgoingQueue
from pipeline.labeling.queue_writer import QueueWriter
from pipeline.labeling.unchanged import PROPOSALS
from pipeline.labeling.voc.label_map import LABEL_MAP_FILE, write_label_map

CLASS_MASKS, OBJECT_MASKS = "SegmentationClass", "SegmentationObject"
VOC_IMAGES = "JPEGImages"
LISTS, LIST = "ImageSets/Segmentation", "default.txt"
ARCHIVE, LABELS = "annotations.zip", "labels.json"

_MOST_OBJECTS = 255


class VocWriter(QueueWriter):
    """Writes images, `SegmentationClass` and `Object`, `ImageSets`, `labelmap.txt`, and the manifest."""

    images = VOC_IMAGES
    parts = (CLASS_MASKS, OBJECT_MASKS, LISTS)

    def __init__(self, folder: Path, queue: OutgoingQueue) -> None:
        super().__init__(folder, queue)
        self._palette = [BACKGROUND_COLOR, *label_colors(queue.labels)]

    def add(self, image: OutgoingImage) -> None:
        """Write one image, its masks, and its line of the manifest."""
        placed, overlay = self.write_image(image), self.write_overlay(image)
        mask = f"{CLASS_MASKS}/{image.name}.png"
        atomic_write_bytes(self.folder / mask, encode_png(_class_indices(image.mask), self._palette))
        self.proposals.add(self.folder / mask)
        objects = encode_png(object_numbers(image.mask), [BACKGROUND_COLOR, *voc_colors()])
        atomic_write_bytes(self.folder / OBJECT_MASKS / f"{image.name}.png", objects)
        append_text(self.folder / LISTS / LIST, f"{image.name}\n")
        self.manifest.add(image.entry(self.queue, image=placed, overlay=overlay, mask=mask))

    def finish(self) -> None:
        """Write the label map and the annotator's README."""
        append_text(self.folder / LISTS / LIST, "")
        atomic_write_bytes(self.folder / LABEL_MAP_FILE, write_label_map(self.queue.labels).encode())
        super().finish()

    def readme(self) -> str:
        """The annotator's README."""
        images, regions = self.manifest.images, self.manifest.regions
        size = f"{counted(regions, 'region')} in {counted(images, 'image')}"
        return f"""# {self.queue.name} as Pascal VOC: {size}

{self.queue.order}: names begin with the rank, and `{LISTS}/{LIST}` lists them in its order. Every image of
`{VOC_IMAGES}/` has a proposal in `{CLASS_MASKS}/`: a PNG with a palette, in the colours of
`{LABEL_MAP_FILE}`; black, the background, is "not labeled". `{OBJECT_MASKS}/` numbers the connected pieces.

1. Correct the masks of `{CLASS_MASKS}/`, or put your tool's there under the same names. If it writes a
   `{LABEL_MAP_FILE}` of its own, put that here, too.
2. Run `segcurate import` with this folder, or with a zip archive of it. It can be run again: a corrected mask
   replaces the one before it. As soon as one mask has changed, all are imported; where every
   proposal is right, remove `{PROPOSALS}` first. `{OBJECT_MASKS}/` is not read.
"""


class CvatMasksWriter(VocWriter):
    """Writes the same for CVAT, and `annotations.zip` and `labels.json` for its forms."""

    images = IMAGES

    def finish(self) -> None:
        """Write the label map, the archive, the labels, and the annotator's README."""
        super().finish()
        atomic_write_bytes(self.folder / LABELS, raw_labels(self.queue.labels).encode())
        path = self.folder / ARCHIVE
        with writing(path), zipfile.ZipFile(path, "w") as archive:
            listed = (self.folder / LISTS / LIST).open(encoding="utf-8")
            with listed:
                masks = (
                    f"{part}/{line.rstrip()}.png" for line in listed for part in (CLASS_MASKS, OBJECT_MASKS)
                )
                for name in chain((LABEL_MAP_FILE, f"{LISTS}/{LIST}"), masks):
                    archive.write(self.folder / name, name)
        self.proposals.add(path)

    def readme(self) -> str:
        """The annotator's README."""
        images, regions = self.manifest.images, self.manifest.regions
        return f"""# {self.queue.name} for CVAT: {counted(regions, "region")} in {counted(images, "image")}

{self.queue.order}: images are in the order of their ranks, and each has {self.queue.start} to start from.

1. Create a task. Paste `{LABELS}` into Labels > Raw, and select all files of `{IMAGES}/`. In the advanced
   configuration, choose the sorting method "lexicographical" (names begin with the rank) and the image
   quality 100.
2. Upload `{ARCHIVE}` as annotations in the format "Segmentation mask 1.1", without making polygons of the
   masks: polygons fill holes.
3. Correct the masks. A pixel whose class you cannot tell stays unpainted.
4. Export the task's annotations in the format "Segmentation mask 1.1", and run `segcurate import` with that
   file, or put it into this folder. It can be run again: a corrected mask replaces the one before it.

`{ARCHIVE}` here holds proposals, and is not imported as labels. Where every proposal is right, remove
`{PROPOSALS}`, then import this folder.
"""


def object_numbers(mask: Mask) -> npt.NDArray[np.uint8]:
    """The pieces of a mask [H, W], numbered from 1 on; where there are too many for a palette, the smallest
    pieces of a class are merged."""
    classes = int((np.unique(mask) != IGNORE).sum())
    numbers, _ = number_pieces(mask, most=_MOST_OBJECTS - classes)
    return numbers.astype(np.uint8)


def _class_indices(mask: Mask) -> npt.NDArray[np.uint8]:
    """A mask [H, W] as indices of the palette: 0 where there is no class, and the classes after it."""
    table = np.arange(1, 257).astype(np.uint8)
    table[IGNORE] = 0
    return table[mask]
