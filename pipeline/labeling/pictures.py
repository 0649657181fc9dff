"""Pictures of where to look in an image, for people and for tools."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from pipeline.config import HeatmapSize
from pipeline.data.images import as_rgb, encode_png, read_pixels
from pipeline.drawing.heatmaps import overlay_picture, write_heatmap
from pipeline.files import atomic_write_bytes
from pipeline.labeling.outgoing import OutgoingImage

SHRINK = 4
"""Pixels of the image for one pixel of a small map, in both directions."""


def write_map(path: Path, image: OutgoingImage, *, size: HeatmapSize = "quarter") -> bool:
    """Write the image's map as a grey PNG, 0 to 255 for 0 to 1, of a quarter of its resolution or in full.

    Returns:
        False where it has none.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    if image.map is None:
        return False
    shown = image.map
    if size == "quarter":
        shrunk = (-(-image.width // SHRINK), -(-image.height // SHRINK))
        shown = cv2.resize(shown, shrunk, interpolation=cv2.INTER_AREA).astype(np.float32, copy=False)
    write_heatmap(path, shown, measure=image.title, low=0, high=1)
    return True


def write_overlay(path: Path, image: OutgoingImage) -> None:
    """Write the image, under its map if it has one, with the borders of the queued regions and their ranks.

    Raises:
        DataError: the image cannot be read.
        UserError: the folder cannot be written, or the disk is full.
    """
    picture = overlay_picture(
        as_rgb(read_pixels(image.source, size=(image.width, image.height), floats=True)),
        image.map,
        np.array([(region.x, region.y, region.w, region.h) for region in image.regions], dtype=np.int32),
        title=image.title,
        outlines=[region.outline for region in image.regions],
        names=[str(region.rank) for region in image.regions],
    )
    atomic_write_bytes(path, encode_png(picture))
