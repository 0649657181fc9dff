"""What the pixels of the training images look like, and how far another image lies outside of that.

Legend: B batch, n images, K channels, H W image size, S = 4 statistics.

A network predicts a class for any input, and a ReLU network is the more confident the farther the input lies
from its training data (Hein et al. 2019). No calibrator corrects that, but the statistics of the pixels show
it. They also show a file of the wrong scale, depth or exposure.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ConfigDict
from torch import Tensor

from pipeline.config import Section
from pipeline.data.bands import bands
from pipeline.data.large_images import Images, window

STATISTICS = ("mean", "std", "min", "max")
LIGHT = ("brightness", "contrast")
"""An image's `mean` and `std`, each averaged over the channels."""
ALLOWANCE = 0.1
"""Share of the training pixels' span that an image may lie outside, however alike the training images are."""

Array = npt.NDArray[np.float32]


class InputRange(Section):
    """The lowest and highest of each statistic over the training images: [S, K], of normalised pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int
    lowest: list[list[float]]
    highest: list[list[float]]

    @classmethod
    def of(cls, statistics_nSK: Array) -> InputRange:
        """The range of some images.

        Raises:
            ValueError: there are none.
        """
        if len(statistics_nSK) == 0:
            raise ValueError("Expected the statistics of at least one image, but got none.")
        return cls(
            images=len(statistics_nSK),
            lowest=statistics_nSK.min(axis=0).astype(float).round(6).tolist(),
            highest=statistics_nSK.max(axis=0).astype(float).round(6).tolist(),
        )

    def distance(self, statistics_nSK: Array) -> npt.NDArray[np.float64]:
        """How far each statistic lies outside: [n, S, K], 0 inside; above 1 is far outside.

        The unit is how far the training images lie from each other, but no less than a tenth of the span of
        their pixels.
        """
        lowest, highest = np.array(self.lowest), np.array(self.highest)
        span_K = highest[STATISTICS.index("max")] - lowest[STATISTICS.index("min")]
        unit = np.maximum(highest - lowest, np.maximum(ALLOWANCE * span_K, 1e-6))
        outside = np.maximum(statistics_nSK - highest, lowest - statistics_nSK)
        return np.maximum(outside, 0) / unit

    def outliers(self, statistics_nSK: Array) -> list[dict[str, Any] | None]:
        """For each image that lies far outside, the statistic that lies farthest: `statistic`, `channel`
        of `channels`, `value`, `low`, `high` (of training) and `times`, its distance; None for the others."""
        distances = self.distance(statistics_nSK)
        found: list[dict[str, Any] | None] = []
        for image, distance in zip(statistics_nSK, distances, strict=True):
            row, channel = (int(place) for place in np.unravel_index(distance.argmax(), distance.shape))
            if distance[row, channel] <= 1:
                found.append(None)
                continue
            found.append(
                {
                    "statistic": STATISTICS[row],
                    "channel": channel,
                    "channels": distance.shape[1],
                    "value": round(float(image[row, channel]), 4),
                    "low": self.lowest[row][channel],
                    "high": self.highest[row][channel],
                    "times": round(float(distance[row, channel]), 2),
                }
            )
        return found


def pixel_statistics(image: Images) -> Array:
    """Mean, standard deviation, minimum and maximum of each channel: float32 [B, S, K].

    >>> pixel_statistics(torch.tensor([[[[0.0, 2.0]]]]))[0, :, 0].tolist()
    [1.0, 1.0, 0.0, 2.0]

    Args:
        image: normalised, float [B, K, H, W], or large.
    """
    if not isinstance(image, Tensor):
        return _by_bands(image)
    std, mean = torch.std_mean(image.float(), dim=(-2, -1), correction=0)
    low, high = image.amin(dim=(-2, -1)), image.amax(dim=(-2, -1))
    return torch.stack([mean, std, low.float(), high.float()], dim=1).cpu().numpy()


def light(statistics_nSK: Array) -> dict[str, npt.NDArray[np.float64]]:
    """Brightness and contrast [n] of images, in normalised pixels: by the names of `LIGHT`.

    >>> light(np.array([[[0.5, 1.5], [1, 2], [0, 0], [3, 3]]], dtype=np.float32))
    {'brightness': array([1.]), 'contrast': array([1.5])}
    """
    rows = [STATISTICS.index("mean"), STATISTICS.index("std")]
    return dict(zip(LIGHT, statistics_nSK[:, rows].mean(axis=2, dtype=np.float64).T, strict=True))


def _by_bands(image: Images) -> Array:
    """As `pixel_statistics`, from sums over bands of rows."""
    batch, channels, height, width = image.shape
    total, squares = (torch.zeros(batch, channels, dtype=torch.float64) for _ in range(2))
    low, high = (torch.full((batch, channels), sign * torch.inf) for sign in (1, -1))
    for rows in bands(height, batch * channels * width):
        band = window(image, rows)
        low, high = torch.minimum(low, band.amin(dim=(-2, -1))), torch.maximum(high, band.amax(dim=(-2, -1)))
        band = band.double()
        total += band.sum(dim=(-2, -1))
        squares += band.square_().sum(dim=(-2, -1))
    mean = total / (height * width)
    std = (squares / (height * width) - mean.square()).clamp(min=0).sqrt()
    return torch.stack([mean.float(), std.float(), low, high], dim=1).numpy()
