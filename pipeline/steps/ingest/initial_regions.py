"""The regions that the first labels are counted in: cells, superpixels, or maps of the user's own.

Segments are parts of a prediction, and there is no model yet: cells of the grid stand in for them.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from db.queries.images import PoolSizes
from db.tables import Image
from pipeline.config import RegionConfig
from pipeline.data.images import read_image
from pipeline.data.project import Project
from pipeline.errors import DataError
from pipeline.progress import Progress
from pipeline.regions.shapes import Regions, box_regions
from pipeline.regions.sources import RegionSource, region_source


class InitialRegions:
    """The regions of images that have a mask: found once, and kept in a file until they are asked for.

    Args:
        file: empty, and this object's own; its contents are of no use to another process.

    Attributes:
        unusable: why images have no regions, by URI.

    Raises:
        DataError: the folder of the region maps does not exist.
    """

    def __init__(self, project: Project, file: BinaryIO) -> None:
        self._project = project
        self._config = _config(project)
        self._source = region_source(project, self._config)
        self._counts: dict[int, int] = {}
        self._file = file
        self._offsets: dict[int, int] = {}
        self.unusable: dict[str, str] = {}

    def prepare(self, pages: Iterable[Sequence[Image]], threads: Executor, progress: Progress) -> None:
        """Find the regions of images, page by page. No part of a transaction: superpixels take long."""
        if self._source is None:
            return
        find = partial(self._find, self._source)
        for page in pages:
            for image, found in zip(page, threads.map(find, page), strict=True):
                if isinstance(found, str):
                    self.unusable[image.uri] = found
                else:
                    self._counts[image.id] = len(found)
                    self._offsets[image.id] = self._file.tell()
                    pickle.dump(found, self._file)
            progress("regions", len(self._counts), None)

    def of(self, image: Image) -> Regions | None:
        """The regions of an image; None where it has none, for the reason in `unusable`."""
        if self._source is None:
            return box_regions(self._config, image.width, image.height)
        if image.id not in self._offsets:
            return None
        self._file.seek(self._offsets[image.id])
        return pickle.load(self._file)

    def counts(self, pool: PoolSizes) -> npt.NDArray[np.int64]:
        """How many regions each image of the pool has. Where regions have shapes, only images with a mask are
        counted; the count of the others is estimated from their pixels."""
        if self._source is None:
            sizes, which = np.unique(
                np.stack([pool.widths, pool.heights], axis=1), axis=0, return_inverse=True
            )
            known = [len(box_regions(self._config, w, h)) for w, h in sizes.tolist()]
            return np.array(known, dtype=np.int64)[which.ravel()] if known else np.zeros(0, dtype=np.int64)
        counts = np.array([self._counts.get(image_id, 0) for image_id in pool.ids.tolist()], dtype=np.int64)
        pixels = pool.widths.astype(np.float64) * pool.heights
        density = counts.sum() / max(1.0, pixels[counts > 0].sum())
        return np.where(pool.has_mask, counts, np.rint(pixels * density)).astype(np.int64)

    def _find(self, source: RegionSource, image: Image) -> Regions | str:
        """The regions of an image, or why it has none."""
        ref = self._project.ref(image)
        data = self._project.config.data
        try:
            pixels = read_image(ref.path, channels=data.channels, max_pixels=data.max_pixels)
            return source(ref, pixels).regions
        except DataError as error:
            return str(error)


def _config(project: Project) -> RegionConfig:
    """The regions that `splits.initial` counts."""
    if project.config.splits.initial.unit == "image":
        return RegionConfig(kind="image")
    regions = project.config.scoring.regions
    return RegionConfig(cell=regions.cell) if regions.kind == "segment" else regions
