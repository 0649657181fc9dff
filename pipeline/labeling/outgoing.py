"""A queue and its images, as a labeling tool's writer gets them.

Legend: H height, W width. A mask is uint8 [H, W] of the upright image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.config import HeatmapSize
from pipeline.data.masks import Mask
from pipeline.data.remote import ImageFile
from pipeline.labeling.encoding import LabelMap
from pipeline.labeling.manifest import ManifestImage, ManifestRegion


@dataclass(frozen=True)
class OutgoingQueue:
    """A queue to export.

    Attributes:
        name: such as `round-03`.
        round: its number; None for a queue outside of the loop.
        kind: as in the store; the masks of a `review` are its labels.
        project: the project's name.
        root: the project's folder.
        model: the name of the model whose masks are proposed; None where the masks are empty.
        labels: the classes, their ids and colours.
        how: images are linked into the export, or copied.
        overlays: whether pictures of where to look are written.
        heatmaps: the size of heat maps.
    """

    name: str
    round: int | None
    kind: str
    project: str
    root: Path
    model: str | None
    labels: LabelMap
    how: Literal["link", "copy"] = "link"
    overlays: bool = True
    heatmaps: HeatmapSize = "quarter"

    @property
    def order(self) -> str:
        """What the order of the images means, as the beginning of a sentence."""
        return "The most useful first" if self.model is not None else "In the order to label them"

    @property
    def start(self) -> str:
        """What the annotator starts from, as the object of a sentence."""
        if self.kind == "review":
            return "the label as it is now"
        return "the model's own proposal" if self.model is not None else "an empty mask"

    @property
    def look(self) -> str:
        """What the overlay shows beside the regions, as an addition to a sentence; empty where nothing."""
        if self.kind == "review":
            return ", and where the model doubts the label"
        return ", and where the model is unsure" if self.model is not None else ""


_SHARED = ("image_id", "uri", "sha256", "width", "height", "rank", "scores", "regions")
"""The fields that an `OutgoingImage` and its line of the manifest share."""


@dataclass(frozen=True)
class OutgoingImage:
    """An image of a queue to export.

    Attributes:
        name: of its files, without an ending: plain ASCII, and unique to the image.
        rank: the best of its regions.
        position: of the image in the queue, from 0 on: the order in which images are labeled.
        mask: the proposal, uint8 [H, W]; 255 outside of the queued regions.
        map: float32 [H, W] of 0 to 1, larger where checking matters more; `title` names its quantity. None
            where no model has looked at the image.
        regions: the queue items, best rank first.
    """

    image_id: int
    uri: str
    sha256: str
    width: int
    height: int
    name: str
    rank: int
    position: int
    source: ImageFile
    scores: Mapping[str, float | None]
    mask: Mask
    map: npt.NDArray[np.float32] | None
    title: str
    regions: list[ManifestRegion]

    def entry(self, queue: OutgoingQueue, *, image: str, **files: str | None) -> ManifestImage:
        """The image's line of the manifest.

        Args:
            image, files: paths relative to the exported folder, as `ManifestImage` names them.
        """
        mine = {name: getattr(self, name) for name in _SHARED}
        named = {"queue": queue.name, "round": queue.round, "model": queue.model, "image": image}
        return ManifestImage.model_validate({**mine, **named, **files})
