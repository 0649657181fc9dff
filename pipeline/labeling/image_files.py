"""The image files of an export."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np
import tifffile

from pipeline.data.images import ImageArray, encode_png, open_image
from pipeline.data.remote import ImageFile, opened
from pipeline.files import writing


def write_image(
    source: ImageFile,
    folder: Path,
    *,
    name: str,
    size: tuple[int, int],
    how: Literal["link", "copy"],
    root: Path,
) -> str:
    """Link or copy an image into an export; an image of an object store is copied. An image that its file
    stores rotated is written upright, so that it fits its mask also in tools that ignore EXIF orientation.

    Args:
        name: of the new file, without its ending.
        size: width and height of the image.
        root: the project's folder. A link between two files in it is relative, so it holds where the project
            is moved, or mounted into a container.

    Returns:
        The new file's name.

    Raises:
        DataError: the image cannot be read.
        UserError: the folder cannot be written, or the disk is full.
    """
    with writing(folder / name):
        with open_image(source, size=size) as image:
            turned = image.pixels(floats=True) if image.info.orientation != 1 else None
        if turned is not None:
            return _write_upright(turned, folder, name=name)
        destination = folder / f"{name}{source.suffix.lower()}"
        if how == "link" and isinstance(source, Path):
            with suppress(OSError, NotImplementedError):  # a file or operating system without links
                destination.symlink_to(_link_target(source, folder, root))
                return destination.name
        with opened(source) as content, destination.open("wb") as copy:
            shutil.copyfileobj(content, copy)
        return destination.name


def _link_target(source: Path, folder: Path, root: Path) -> Path:
    """The image as a link in the folder names it."""
    inside, place = Path(os.path.abspath(source)), folder.resolve()
    if inside.is_relative_to(os.path.abspath(root)) and place.is_relative_to(root.resolve()):
        image = root.resolve() / inside.relative_to(os.path.abspath(root))
        return Path(os.path.relpath(image, place))
    return source.absolute()


def _write_upright(pixels: ImageArray, folder: Path, *, name: str) -> str:
    if pixels.dtype == np.uint8 and pixels.shape[2] <= 4:
        destination = folder / f"{name}.png"
        destination.write_bytes(encode_png(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
    else:
        destination = folder / f"{name}.tif"
        tifffile.imwrite(destination, pixels)
    return destination.name
