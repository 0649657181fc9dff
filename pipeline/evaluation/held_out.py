"""Reading held-out images together with their masks.

Legend: B batch, K image channels, h w the network's image, H W the image and its mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.config import DataConfig
from pipeline.data.images import ImageRef
from pipeline.data.loading import Unreadable, load_batches
from pipeline.data.masks import Mask, MaskCodec, read_mask
from pipeline.errors import DataError
from pipeline.model.checkpoints import ModelCard


@dataclass(frozen=True)
class HeldOut:
    """An image of a locked split, its mask, and its place in a sequence."""

    ref: ImageRef
    mask: Path
    group: str
    position: int


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
    images: Sequence[HeldOut], *, data: DataConfig, card: ModelCard, batch_size: int, workers: int
) -> Iterator[LabeledBatch | Unreadable]:
    """Every image with its mask, batched by size. A file that cannot be used comes out as `Unreadable`,
    and the rest goes on."""
    codec = MaskCodec.from_config(data)
    by_id = {item.ref.id: item for item in images}
    for batch in load_batches(
        [item.ref for item in images],
        channels=data.channels,
        max_pixels=data.max_pixels,
        input_scale=card.input_scale,
        mean=card.mean,
        std=card.std,
        batch_size=batch_size,
        workers=workers,
    ):
        if isinstance(batch, Unreadable):
            yield batch
            continue
        kept: list[int] = []
        masks: list[Mask] = []
        for row, image_id in enumerate(batch.ids):
            item = by_id[image_id]
            try:
                masks.append(read_mask(item.mask, codec, size=(item.ref.width, item.ref.height)))
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
