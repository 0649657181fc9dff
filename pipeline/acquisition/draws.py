"""Random keys of regions.

Legend: N candidates. A key depends only on the seed, the round, the purpose, the image and the region: not on
the other candidates, nor on the order or the blocks in which they are read. So a pool that does not fit into
memory gives the same draw as one that does, and a region keeps its key when the pool grows.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Purpose = Literal[
    "audit", "overall", "within_class", "overall_noise", "within_class_noise", "turns", "coverage"
]
_STEP = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


class Draws:
    """The random keys of one queue."""

    def __init__(self, *, seed: int, round_number: int) -> None:
        self._keys = {
            purpose: np.random.SeedSequence([seed % 2**63, round_number, number]).generate_state(1, np.uint64)
            for number, purpose in enumerate(get_args(Purpose))
        }

    def integers(
        self, purpose: Purpose, image_id: npt.NDArray[np.int64], region_index: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.uint64]:
        """Uniform uint64 [N], a key for each region of `image_id` [N] and `region_index` [N]."""
        of_image = _mixed(self._keys[purpose] + image_id.astype(np.uint64) * _STEP)
        return _mixed(of_image + region_index.astype(np.uint64) * _STEP)

    def uniforms(
        self, purpose: Purpose, image_id: npt.NDArray[np.int64], region_index: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.float64]:
        """The same keys as numbers between 0 and 1, both exclusive."""
        integers = self.integers(purpose, image_id, region_index) >> np.uint64(11)
        return (integers.astype(np.float64) + 0.5) * 2.0**-53


def _mixed(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's step and finalizer (Steele, Lea and Flood 2014, fig. 17), modulo 2^64."""
    numbers = numbers + _STEP
    numbers = (numbers ^ (numbers >> _SHIFTS[0])) * _FACTORS[0]
    numbers = (numbers ^ (numbers >> _SHIFTS[1])) * _FACTORS[1]
    return numbers ^ (numbers >> _SHIFTS[2])
