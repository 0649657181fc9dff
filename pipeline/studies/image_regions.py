"""The regions of held-out images, of every kind that a project can configure.

Legend: H W image size, R regions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.config import RegionConfig
from pipeline.data.images import read_image
from pipeline.data.project import Project
from pipeline.regions.segments import segments
from pipeline.regions.shapes import cell_edges
from pipeline.regions.sources import region_source
from pipeline.studies.held_out import HeldOut

Rows = npt.NDArray[np.integer]
"""[H, W]: the row of each pixel's region, or −1."""


class ImageRegions:
    """Grid cells, superpixels and segments of the configured size, and the user's region maps if configured.

    Raises:
        DataError: the folder of the region maps does not exist.
    """

    def __init__(self, project: Project) -> None:
        self.data = project.config.data
        self.config = project.config.scoring.regions
        kinds = ("superpixel", "file") if self.config.kind == "file" else ("superpixel",)
        configs = {kind: self.config.model_copy(update={"kind": kind}) for kind in kinds}
        self.sources = {kind: region_source(project, config) for kind, config in configs.items()}

    def of_image(self, item: HeldOut) -> dict[str, Rows]:
        """Rows by kind, of the kinds that do not depend on a prediction.

        Raises:
            DataError: the image, or its region map, cannot be used.
        """
        pixels = read_image(item.ref.path, channels=self.data.channels, max_pixels=self.data.max_pixels)
        rows: dict[str, Rows] = {"grid": grid_rows(self.config, item.ref.width, item.ref.height)}
        for kind, source in self.sources.items():
            if source is not None:
                rows[kind] = source(item.ref, pixels).row
        return rows

    def of_prediction(self, predicted_HW: npt.NDArray[np.integer]) -> Rows:
        """The segments of one predicted mask."""
        return segments(predicted_HW, smallest=self.config.smallest * self.config.cell**2)


def grid_rows(config: RegionConfig, width: int, height: int) -> Rows:
    """The cells of a grid, row by row.

    >>> grid_rows(RegionConfig(cell=8), 16, 8)[0, [0, 7, 8]].tolist()
    [0, 0, 1]
    """
    x, y = (
        np.searchsorted(cell_edges(length, config.cell), np.arange(length), side="right") - 1
        for length in (width, height)
    )
    return y[:, None] * (x.max() + 1) + x
