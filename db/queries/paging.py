"""Many rows or many values in parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

BATCH = 500
"""Values in one `IN (…)`; SQLite's oldest limit is 999."""
PAGE = 10_000
"""Rows that are read, or written, at once."""

Value = TypeVar("Value")


def in_parts(values: Sequence[Value]) -> Iterator[Sequence[Value]]:
    """The values in parts of at most `BATCH`, for one `IN (…)` each."""
    for start in range(0, len(values), BATCH):
        yield values[start : start + BATCH]
