"""Exact quantiles of numbers that are too many to be kept: they are counted twice instead.

The first reading counts how often each upper half of a float32 occurs, which says in which of these 65 536
bins a quantile lies; the second counts the lower halves inside those few bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_HALF = np.uint32(16)
_LOW = np.uint32(0xFFFF)
_SIGN = np.uint32(0x80000000)


class Quantiles:
    """Quantiles of float32 values, NaN left out, interpolated as `numpy.quantile` does.

    >>> found = Quantiles((0.5,))
    >>> found.count(np.array([3, 1, 2, 10], dtype=np.float32))
    >>> found.refine(np.array([3, 1, 2, 10], dtype=np.float32))
    >>> found.values()
    [2.5]
    """

    def __init__(self, shares: Sequence[float]) -> None:
        self._shares = shares
        self._upper = np.zeros(1 << 16, dtype=np.int64)
        self._lower: dict[int, npt.NDArray[np.int64]] = {}

    @property
    def total(self) -> int:
        """Values counted."""
        return int(self._upper.sum())

    def count(self, values: npt.NDArray[np.float32]) -> None:
        """First reading."""
        self._upper += np.bincount(_ordered(values) >> _HALF, minlength=1 << 16)

    def refine(self, values: npt.NDArray[np.float32]) -> None:
        """Second reading, of the same values in any order."""
        if self.total == 0:
            return
        if not self._lower:
            self._lower = {
                self._bin_of(place)[0]: np.zeros(1 << 16, dtype=np.int64)
                for share in self._shares
                for place in self._places(share)
            }
        ordered = _ordered(values)
        bins = ordered >> _HALF
        for number, counts in self._lower.items():
            counts += np.bincount(ordered[bins == number] & _LOW, minlength=1 << 16)

    def values(self) -> list[float]:
        """A quantile for each share; NaN where nothing was counted."""
        if self.total == 0:
            return [math.nan] * len(self._shares)
        found: list[float] = []
        for share in self._shares:
            below, above = (self._value(place) for place in self._places(share))
            found.append(below + (above - below) * math.modf(share * (self.total - 1))[0])
        return found

    def _places(self, share: float) -> tuple[int, int]:
        """The two values between which a quantile lies, by their place in rising order."""
        below = int(share * (self.total - 1))
        return below, min(below + 1, self.total - 1)

    def _bin_of(self, place: int) -> tuple[int, int]:
        """The bin of a place, and the place inside it."""
        ends = np.cumsum(self._upper)
        number = int(np.searchsorted(ends, place, side="right"))
        return number, place - int(ends[number] - self._upper[number])

    def _value(self, place: int) -> float:
        number, inside = self._bin_of(place)
        low = int(np.searchsorted(np.cumsum(self._lower[number]), inside, side="right"))
        bits = np.uint32(number << 16 | low)
        return float((bits ^ _SIGN if bits & _SIGN else ~bits).view(np.float32))


def _ordered(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """Integers that sort as the numbers do."""
    bits = values[~np.isnan(values)].view(np.uint32)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)
