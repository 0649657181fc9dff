"""The regions that the first labels are counted in: cells, superpixels, or maps of the user's own.

Segments are parts of a prediction, and there is no model yet: cells of the grid stand in for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from db.queries.images import PoolSizes
from db.tables import Image
from pipeline.config import RegionConfig
from pipeline.data.images import ImageRef, read_image
from pipeline.data.project import Project
from pipeline.errors import DataError
from pipeline.progress import Progress
from pipeline.regions.shapes import Regions, box_regions
from pipeline.regions.sources import region_source


class InitialRegions:
    """The regions of images that have a mask.

    Attributes:
        unusable: why images have no regions, by URI.

    Raises:
        DataError: the folder of the region maps does not exist.
    """

    def __init__(self, project: Project) -> None:
        self._project = project
        self._config = _config(project)
        self._source = region_source(project, self._config)
        self._counts: dict[int, int] = {}
        self.unusable: dict[str, str] = {}
        self.regions_of: Callable[[ImageRef], Regions] = lru_cache(maxsize=4)(self._regions_of)

    def prepare(self, pages: Callable[[], Sequence[Image]], threads: Executor, progress: Progress) -> None:
        """Find the regions of images, page by page until there is none. Superpixels take long, so
        this is no part of a transaction; they are kept on disk then."""
        while self._source is not None and (page := pages()):
            for image, count in zip(page, threads.map(self._count, page), strict=True):
                if isinstance(count, str):
                    self.unusable[image.uri] = count
                else:
                    self._counts[image.id] = count
            progress("regions", len(self._counts), None)

    def of(self, image: Image) -> Regions | None:
        """The regions of an image; None where it has none, for the reason in `unusable`."""
        if self._source is not None and image.id not in self._counts:
            return None
        return self.regions_of(self._project.ref(image))

    def counts(self, pool: PoolSizes) -> npt.NDArray[np.int64]:
        """How many regions each image of the pool has. Only those with a mask have been looked at: where
        regions have shapes, the others count as many for their pixels as these."""
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

    def _count(self, image: Image) -> int | str:
        try:
            return len(self._regions_of(self._project.ref(image)))
        except DataError as error:
            return str(error)

    def _regions_of(self, ref: ImageRef) -> Regions:
        if self._source is None:
            return box_regions(self._config, ref.width, ref.height)
        data = self._project.config.data
        pixels = read_image(ref.path, channels=data.channels, max_pixels=data.max_pixels)
        return self._source(ref, pixels).regions


def _config(project: Project) -> RegionConfig:
    """The regions that `splits.initial` counts."""
    if project.config.splits.initial.unit == "image":
        return RegionConfig(kind="image")
    regions = project.config.scoring.regions
    return RegionConfig(cell=regions.cell) if regions.kind == "segment" else regions
