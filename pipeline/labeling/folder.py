"""The neutral format: images, masks to correct, pictures of where to look, and a folder for labels.

An imported folder is untrusted. Links that lead out of it are not followed, special files are not opened,
and a file whose name fits two images is rejected.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from pipeline.data.masks import MASK_ENDINGS
from pipeline.errors import DataError
from pipeline.format import counted
from pipeline.labeling.encoding import LabelMap, hexadecimal
from pipeline.labeling.exchange import Annotation, DecodedMask, Rejected, Tool, shown
from pipeline.labeling.manifest import (
    HEATMAPS,
    IMAGES,
    MANIFEST,
    MASKS,
    OVERLAYS,
    PREMASKS,
    REGIONS,
    ManifestWriter,
)
from pipeline.labeling.outgoing import OutgoingImage, OutgoingQueue
from pipeline.labeling.pictures import write_map
from pipeline.labeling.queue_writer import QueueWriter

_OUTLINES = f"""
## Regions that are no rectangles

The overlay shows their borders, and the proposals end there; what is painted outside of them is taken too.
For a program, `{MANIFEST}` says which pixels of its box a region holds: `polygons` are its outer borders,
lists of x, y in pixels of the image; `outline` is exact, the `counts` of a COCO run-length encoding whose
`size` is [h, w] of the box. `pycocotools.mask.decode({{"size": [h, w], "counts": outline}})` is the mask to
put at x, y. Both are empty where a region fills its box.
"""

_PREDICTIONS = frozenset({PREMASKS, HEATMAPS})
"""Folders that are never searched for labels."""


@dataclass(frozen=True)
class MaskFolder:
    """The folder that is searched for masks, and the manifest of its export."""

    root: Path
    masks: Path
    manifest: Path | None


class FolderWriter(QueueWriter):
    """Writes the neutral format."""

    parts = (PREMASKS, HEATMAPS, MASKS)

    def add(self, image: OutgoingImage) -> None:
        """Write one image, its premask, its heat map and overlay, and its line of the manifest."""
        placed = self.write_image(image)
        file = f"{image.name}.png"
        self.queue.labels.write(self.folder / PREMASKS / file, image.mask)
        has_map = write_map(self.folder / HEATMAPS / file, image, size=self.queue.heatmaps)
        entry = image.entry(
            self.queue,
            image=placed,
            premask=f"{PREMASKS}/{file}",
            overlay=self.write_overlay(image),
            heatmap=f"{HEATMAPS}/{file}" if has_map else None,
            mask=f"{MASKS}/{file}",
        )
        self.manifest.add(entry)

    def readme(self) -> str:
        """The annotator's README."""
        return _readme(self.queue, self.manifest)


def read_folder(source: Path, labels: LabelMap) -> Iterator[Annotation | Rejected]:
    """The masks of a folder, each with the name of its image.

    Raises:
        DataError: there is no such folder, or it is not one for labels.
    """
    folder = locate(source)
    paths, rejected = find_masks(folder)
    yield from rejected
    for path in paths:
        yield Annotation(
            subject=readable_name(path.relative_to(folder.root)),
            image=str(path.relative_to(folder.masks)),
            read=partial(_read, path, labels),
            labeled_at=datetime.fromtimestamp(path.stat().st_mtime, tz=UTC),
        )


def locate(folder: Path) -> MaskFolder:
    """Find the masks of an exported folder (or of its `masks`), or of any folder of masks.

    Raises:
        DataError: there is no such folder, its `masks` is a link, or it is not one for labels.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.", "Name the exported folder, or a folder of masks.")
    root = folder.resolve()
    manifest = root.parent / MANIFEST
    if root.name == MASKS and _is_plain_file(manifest):
        root = root.parent
    elif root.name in (PREMASKS, HEATMAPS, OVERLAYS, IMAGES) and _is_plain_file(manifest):
        raise DataError(
            f"{folder} contains exported files, not labels.",
            f"Put corrected masks into {root.parent / MASKS}, then import {root.parent}.",
        )
    if not _is_plain_file(root / MANIFEST):
        return MaskFolder(root=root, masks=root, manifest=None)
    masks = root / MASKS
    if masks.is_symlink():
        raise DataError(f"{masks} is a link.", "Put the masks there, or import the folder that it leads to.")
    return MaskFolder(root=root, masks=masks, manifest=root / MANIFEST)


def find_masks(folder: MaskFolder) -> tuple[list[Path], list[Rejected]]:
    """The files that may be masks, sorted, and those that may not be opened.

    Hidden files are ignored. A folder of predictions is never searched.
    """
    root = folder.masks
    found: list[Path] = []
    rejected: list[Rejected] = []
    waiting = [root] if root.is_dir() else []
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                path = Path(entry.path)
                if entry.name.startswith(".") and not entry.name.startswith(".."):
                    continue
                if entry.is_dir(follow_symlinks=False) and entry.name not in _PREDICTIONS:
                    waiting.append(path)
                    continue
                reason = _why_rejected(entry, root)
                if reason is None:
                    found.append(path)
                else:
                    name = readable_name(path.relative_to(folder.root))
                    rejected.append(Rejected(subject=name, reason=reason))
    return sorted(found), sorted(rejected, key=lambda rejection: rejection.subject)


def readable_name(path: Path) -> str:
    """A path as text that can be stored and shown, whatever bytes its name has."""
    return shown(os.fsencode(path).decode("utf-8", errors="backslashreplace"))


def _read(path: Path, labels: LabelMap, width: int, height: int) -> DecodedMask:
    return DecodedMask(labels.read(path, size=(width, height)))


def _why_rejected(entry: os.DirEntry[str], root: Path) -> str | None:
    if entry.name in _PREDICTIONS and entry.is_dir(follow_symlinks=False):
        return "These are the model's predictions, not labels."
    try:
        if entry.is_symlink() and not Path(entry.path).resolve(strict=True).is_relative_to(root):
            return "It is a link that leads out of the folder."
        if not stat.S_ISREG(entry.stat().st_mode):
            return "It is not a plain file."
    except (OSError, RuntimeError):
        return "It is a link that leads nowhere."
    if Path(entry.name).suffix.lower() not in MASK_ENDINGS:
        return f"It is not one of the mask formats ({', '.join(sorted(MASK_ENDINGS))})."
    return None


def _is_plain_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _readme(queue: OutgoingQueue, written: ManifestWriter) -> str:
    label_map = queue.labels.document()
    classes = "\n".join(
        f"| {item['id']} | {item['name'].replace('|', '/')} | {hexadecimal(item['color'])} |"
        for item in label_map["classes"]
    )
    unpainted = label_map["not_labeled"]
    leave = ", or leave it as it is where it is right" if queue.kind == "review" else ""
    empty = (
        ""
        if queue.model is not None
        else f" There is no model's proposal: the masks in `{PREMASKS}/` are empty."
    )
    return f"""# {queue.name}: {counted(written.regions, "region")} in {counted(written.images, "image")}

{queue.order}: names begin with the rank, and `{REGIONS}` lists every region with its box (x, y, width
and height in pixels, from the top left of the upright image) and the reason why it was picked.{empty}

1. Open an image of `{IMAGES}/`. The overlay of the same name in `{OVERLAYS}/` shows the regions to
   label{queue.look}.
2. Paint every pixel inside the regions, and save the mask as a PNG of the image's size under the same name
   in `{MASKS}/`. You may start from {queue.start}: copy it from `{PREMASKS}/` to `{MASKS}/`,
   and correct it{leave}. Whole images are welcome too.
3. Run `segcurate import` with this folder. Only what is in `{MASKS}/` counts, and it can be run again:
   a corrected mask replaces the one before it.

A mask has the class ids below as its pixel values, or the colours below, in a palette or RGB mask.

| id | class | colour |
|---:|---|---|
{classes}
| {unpainted["id"]} | not labeled | {hexadecimal(unpainted["color"])} |

A pixel of unclear class stays "not labeled". A region counts as labeled when half of it is painted.
{_OUTLINES if written.outlines else ""}"""


FOLDER = Tool(
    name="folder",
    title="a folder of masks",
    writer=FolderWriter,
    read=read_folder,
    recognises=Path.is_dir,
)
