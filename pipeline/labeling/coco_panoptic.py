"""COCO panoptic (Kirillov et al. 2019): a PNG for each image, whose colours are segment numbers, and a JSON
file with the category of each segment.

An export has one segment for each class. An import may have any number of segments.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from pipeline.config import IGNORE
from pipeline.data.images import encode_png, open_image
from pipeline.data.masks import Mask, check_mask, mask_colors
from pipeline.errors import DataError
from pipeline.files import atomic_write_bytes
from pipeline.labeling.coco_document import (
    ANNOTATIONS,
    CocoQueueWriter,
    declared_classes,
    documents,
    read_documents,
    recognises,
)
from pipeline.labeling.encoding import LabelMap
from pipeline.labeling.exchange import Annotation, DecodedMask, Rejected, Tool, check_size, shown
from pipeline.labeling.outgoing import OutgoingImage
from pipeline.labeling.untrusted.coco_index import CocoImage, CocoIndex

PANOPTIC = "panoptic_default"

_IDS = 1 << 24
_UNKNOWN = -1

_README = """# {name}: {regions} in {images}, as COCO panoptic

`{file}` lists the images in the order in which they are to be labeled, the most
useful first. The PNGs in the folder of the same name are {start}: a pixel's colour is its
segment's number, red + 256 · green + 65536 · blue, and 0 is not labeled. Correct them, with the images of
`{images_folder}/`, inside of the regions that `regions.csv` lists; then run `segcurate import` with this
folder, or with the JSON file that your tool has exported beside its PNGs. Keep the names of the images, and
leave out images that nobody has checked: every mask is imported as a label.
"""


class PanopticWriter(CocoQueueWriter):
    """Writes a queue as COCO panoptic."""

    file = f"{ANNOTATIONS}/{PANOPTIC}.json"
    parts = (f"{ANNOTATIONS}/{PANOPTIC}",)
    of_category: ClassVar[dict[str, Any]] = {"isthing": 0}
    text = _README

    def annotations(self, image: OutgoingImage, image_id: int) -> Iterator[dict[str, Any]]:
        """Write the image's PNG of segments; yield its annotation."""
        file = self.folder / ANNOTATIONS / PANOPTIC / f"{image.name}.png"
        segments = np.zeros((*image.mask.shape, 3), dtype=np.uint8)
        segments[:, :, 0] = np.where(image.mask == IGNORE, 0, image.mask + 1)
        atomic_write_bytes(file, encode_png(segments))
        self.proposals.add(file)
        yield {"image_id": image_id, "file_name": file.name, "segments_info": _segments(image.mask)}


def read_panoptic(source: Path, labels: LabelMap) -> Iterator[Annotation | Rejected]:
    """The masks of a panoptic JSON file with its PNGs beside it, or of those of a folder.

    Raises:
        DataError: it is not a COCO file, or is an unchanged export.
    """
    return read_documents(documents(source, panoptic=True), partial(_paint, labels))


def _segments(mask: Mask) -> list[dict[str, Any]]:
    return [
        {
            "id": class_index + 1,
            "category_id": class_index + 1,
            "area": int(np.count_nonzero(mask == class_index)),
            "bbox": _box(mask == class_index),
            "iscrowd": 0,
        }
        for class_index in np.unique(mask[mask != IGNORE]).tolist()
    ]


def _box(chosen: npt.NDArray[np.bool_]) -> list[int]:
    rows, columns = np.flatnonzero(chosen.any(axis=1)), np.flatnonzero(chosen.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1]


def _paint(labels: LabelMap, index: CocoIndex, image: CocoImage, width: int, height: int) -> DecodedMask:
    annotations = list(index.annotations(image))
    if len(annotations) > 1:
        raise DataError("It has more than one PNG of segments.", "Leave one.")
    table = _class_of_segment(annotations[0].get("segments_info"), index, labels)
    file = _segment_file(annotations[0].get("file_name"), index.path.with_suffix(""))
    with open_image(file, max_pixels=width * height) as opened:
        info = opened.info
        check_size((info.width, info.height), width, height)
        if (info.channels, info.bits, info.alpha) != (3, 8, False):
            raise DataError("Its PNG is not one of 8 bits in red, green and blue.", "Export it again.")
        check_mask(file, opened, size=None)
        packed = mask_colors(file, opened)
    ids = (packed >> 16 | packed & 0xFF00 | (packed & 0xFF) << 16).astype(np.uint32)
    found = table[np.minimum(ids, len(table) - 1)]
    if (found == _UNKNOWN).any():
        unknown = int(ids[found == _UNKNOWN][0])
        raise DataError(
            f"Its PNG has a segment {unknown} that the JSON file does not list.", "Export it again."
        )
    return DecodedMask(found.astype(np.uint8))


def _class_of_segment(segments: Any, index: CocoIndex, labels: LabelMap) -> npt.NDArray[np.int16]:
    """The class index of each segment number, int16; -1 for unlisted numbers and for the last entry."""
    if not isinstance(segments, list):
        raise DataError("It lists no segments.", "Export it again.")
    classes, meanings = {0: IGNORE}, labels.meanings
    for segment in segments:
        id_ = segment.get("id") if isinstance(segment, dict) else None
        if type(id_) is not int or not 0 < id_ < _IDS:
            raise DataError("It has a segment with an invalid number.", "Export it again.")
        if id_ in classes:
            raise DataError(f"It lists segment {id_} twice.", "Export it again.")
        classes[id_] = index.class_of(segment, meanings)
    table = np.full(max(classes) + 2, _UNKNOWN, dtype=np.int16)
    table[list(classes)] = list(classes.values())
    return table


def _segment_file(name: Any, folder: Path) -> Path:
    """The PNG of that name in the folder; a name that leads out of the folder raises a DataError."""
    if not isinstance(name, str) or "\0" in name or "\\" in name:
        raise DataError("It names no PNG of segments.", "Export it again.")
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts or relative.suffix.lower() != ".png":
        raise DataError(f"{shown(name)} is no PNG in the folder {folder.name}.", "Export it again.")
    try:
        path = (folder / relative).resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"There is no {shown(name)} in the folder {folder.name}.", "Put it there.") from error
    if folder.is_symlink() or not path.is_relative_to(folder.resolve()):
        raise DataError(f"{shown(name)} is behind a link that leads out of it.", "Put the file itself there.")
    if not path.is_file():
        raise DataError(f"{shown(name)} is no plain file.", "Put the PNG there.")
    return path


COCO_PANOPTIC = Tool(
    name="coco-panoptic",
    title="COCO panoptic",
    writer=PanopticWriter,
    read=read_panoptic,
    recognises=partial(recognises, panoptic=True),
    classes=partial(declared_classes, panoptic=True),
)
