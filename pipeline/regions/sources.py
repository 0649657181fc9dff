"""Sources of an image's regions before it is predicted: superpixels, or the user's own maps.

Legend: H W image size.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.config import RegionConfig
from pipeline.data.image_info import ImageRef
from pipeline.data.images import ImageArray, open_image
from pipeline.data.project import Project
from pipeline.data.remote import ImageFile
from pipeline.data.sources import FoldersAbove
from pipeline.errors import DataError
from pipeline.files import file_sha256
from pipeline.regions.shapes import RegionMap, map_regions
from pipeline.regions.superpixels import SuperpixelCache

RegionSource = Callable[[ImageRef, ImageArray], RegionMap]
"""The regions of an image [H, W, K]; called from several threads. A DataError means this image only."""


def region_source(project: Project, config: RegionConfig) -> RegionSource | None:
    """The source of a project's regions; None for kinds that need no map, or whose map is predicted.

    Raises:
        DataError: the folder of the region maps, or an entry of `data.images`, does not exist.
    """
    if config.kind == "superpixel":
        cache = SuperpixelCache(project.workdir / "superpixels", config)
        return lambda _, pixels: map_regions(cache(pixels))
    if config.kind == "file" and config.folder is not None:
        return RegionFiles(project, project.path(config.folder), template=config.template)
    return None


class MapVersion(NamedTuple):
    """A region map as it was read: its size, the times of its content and of its entry, and its hash."""

    size: int
    mtime_ns: int
    ctime_ns: int
    sha256: str

    @staticmethod
    def of(path: Path, before: MapVersion | None = None) -> MapVersion:
        """The version of a file; `before` where its size and times are the same, so that it is not read."""
        stamp = _stamp(path.stat())
        if before is not None and stamp == before[:3]:
            return before
        return MapVersion(*stamp, file_sha256(path))


class RegionFiles:
    """Region maps of the user: for each image one of the same size, whose values are the regions.

    Attributes:
        versions: of the maps that were read, by image id.

    Args:
        folder: of the maps.
        template: the path of a map in it, with `{parent}`, `{stem}` and `{name}` of the image.

    Raises:
        DataError: there is no such folder.
    """

    def __init__(self, project: Project, folder: Path, *, template: str) -> None:
        if not folder.is_dir():
            raise DataError(
                f"`scoring.regions.folder` is {str(folder)!r}, and there is no such folder.",
                "Make it, or correct the path.",
            )
        self._folder = folder
        self._template = template
        self._max_pixels = project.config.data.max_pixels
        self._above = FoldersAbove(project)
        self.versions: dict[int, MapVersion] = {}

    def __call__(self, image: ImageRef, pixels: ImageArray) -> RegionMap:
        """The regions of an image.

        Raises:
            DataError: its map is missing, damaged, of another size, or no index map.
        """
        size = (pixels.shape[1], pixels.shape[0])
        found, self.versions[image.id] = read_region_map(
            self.path(image.path), size=size, max_pixels=self._max_pixels
        )
        return found

    def path(self, image: ImageFile) -> Path:
        """The path where the map of an image is expected."""
        relative = self._template.format(parent=self._above.parent(image), stem=image.stem, name=image.name)
        return Path(os.path.normpath(self._folder / relative.lstrip("/")))


def read_region_map(path: Path, *, size: tuple[int, int], max_pixels: int) -> tuple[RegionMap, MapVersion]:
    """Read an index map, and its version from the same open file. The highest possible value, 255 or 65535,
    is no region.

    Args:
        size: width and height that it must have.
        max_pixels: a larger map is not decoded.

    Raises:
        DataError: the file is missing, damaged, of another size, coloured, or holds no region.
    """
    if not path.exists() or path.is_dir():
        raise DataError(f"There is no region map {path}.", "Make it, or correct `scoring.regions.template`.")
    with open_image(path, max_pixels=max_pixels) as image:
        if (image.info.width, image.info.height) != size:
            raise DataError(
                f"The region map {path} has {image.info.width}×{image.info.height} pixels, its image "
                f"{size[0]}×{size[1]}.",
                "Write the map at the size of its image (as displayed, after EXIF orientation).",
            )
        channels = 1 if image.is_palette else image.info.channels
        if channels != 1:
            raise DataError(
                f"The region map {path} has {channels} channels.", "Write one channel of 8 or 16 bits."
            )
        values = image.pixels(palette_indices=True)
        version = MapVersion(*_stamp(image.stat()), image.sha256())
    nowhere = 255 if values.dtype == np.uint8 else 65535
    found = map_regions(values[:, :, 0].astype(np.int32), nowhere=nowhere)
    if len(found.regions) == 0:
        raise DataError(f"The region map {path} holds no region.", "Give its regions values.")
    return found, version


def _stamp(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
