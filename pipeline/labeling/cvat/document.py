"""Writes a queue for CVAT: images, and their proposals as "CVAT for images 1.1"."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from pipeline.files import append_text, atomic_write_bytes
from pipeline.format import counted
from pipeline.labeling.cvat.labels import LOOK_HERE, label_colors, label_names, raw_labels
from pipeline.labeling.cvat.pieces import encode
from pipeline.labeling.encoding import LabelMap, hexadecimal
from pipeline.labeling.manifest import IMAGES
from pipeline.labeling.outgoing import OutgoingImage, OutgoingQueue
from pipeline.labeling.queue_writer import QueueWriter
from pipeline.labeling.unchanged import PROPOSALS

ANNOTATIONS, LABELS = "annotations.xml", "labels.json"
END = "</annotations>\n"


class CvatWriter(QueueWriter):
    """Writes `images`, `annotations.xml`, `labels.json`, `overlays`, and the manifest."""

    def __init__(self, folder: Path, queue: OutgoingQueue) -> None:
        super().__init__(folder, queue)
        self._names = label_names(queue.labels.names)
        append_text(folder / ANNOTATIONS, document_head(queue.name, queue.labels))

    def add(self, image: OutgoingImage) -> None:
        """Write one image, its shapes, and its line of the manifest."""
        file = self.write_image(image)
        overlay = self.write_overlay(image)
        element = _image_element(image, file.removeprefix(f"{IMAGES}/"), self._names)
        append_text(self.folder / ANNOTATIONS, "".join(element))
        self.manifest.add(image.entry(self.queue, image=file, overlay=overlay))

    def finish(self) -> None:
        """Write the end of the document, the labels, and the annotator's README."""
        append_text(self.folder / ANNOTATIONS, END)
        self.proposals.add(self.folder / ANNOTATIONS)
        atomic_write_bytes(self.folder / LABELS, raw_labels(self.queue.labels).encode())
        super().finish()

    def readme(self) -> str:
        """The annotator's README."""
        images, regions = self.manifest.images, self.manifest.regions
        return f"""# {self.queue.name} for CVAT: {counted(regions, "region")} in {counted(images, "image")}

{self.queue.order}: images are in the order of their ranks, and each has {self.queue.start} to start from,
and boxes "{LOOK_HERE}" around the regions to label.

`segcurate export --to cvat --url https://…` brings it onto a server. By hand:

1. Create a task. Paste `{LABELS}` into Labels > Raw, and select all files of `{IMAGES}/`. In the advanced
   configuration, choose the sorting method "lexicographical" (names begin with the rank) and the image
   quality 100.
2. Upload annotations in the format "CVAT 1.1", from `{ANNOTATIONS}`.
3. Correct the masks inside the boxes. A pixel whose class you cannot tell stays unpainted. Polygons are read,
   too; other shapes are not. Where shapes of two classes overlap, the upper one counts.
4. Export the task's annotations in the format "CVAT for images 1.1", and run `segcurate import` with that
   file, or put it into this folder. It can be run again: a corrected mask replaces the one before it.

`{ANNOTATIONS}` here holds proposals, and is not imported as labels. Where every proposal is right, remove
`{PROPOSALS}`, then import this folder.
"""


def document_head(queue: str, labels: LabelMap) -> str:
    """The part of the document before the first image."""
    classes = zip(label_names(labels.names), label_colors(labels), strict=True)
    lines = [
        f"<label><name>{escape(name)}</name><color>{hexadecimal(color)}</color>"
        f"<type>any</type><attributes></attributes></label>\n"
        for name, color in classes
    ]
    return f"""<?xml version="1.0" encoding="utf-8"?>
<annotations>
<version>1.1</version>
<meta>
<task>
<name>{escape(queue)}</name>
<mode>annotation</mode>
<labels>
{"".join(lines)}<label><name>{LOOK_HERE}</name><type>rectangle</type><attributes></attributes></label>
</labels>
</task>
</meta>
"""


def _image_element(image: OutgoingImage, file: str, names: list[str]) -> Iterator[str]:
    """An image with its regions and the pieces of its mask. Its id is its number in the task, from 0 on."""
    yield (
        f'<image id="{image.position}" name={quoteattr(file)} width="{image.width}" '
        f'height="{image.height}">\n'
    )
    for region in image.regions:  # below the masks, so that a click is on a mask
        yield (
            f'<box label="{LOOK_HERE}" source="auto" occluded="0" xtl="{region.x}.00" ytl="{region.y}.00" '
            f'xbr="{region.x + region.w}.00" ybr="{region.y + region.h}.00" z_order="-1"></box>\n'
        )
    for piece in encode(image.mask):
        yield (
            f'<mask label={quoteattr(names[piece.index])} source="auto" occluded="0" '
            f'rle="{", ".join(map(str, piece.runs.tolist()))}" left="{piece.left}" top="{piece.top}" '
            f'width="{piece.width}" height="{piece.height}" z_order="0"></mask>\n'
        )
    yield "</image>\n"
