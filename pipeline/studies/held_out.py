"""Reading held-out images together with their masks.

Legend: B batch, K image channels, h w the network's image, H W the image and its mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config import IGNORE, DataConfig
from pipeline.data.images import ImageRef
from pipeline.data.labels import compose_labels
from pipeline.data.loading import Unreadable
from pipeline.data.masks import Mask, MaskCodec, read_mask
from pipeline.errors import DataError
from pipeline.regions.outlines import paint_regions
from pipeline.uncertainty.served_model import ServedModel


@dataclass(frozen=True)
class HeldOut:
    """An image of a locked split, its mask, and its place in a sequence."""

    ref: ImageRef
    mask: Path
    group: str
    position: int

    def label(self, codec: MaskCodec) -> Mask:
        """uint8 [H, W], class index or 255.

        Raises:
            DataError: the mask cannot be used.
        """
        return read_mask(self.mask, codec, size=(self.ref.width, self.ref.height))


@dataclass(frozen=True)
class AuditedRegion:
    """A region of the pool that was drawn at random, and its stored labels.

    Attributes:
        box: x, y, w, h in image pixels.
        outline: which pixels of the box; None for all.
        weight: how many regions of the pool it stands for.
        masks: index PNGs of the image's size, in the order in which they are painted.
    """

    box: tuple[int, int, int, int]
    outline: str | None
    weight: float
    masks: tuple[Path, ...]


@dataclass(frozen=True)
class AuditedImage(HeldOut):
    """An image of the pool of which only audited regions may be looked at."""

    regions: tuple[AuditedRegion, ...]

    def label(self, codec: MaskCodec) -> Mask:
        size = (self.ref.width, self.ref.height)
        label = np.full(size[::-1], IGNORE, dtype=np.uint8)
        for region in self.regions:
            here = self._pixels(region)
            label[here] = compose_labels(region.masks, size)[here]
        return label

    def weights(self) -> npt.NDArray[np.float32]:
        """[H, W]: how much of the pool each pixel stands for; 0 outside of the regions."""
        weights = np.zeros((self.ref.height, self.ref.width), dtype=np.float32)
        for region in self.regions:
            weights[self._pixels(region)] = region.weight
        return weights

    def _pixels(self, region: AuditedRegion) -> npt.NDArray[np.bool_]:
        canvas = np.zeros((self.ref.height, self.ref.width), dtype=bool)
        paint_regions(canvas, np.array([region.box]), [region.outline])
        return canvas


@dataclass(frozen=True)
class LabeledBatch:
    """Images of one size as the network sees them, and their masks at the images' own size.

    Attributes:
        ids: of the images.
        image: float32 [B, K, h, w], normalised.
        label: uint8 [B, H, W], class index or 255.
    """

    ids: tuple[int, ...]
    image: Tensor
    label: Tensor


def read_held_out(
    images: Sequence[HeldOut], *, model: ServedModel, data: DataConfig
) -> Iterator[LabeledBatch | Unreadable]:
    """Every image with its mask, batched by size. A file that cannot be used comes out as `Unreadable`,
    and the rest goes on."""
    codec = MaskCodec.from_config(data)
    by_id = {item.ref.id: item for item in images}
    for batch in model.batches([item.ref for item in images]):
        if isinstance(batch, Unreadable):
            yield batch
            continue
        kept: list[int] = []
        masks: list[Mask] = []
        for row, image_id in enumerate(batch.ids):
            item = by_id[image_id]
            try:
                masks.append(item.label(codec))
            except DataError as error:
                yield Unreadable(id=image_id, path=item.mask, reason=str(error))
            else:
                kept.append(row)
        if kept:
            yield LabeledBatch(
                ids=tuple(batch.ids[row] for row in kept),
                image=batch.image_BKHW[kept],
                label=torch.from_numpy(np.stack(masks)),
            )
