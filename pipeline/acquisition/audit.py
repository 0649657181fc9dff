"""The audit slice: the part of every queue that is a uniform sample of the pool.

It is drawn without a look at the strategy and knows no cap and no gap, so that each candidate is in it with
the same, known probability. Only so can it say something unbiased about the pool. Every candidate draws a
number, and those with the smallest ones are in: a simple random sample without replacement, found in one
reading of a pool of unknown size.
"""

from __future__ import annotations


def inclusion_probability(size: int, available: int) -> float | None:
    """Of each candidate, in a sample of `size` from `available`; None without a sample.

    >>> inclusion_probability(5, 20)
    0.25
    """
    return size / available if size else None
