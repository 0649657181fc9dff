"""Whether images of more than 8 bits fill the range that the network expects.

A camera of 12 bits writes files of 16, whose brightest value is 4 095 of 65 535: to a network that was
pretrained on ordinary pictures they are nearly black. Floats of a TIFF may mean anything.

Legend: H W image size, K channels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.config import ProjectConfig
from pipeline.data.images import ImageArray, unit_float
from pipeline.format import agree, counted

LEAST_SPREAD, MOST_SPREAD = 0.25, 4.0
"""Standard deviations of normalised pixels beyond which something is wrong; about 1 is usual."""


class PixelMoments(NamedTuple):
    """Of one image, whose pixels are in 0 to 1: mean and mean square of each channel [K], and the largest."""

    mean: npt.NDArray[np.float64]
    square: npt.NDArray[np.float64]
    brightest: float


def pixel_moments(pixels: ImageArray) -> PixelMoments | None:
    """The moments of an image [H, W, K], row by row in little memory; None for one of 8 bits."""
    if pixels.dtype == np.uint8:
        return None
    mean, square = np.zeros(pixels.shape[2]), np.zeros(pixels.shape[2])
    for row in pixels:
        unit = unit_float(row).astype(np.float64)
        mean += unit.sum(axis=0)
        square += (unit**2).sum(axis=0)
    count = pixels.shape[0] * pixels.shape[1]
    return PixelMoments(mean / count, square / count, float(unit_float(pixels.max(keepdims=True)).max()))


class PixelRange:
    """The moments of all images of other than 8 bits, as the network's channels."""

    def __init__(self, config: ProjectConfig) -> None:
        self._config = config
        self._images, self._brightest = 0, 0.0
        self._mean = np.zeros(config.data.channels)
        self._square = np.zeros(config.data.channels)

    def add(self, moments: PixelMoments | None) -> None:
        """Count an image."""
        if moments is not None:
            channels = len(self._mean)
            self._images += 1
            self._mean += _with_channels(moments.mean, channels)
            self._square += _with_channels(moments.square, channels)
            self._brightest = max(self._brightest, moments.brightest)

    def warnings(self) -> list[str]:
        """What the network would not see as it should; nothing where `model.mean` and `model.std` are set."""
        model, number = self._config.model, self._images
        if not number or (model.mean is not None and model.std is not None):
            return []
        from pipeline.model.build import normalisation  # imports torch, which takes a while

        expected_mean, expected_std = map(np.array, normalisation(model, len(self._mean)))
        mean = self._mean / number
        std = np.sqrt(np.maximum(0, self._square / number - mean**2))
        spread = float((std / expected_std).mean())
        if LEAST_SPREAD <= spread <= MOST_SPREAD:
            return []
        seen = "nearly without contrast" if spread < LEAST_SPREAD else "far beyond its range"
        return [
            f"{counted(number, 'image')} of more than 8 bits {agree(number, 'has', 'have')} pixels of "
            f"{mean.mean():.3g} ± {std.mean():.2g} and at most {self._brightest:.3g}, where 1 is the largest "
            f"of 16 bits; the network expects {expected_mean.mean():.3g} ± {expected_std.mean():.2g} and "
            f"would see them {seen}. Write `mean: [{_listed(mean)}]` and `std: [{_listed(std)}]` into "
            "`model`, or stretch the files to the whole range."
        ]


def _with_channels(values: npt.NDArray[np.float64], channels: int) -> npt.NDArray[np.float64]:
    """As the pixels are read: grey repeated, a further channel dropped."""
    return np.resize(values, channels) if len(values) == 1 else values[:channels]


def _listed(values: npt.NDArray[np.float64]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
