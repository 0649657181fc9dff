"""Bands of rows: what would take much memory for a whole photograph is computed a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

BAND_VALUES = 4_000_000
"""Values of a band of rows, of what is computed band by band."""


def bands(height: int, values: int, *, multiple: int = 1) -> Iterator[slice]:
    """Bands of rows that cover `height`, each of at most `BAND_VALUES` where a row has so many `values`.

    >>> [(band.start, band.stop) for band in bands(5, 2_000_000)]
    [(0, 2), (2, 4), (4, 5)]

    Args:
        multiple: every band but the last has a multiple of so many rows, and at least so many.
    """
    step = max(1, BAND_VALUES // max(1, values) // multiple) * multiple
    for start in range(0, height, step):
        yield slice(start, min(start + step, height))
