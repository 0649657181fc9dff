"""How an image gets into an export."""

from __future__ import annotations

import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
import tifffile
from PIL import Image

from pipeline.data.images import ImageArray, probe_image, read_pixels
from pipeline.data.remote import ImageFile, opened
from pipeline.files import writing


def write_image(source: ImageFile, folder: Path, *, name: str, how: Literal["link", "copy"]) -> str:
    """Put an image into an export: linked or copied; one of an object store is copied. It is turned upright
    where its file lies on its side, so that a tool which overlooks EXIF orientation shows what the mask's
    pixels mean.

    Args:
        name: of the new file, without its ending.

    Returns:
        The new file's name.

    Raises:
        DataError: the image cannot be read.
        UserError: the folder cannot be written, or the disk is full.
    """
    with writing(folder / name):
        return _place(source, folder, name=name, how=how)


def _place(source: ImageFile, folder: Path, *, name: str, how: Literal["link", "copy"]) -> str:
    if probe_image(source, max_pixels=sys.maxsize).orientation != 1:
        return _write_upright(read_pixels(source, floats=True), folder, name=name)
    destination = folder / f"{name}{source.suffix.lower()}"
    if how == "link" and isinstance(source, Path):
        with suppress(OSError, NotImplementedError):  # a file system, or a system, without links
            destination.symlink_to(source.absolute())
            return destination.name
    with opened(source) as content, destination.open("wb") as copy:
        shutil.copyfileobj(content, copy)
    return destination.name


def _write_upright(pixels: ImageArray, folder: Path, *, name: str) -> str:
    if pixels.dtype == np.uint8 and pixels.shape[2] <= 4:
        destination = folder / f"{name}.png"
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels)).save(
            destination, compress_level=3
        )
    else:
        destination = folder / f"{name}.tif"
        tifffile.imwrite(destination, pixels)
    return destination.name
