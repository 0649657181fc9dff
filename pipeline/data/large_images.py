"""Images that stay as they were decoded, and become the network's float numbers window by window: a quarter
of the memory.

Legend: B batch, K image channels, H W image size, h w size of a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.data.images import ImageArray, unit_float

LARGE = 4_000_000
"""Pixels of the network's image from which on an image is kept as it was decoded."""


@dataclass(frozen=True)
class LargeImages:
    """Images of one size, to be normalised. A window is taken as that of a Tensor [B, K, H, W].

    Attributes:
        pixels: [B, H, W, K] of 8 or 16 bits, or float32.
        mean, std: float32 [K], of pixels in 0 to 1.
    """

    pixels: ImageArray
    mean: npt.NDArray[np.float32]
    std: npt.NDArray[np.float32]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """B, K, H, W."""
        batch, height, width, channels = self.pixels.shape
        return batch, channels, height, width

    def window(self, rows: slice = slice(None), columns: slice = slice(None)) -> Tensor:
        """Normalised pixels, float32 [B, K, h, w], channels last in memory."""
        return torch.from_numpy(normalised(self.pixels[:, rows, columns], self.mean, self.std)).permute(
            0, 3, 1, 2
        )

    def split(self) -> Iterator[LargeImages]:
        """One image after the other."""
        for image in np.split(self.pixels, len(self.pixels)):
            yield LargeImages(image, self.mean, self.std)


Images = Tensor | LargeImages
"""Normalised images [B, K, H, W], or large ones that are still to be normalised."""


def window(images: Images, rows: slice = slice(None), columns: slice = slice(None)) -> Tensor:
    """Normalised pixels of images, float32 [B, K, h, w]."""
    return images[..., rows, columns] if isinstance(images, Tensor) else images.window(rows, columns)


def chosen(images: Images, rows: Sequence[int]) -> Images:
    """Some of the images, in this order."""
    index = list(rows)
    if index == list(range(images.shape[0])):
        return images
    if isinstance(images, Tensor):
        return images[index]
    return LargeImages(images.pixels[index], images.mean, images.std)


def normalised(
    pixels: ImageArray, mean: npt.NDArray[np.float32], std: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Pixels [..., K] in 0 to 1, less the mean, over the standard deviation."""
    unit = unit_float(pixels)
    unit -= mean
    unit /= std
    return unit
