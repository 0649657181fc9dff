"""Which image an untrusted name means."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline.errors import DataError


class UnknownName(DataError):
    """No known image has this name."""


class OutsideQueue(DataError):
    """It belongs to an image of the project, but to none of the queue."""


@dataclass(frozen=True)
class KnownImage:
    """An image that a mask may belong to. `name` is its name in the export; None for an image outside of the
    queue, which is listed so that its masks are not assigned to another image."""

    image_id: int
    uri: str
    name: str | None


class NameIndex:
    """Finds the image of a mask file by the file's name.

    A name of the export is tried first. Otherwise the name without its ending may be the image's id, or the
    image's own name, with any number of its folders; a name that fits two images is rejected.
    """

    def __init__(self, images: Iterable[KnownImage]) -> None:
        self._by_export_name: dict[str, KnownImage] = {}
        self._by_id: dict[str, KnownImage] = {}
        self._by_stem: dict[str, list[tuple[tuple[str, ...], KnownImage]]] = defaultdict(list)
        for image in images:
            parts = _parts(PurePosixPath(image.uri))
            self._by_stem[parts[-1]].append((parts, image))
            if image.name is not None:
                self._by_export_name[image.name] = image
                self._by_id[str(image.image_id)] = image

    def image_of(self, relative: PurePosixPath) -> int:
        """The id of a mask's image, by the mask's path below its folder.

        Raises:
            UnknownName: no image has this name.
            OutsideQueue: an image has it that is not in the queue.
            DataError: more than one image has it.
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
            raise UnknownName(
                "No image of the project has this name.", "Give it the name of its image, or remove it."
            )
        if len(meant) > 1:
            images = " or ".join(f"{image.uri} (id {image.image_id})" for image in meant.values())
            raise DataError(
                f"Its name is ambiguous: it could be of {images}.", "Give it the name in the manifest."
            )
        image = next(iter(meant.values()))
        if image.name is None:
            raise OutsideQueue(f"It is a mask of {image.uri}, which is not in this queue.")
        return image.image_id


def _parts(path: PurePosixPath) -> tuple[str, ...]:
    """Folders and the name without its ending, normalised: macOS and Linux encode a letter differently."""
    return tuple(unicodedata.normalize("NFC", part) for part in (*path.parts[:-1], path.stem))
