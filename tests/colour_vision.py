"""Colours as people with a colour vision deficiency see them, and how far apart they look."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from skimage.color import rgb2lab

DEFICIENCIES = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
"""How linear RGB looks at severity 1 (Machado, Oliveira and Fernandes 2009)."""


def lab(colors: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """CIE L*a*b* of sRGB colours [N, 3] in 0 to 1, without the product's code."""
    return rgb2lab(colors[None])[0]


def distances(colors: npt.NDArray[np.integer], *, seen_with: str | None = None) -> npt.NDArray[np.float64]:
    """The distance in CIE L*a*b* (1976) of each two of N colours, [N, N], as a deficiency shows them; None
    for full colour vision.

    Args:
        colors: sRGB [N, 3], 0 to 255.
    """
    seen = colors / 255
    if seen_with is not None:
        linear = np.where(seen <= 0.04045, seen / 12.92, ((seen + 0.055) / 1.055) ** 2.4)
        linear = (linear @ np.array(DEFICIENCIES[seen_with]).T).clip(0, 1)
        seen = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    points = lab(seen)
    return np.linalg.norm(points[:, None] - points[None], axis=-1)
