"""The audit slice: the part of every queue that is a uniform sample of the pool.

It is drawn before the strategy sees the candidates and knows no cap and no gap, so that each candidate is
in it with the same, known probability. Only so can it say something unbiased about the pool.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def draw_audit(
    available: int, size: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], float | None]:
    """A simple random sample without replacement.

    Args:
        available: candidates N.
        size: candidates to draw, at most N.

    Returns:
        Indices [size] in random order, and the inclusion probability size / N (None without a draw).

    >>> draw_audit(20, 5, np.random.default_rng(0))[1]
    0.25
    """
    if size == 0:
        return np.empty(0, dtype=np.int64), None
    return rng.choice(available, size=size, replace=False), size / available
