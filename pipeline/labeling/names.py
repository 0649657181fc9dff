"""Which image an untrusted name means."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline.errors import DataError

_LISTED = 4


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


class OriginalNames:
    """Finds an image by the name that a label file gives it, where no export has named it.

    The name may have any number of the image's folders, or folders above those that the project knows. Where
    it fits several images, its ending counts; a name that still fits two is rejected.
    """

    def __init__(self, uris: Iterable[str]) -> None:
        self._by_stem: dict[str, list[tuple[tuple[str, ...], str]]] = defaultdict(list)
        for uri in uris:
            parts = _parts(PurePosixPath(uri))
            self._by_stem[parts[-1]].append((parts, uri))

    def image_of(self, name: str) -> str:
        """The URI of the image with this name.

        Raises:
            UnknownName: no image has it.
            DataError: more than one image has it.
        """
        path = PurePosixPath(name.replace("\\", "/"))
        parts = tuple(part for part in _parts(path) if part not in ("/", "."))
        known = self._by_stem.get(parts[-1], []) if parts else []
        meant = [uri for whole, uri in known if whole[-len(parts) :] == parts]
        if not meant:
            meant = [uri for whole, uri in known if len(whole) > 1 and parts[-len(whole) :] == whole]
        if len(meant) > 1:
            meant = [uri for uri in meant if PurePosixPath(uri).suffix == path.suffix] or meant
        if not meant:
            raise UnknownName("No image of `data.images` has this name.")
        if len(meant) > 1:
            raise DataError(
                f"Its name {path} is ambiguous: it could be of {' or '.join(meant[:_LISTED])}.",
                "Name the image with its folder.",
            )
        return meant[0]


def _parts(path: PurePosixPath) -> tuple[str, ...]:
    """Folders and the name without its ending, normalised: macOS and Linux encode a letter differently."""
    return tuple(unicodedata.normalize("NFC", part) for part in (*path.parts[:-1], path.stem))
