"""Writes a queue for Label Studio: tasks with the model's masks in them, in the order of their ranks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from pipeline.config import IGNORE
from pipeline.data.images import as_rgb, encode_png, probe_image, read_pixels
from pipeline.data.masks import Mask
from pipeline.files import append_text, atomic_write_bytes
from pipeline.format import counted
from pipeline.labeling.label_studio import bitmask, brush
from pipeline.labeling.label_studio.config import (
    HEATMAPS as HEATMAPS_KEY,
)
from pipeline.labeling.label_studio.config import (
    IMAGE,
    LOOK,
    LOOK_HERE,
    MASK,
    REASON,
    TITLE,
    Masks,
    label_values,
    labeling_config,
)
from pipeline.labeling.manifest import HEATMAPS, IMAGES
from pipeline.labeling.outgoing import OutgoingImage, OutgoingQueue
from pipeline.labeling.queue_writer import QueueWriter

TASKS, CONFIG = "tasks.json", "config.xml"
LOCAL_FILES = "/data/local-files/?d="
"""The beginning of a task's path of a file below the server's document root."""
INSTRUCTIONS = (
    "Look inside the light blue boxes. A picture beside the image, if any, says where the model is unsure.",
    "Choose a class's mask in the list of regions, then paint what it lacks, and erase what is not of it.",
    "What you paint is above the proposal: you need not erase it from the other mask.",
    "A pixel whose class you cannot tell stays unpainted.",
)
"""For the annotator."""

_SHOWN_BY_BROWSERS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
_HALF_WAY = 1000


class TasksWriter(QueueWriter):
    """Writes `images`, `heatmaps`, `tasks.json`, `config.xml`, and the manifest.

    Args:
        masks: the encoding of masks; `brush` for a Label Studio before 1.21.
    """

    overlays = HEATMAPS

    def __init__(self, folder: Path, queue: OutgoingQueue, *, masks: Masks = "bitmask") -> None:
        super().__init__(folder, queue)
        self._masks: Masks = masks

    def add(self, image: OutgoingImage) -> None:
        """Write one image, the picture of where to look in it, its task, and its line of the manifest."""
        placed, heatmap = self.write_image(image), self.write_overlay(image)
        task = {
            "data": _data(image, self.queue, picture=placed, heatmap=heatmap),
            "predictions": [self._prediction(image)],
        }
        text = json.dumps(task, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        append_text(self.folder / TASKS, (",\n" if self.manifest.images else "[\n") + text)
        self.manifest.add(image.entry(self.queue, image=placed, overlay=heatmap))

    def finish(self) -> None:
        """Write the configuration, the end of the tasks, and the annotator's README."""
        append_text(self.folder / TASKS, "\n]\n" if self.manifest.images else "[]\n")
        config = labeling_config(self.queue.labels, masks=self._masks, heatmaps=self.queue.overlays)
        atomic_write_bytes(self.folder / CONFIG, config.encode())
        super().finish()

    def readme(self) -> str:
        """The annotator's README."""
        return _readme(self.queue, images=self.manifest.images, regions=self.manifest.regions)

    def write_image(self, image: OutgoingImage) -> str:
        """Write the image in a format for browsers; return its path in the folder."""
        size = (image.width, image.height)
        info = probe_image(image.source, size=size)
        if image.source.suffix.lower() in _SHOWN_BY_BROWSERS and info.bits == 8:
            return super().write_image(image)
        file = f"{IMAGES}/{image.name}.png"
        pixels = read_pixels(image.source, size=size, floats=True)
        atomic_write_bytes(self.folder / file, encode_png(as_rgb(pixels)))
        return file

    def _prediction(self, image: OutgoingImage) -> dict[str, Any]:
        return {
            "model_version": model_version(self.queue.name, self.queue.model),
            # Label Studio's uncertainty sampling begins with the lowest: the order of the queue
            "score": image.position / (image.position + _HALF_WAY),
            "result": [
                *mask_results(
                    image.mask, self.queue.labels.names, image_id=image.image_id, masks=self._masks
                ),
                *_look_results(image),
            ],
        }


def model_version(queue: str, model: str | None) -> str:
    """Label Studio's name of a queue's predictions."""
    return queue if model is None else f"{queue} {model}"


def mask_results(mask: Mask, names: list[str], *, image_id: int, masks: Masks) -> list[dict[str, Any]]:
    """A mask [H, W] as Label Studio's regions, one for each class that it has."""
    values = label_values(names)
    height, width = mask.shape
    return [
        {
            "id": f"i{image_id}c{index}",
            "from_name": MASK,
            "to_name": IMAGE,
            "type": f"{masks}labels",
            **_sizes(width, height),
            "value": mask_value(mask == index, values[index], masks=masks),
        }
        for index in np.unique(mask).tolist()
        if index != IGNORE
    ]


def mask_value(painted: np.ndarray[Any, np.dtype[np.bool_]], label: str, *, masks: Masks) -> dict[str, Any]:
    """The value of a region of one class [H, W]."""
    if masks == "bitmask":
        return {"imageDataURL": bitmask.encode(painted), "bitmasklabels": [label]}
    return {"format": "rle", "rle": brush.encode(painted), "brushlabels": [label]}


def with_masks_as(results: list[dict[str, Any]], masks: Masks) -> list[dict[str, Any]]:
    """The regions of an exported task, with masks of this kind.

    Raises:
        DataError: a mask is damaged.
    """
    return [_converted(region, masks) if region["from_name"] == MASK else region for region in results]


def _converted(region: dict[str, Any], masks: Masks) -> dict[str, Any]:
    kind, value = region["type"], region["value"]
    if kind == f"{masks}labels":
        return region
    size = {"width": region["original_width"], "height": region["original_height"]}
    if kind == "brushlabels":
        painted = brush.decode(value["rle"], **size)
    else:
        painted = bitmask.decode(value["imageDataURL"], **size)
    return region | {"type": f"{masks}labels", "value": mask_value(painted, value[kind][0], masks=masks)}


def _look_results(image: OutgoingImage) -> list[dict[str, Any]]:
    return [
        {
            "id": f"i{image.image_id}r{region.item}",
            "from_name": LOOK,
            "to_name": IMAGE,
            "type": "rectanglelabels",
            **_sizes(image.width, image.height),
            "readonly": True,
            "value": {
                "x": region.x / image.width * 100,
                "y": region.y / image.height * 100,
                "width": region.w / image.width * 100,
                "height": region.h / image.height * 100,
                "rotation": 0,
                "rectanglelabels": [LOOK_HERE],
            },
            "meta": {"text": [f"{region.rank}: {region.reason}"]},
        }
        for region in image.regions
    ]


def _sizes(width: int, height: int) -> dict[str, int]:
    return {"original_width": width, "original_height": height, "image_rotation": 0}


def _data(image: OutgoingImage, queue: OutgoingQueue, *, picture: str, heatmap: str | None) -> dict[str, Any]:
    best = image.regions[0]
    return {
        IMAGE: LOCAL_FILES + quote(picture),
        HEATMAPS_KEY: [] if heatmap is None else [LOCAL_FILES + quote(heatmap)],
        TITLE: f"{queue.name}, rank {image.rank}: {image.uri}",
        REASON: "; ".join(dict.fromkeys(region.reason for region in image.regions)),
        "image_id": image.image_id,
        "uri": image.uri,
        "sha256": image.sha256,
        "width": image.width,
        "height": image.height,
        "project": queue.project,
        "queue": queue.name,
        "round": queue.round,
        "model": queue.model,
        "place": image.position,
        "rank": image.rank,
        "measure": best.measure,
        "score": best.score if best.score is None or math.isfinite(best.score) else None,
        "classes": queue.labels.names,
        "regions": [
            {"rank": region.rank, "x": region.x, "y": region.y, "w": region.w, "h": region.h}
            for region in image.regions
        ],
    }


def _readme(queue: OutgoingQueue, *, images: int, regions: int) -> str:
    steps = "\n".join(f"   - {line}" for line in INSTRUCTIONS)
    pictures = f" and `{HEATMAPS}`" if queue.overlays else ""
    return f"""# {queue.name} for Label Studio: {counted(regions, "region")} in {counted(images, "image")}

{queue.order}: tasks are in the order of their ranks, and each has {queue.start} to start from,
and light blue boxes around the regions to label.

`segcurate export --to label-studio --url http://…` brings it onto a server. By hand:

1. Start Label Studio 1.21 or later with `LOCAL_FILES_SERVING_ENABLED=true`, and with
   `LOCAL_FILES_DOCUMENT_ROOT` set to the full path of this folder.
2. Create a project, and paste `{CONFIG}` into Settings > Labeling Interface > Code.
3. In Settings > Cloud Storage add a source storage "Local files" for the full path of `{IMAGES}`{pictures}
   in this folder (one each). Save them; do not sync them.
4. Import `{TASKS}`. Choose "Sequential sampling" in Settings > General.
5. Correct the masks, and submit:
{steps}
6. Export as JSON (not JSON-MIN, not as PNG), and run `segcurate import` with that file. It can be run again:
   a corrected mask replaces the one before it.
"""
