"""Heat maps as they were stored."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image


class Heatmap(NamedTuple):
    """Values float32 [h, w], exact to (high − low) / 510."""

    values: np.ndarray
    measure: str
    low: float
    high: float


def read_heatmap(path: Path) -> Heatmap:
    """The map that `write_heatmap` wrote."""
    with Image.open(path) as file:
        text = {str(key): str(value) for key, value in file.info.items()}
        pixels = np.asarray(file, dtype=np.float32)
    low, high = float(text["low"]), float(text["high"])
    return Heatmap(low + pixels / np.float32(255) * np.float32(high - low), text["measure"], low, high)
