"""The neutral format's folder: how images go out, which masks may be looked at, and whose each one is.

A folder that came back is untrusted. No link that leads out of it is followed, no special file is opened,
and a file whose name could mean two images belongs to none.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import tifffile
from PIL import Image

from pipeline.data.images import ImageArray, probe_image, read_pixels
from pipeline.data.remote import ImageFile, opened
from pipeline.errors import DataError
from pipeline.labeling.encoding import MASK_ENDINGS
from pipeline.labeling.manifest import IMAGES, MANIFEST, MASKS, OVERLAYS, PREMASKS


@dataclass(frozen=True)
class Delivery:
    """Where masks are looked for, and the manifest that came with them."""

    folder: Path
    masks: Path
    manifest: Path | None


@dataclass(frozen=True)
class Refusal:
    """A file that was not taken, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Wanted:
    """An image that a mask may be of. `name` is its name in the export; None for an image that is not in
    the queue, and is here so that its masks are not taken for another's."""

    image_id: int
    uri: str
    name: str | None


def place_image(source: ImageFile, folder: Path, *, name: str, how: Literal["link", "copy"]) -> str:
    """Put an image into an export: linked or copied; one of an object store is copied. It is turned upright
    where its file lies on its side, so that a tool which overlooks EXIF orientation shows what the mask's
    pixels mean.

    Args:
        name: of the new file, without its ending.

    Returns:
        The new file's name.

    Raises:
        DataError: the image cannot be read.
        OSError: the folder cannot be written.
    """
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


def locate(folder: Path) -> Delivery:
    """Find out what a folder is: an exported one (or its `masks`), or any folder of masks.

    Raises:
        DataError: there is no such folder, its `masks` is a link, or it is one that holds no labels.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.", "Name the exported folder, or a folder of masks.")
    root = folder.resolve()
    manifest = root.parent / MANIFEST
    if root.name == MASKS and _is_plain_file(manifest):
        root = root.parent
    elif root.name in (PREMASKS, OVERLAYS, IMAGES) and _is_plain_file(manifest):
        raise DataError(
            f"{folder} holds what was exported, not labels.",
            f"Put corrected masks into {root.parent / MASKS}, then import {root.parent}.",
        )
    if not _is_plain_file(root / MANIFEST):
        return Delivery(folder=root, masks=root, manifest=None)
    masks = root / MASKS
    if masks.is_symlink():
        raise DataError(f"{masks} is a link.", "Put the masks there, or import the folder that it leads to.")
    return Delivery(folder=root, masks=masks, manifest=root / MANIFEST)


def find_masks(delivery: Delivery) -> tuple[list[Path], list[Refusal]]:
    """The files that may be masks, sorted, and those that may not be opened.

    Hidden files are passed over. A `premasks` folder holds predictions, and is never looked into.
    """
    root = delivery.masks
    found: list[Path] = []
    refused: list[Refusal] = []
    waiting = [root] if root.is_dir() else []
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                path = Path(entry.path)
                if entry.name.startswith(".") and not entry.name.startswith(".."):
                    continue
                if entry.is_dir(follow_symlinks=False) and entry.name != PREMASKS:
                    waiting.append(path)
                    continue
                reason = _why_not(entry, root)
                if reason is None:
                    found.append(path)
                else:
                    shown = readable_name(path.relative_to(delivery.folder))
                    refused.append(Refusal(file=shown, reason=reason))
    return sorted(found), sorted(refused, key=lambda refusal: refusal.file)


def readable_name(path: Path) -> str:
    """A path as text that can be stored and shown, whatever bytes its name has."""
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")


class NameIndex:
    """Which image a mask file means, by its name.

    A name of the export decides. Otherwise the name without its ending may be the image's id, or the image's
    own name, with as many of its folders as are given; what can be said of two images is said of none.
    """

    def __init__(self, wanted: Iterable[Wanted]) -> None:
        self._by_export_name: dict[str, Wanted] = {}
        self._by_id: dict[str, Wanted] = {}
        self._by_stem: dict[str, list[tuple[tuple[str, ...], Wanted]]] = defaultdict(list)
        for image in wanted:
            parts = _parts(PurePosixPath(image.uri))
            self._by_stem[parts[-1]].append((parts, image))
            if image.name is not None:
                self._by_export_name[image.name] = image
                self._by_id[str(image.image_id)] = image

    def image_of(self, relative: PurePosixPath) -> int:
        """The id of the image that a mask is of, by the mask's path below its folder.

        Raises:
            DataError: no image of the queue has this name, or more than one.
        """
        parts = _parts(relative)
        name = parts[-1]
        named = self._by_export_name.get(name) or self._by_export_name.get(PurePosixPath(name).stem)
        if named is not None:
            return named.image_id
        meant = {
            image.image_id: image
            for whole, image in self._by_stem.get(name, ())
            if whole[-len(parts) :] == parts
        }
        if name in self._by_id:
            image = self._by_id[name]
            meant[image.image_id] = image
        if not meant:
            raise DataError(
                "It belongs to no image of this queue.", "Give it the name that the manifest says."
            )
        if len(meant) > 1:
            images = " or ".join(f"{image.uri} (id {image.image_id})" for image in meant.values())
            raise DataError(
                f"Its name is ambiguous: it could be of {images}.", "Give it the name that the manifest says."
            )
        image = next(iter(meant.values()))
        if image.name is None:
            raise DataError(
                f"It is a mask of {image.uri}, which is not in this queue.", "Select the image first."
            )
        return image.image_id


def _why_not(entry: os.DirEntry[str], root: Path) -> str | None:
    if entry.name == PREMASKS and entry.is_dir(follow_symlinks=False):
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


def _is_plain_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _parts(path: PurePosixPath) -> tuple[str, ...]:
    """Folders and the name without its ending; macOS and Linux spell the same letter differently."""
    return tuple(unicodedata.normalize("NFC", part) for part in (*path.parts[:-1], path.stem))
