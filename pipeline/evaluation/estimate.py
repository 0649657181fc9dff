"""A measured value with its interval, as text, and as JSON, where null stands for NaN."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.format import interval

DIGITS = 6
"""Decimals of the numbers in a JSON document."""


@dataclass(frozen=True)
class Estimate:
    """A value and the two ends of its interval; each is NaN where it is not defined."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def defined(self) -> bool:
        return not math.isnan(self.value)

    @property
    def lowest(self) -> float:
        """The lower end of the interval; the value itself where there is no interval."""
        return self.value if math.isnan(self.low) else self.low

    @property
    def highest(self) -> float:
        """The upper end of the interval; the value itself where there is no interval."""
        return self.value if math.isnan(self.high) else self.high

    def text(self, *, sign: str = "", digits: int = 3) -> str:
        """The value with its interval.

        >>> Estimate(0.5, 0.41, 0.592).text(), Estimate(0.5).text(digits=2)
        ('0.500 [0.410, 0.592]', '0.50 (no interval)')
        """
        return interval(self.value, self.low, self.high, digits, sign)

    def document(self, *, digits: int | None = DIGITS) -> dict[str, float | None]:
        """The estimate as JSON, rounded unless `digits` is None.

        >>> Estimate(0.25, float("nan"), 0.5).document()
        {'value': 0.25, 'low': None, 'high': 0.5}
        """
        return {name: to_json(getattr(self, name), digits) for name in ("value", "low", "high")}

    @classmethod
    def from_document(cls, document: Mapping[str, Any] | None) -> Estimate:
        """The estimate from JSON; a part that is null or missing is NaN.

        >>> Estimate.from_document({"value": 0.25, "low": None})
        Estimate(value=0.25, low=nan, high=nan)
        """
        found = document or {}
        return cls(*(from_json(found.get(name)) for name in ("value", "low", "high")))


def to_json(value: float, digits: int | None = DIGITS) -> float | None:
    """A number for a JSON document; null for NaN."""
    if math.isnan(value):
        return None
    return float(value) if digits is None else round(float(value), digits)


def from_json(value: float | None) -> float:
    """A number of a JSON document; NaN for null."""
    return math.nan if value is None else float(value)
