"""Exact quantiles of more numbers than memory holds, from two readings of them.

The first reading counts how often each upper half of a float32 occurs, which gives the bin, one of 65 536, of
every quantile; the second reading counts the lower halves inside those few bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_HALF = np.uint32(16)
_LOW = np.uint32(0xFFFF)
_SIGN = np.uint32(0x80000000)


class QuantileBins:
    """The first reading of float32 values, NaN left out: counts by bin.

    >>> values = np.array([3, 1, 2, 10], dtype=np.float32)
    >>> bins = QuantileBins((0.5,))
    >>> bins.count(values)
    >>> quantiles = Quantiles(bins)
    >>> quantiles.count(values)
    >>> quantiles.values()
    [2.5]
    """

    def __init__(self, shares: Sequence[float]) -> None:
        self.shares = shares
        self.counts = np.zeros(1 << 16, dtype=np.int64)

    @property
    def total(self) -> int:
        """Values counted."""
        return int(self.counts.sum())

    def count(self, values: npt.NDArray[np.float32]) -> None:
        self.counts += np.bincount(_ordered(values) >> _HALF, minlength=1 << 16)


class Quantiles:
    """The second reading, of the same values in any order: the quantiles, interpolated as `numpy.quantile`
    does. The bins stay as they are, so that the values may be read again."""

    def __init__(self, bins: QuantileBins) -> None:
        self._shares, self._upper, self.total = bins.shares, bins.counts, bins.total
        self._lower = {
            self._bin_of(position)[0]: np.zeros(1 << 16, dtype=np.int64)
            for share in bins.shares
            for position in self._positions(share)
            if self.total
        }

    def count(self, values: npt.NDArray[np.float32]) -> None:
        ordered = _ordered(values)
        bins = ordered >> _HALF
        for number, counts in self._lower.items():
            counts += np.bincount(ordered[bins == number] & _LOW, minlength=1 << 16)

    def values(self) -> list[float]:
        """A quantile for each share; NaN where nothing was counted."""
        if self.total == 0:
            return [math.nan] * len(self._shares)
        quantiles: list[float] = []
        for share in self._shares:
            below, above = (self._value(position) for position in self._positions(share))
            quantiles.append(below + (above - below) * math.modf(share * (self.total - 1))[0])
        return quantiles

    def _positions(self, share: float) -> tuple[int, int]:
        """The positions, in rising order, of the two values that a quantile lies between."""
        below = int(share * (self.total - 1))
        return below, min(below + 1, self.total - 1)

    def _bin_of(self, position: int) -> tuple[int, int]:
        """The bin of a position, and the position inside it."""
        ends = np.cumsum(self._upper)
        number = int(np.searchsorted(ends, position, side="right"))
        return number, position - int(ends[number] - self._upper[number])

    def _value(self, position: int) -> float:
        number, inside = self._bin_of(position)
        low = int(np.searchsorted(np.cumsum(self._lower[number]), inside, side="right"))
        bits = np.uint32(number << 16 | low)
        return float((bits ^ _SIGN if bits & _SIGN else ~bits).view(np.float32))


def _ordered(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint32]:
    """uint32 in the order of the floats."""
    bits = values[~np.isnan(values)].view(np.uint32)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)
