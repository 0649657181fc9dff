"""Intervals of a proportion: k of n.

A frequency is not a probability: 6 of 10 and 600 of 1000 are both 60 %, but with very different evidence.
Laplace's rule of succession, (k + 1) / (n + 2), gives 7 / 12 = 58.3 % and 601 / 1002 = 59.98 %: it is the
mean of the posterior under a uniform prior, and is never 0 or 1 after finitely many trials.

These functions assume that the n trials are independent. Pixels are not, nor are frames of a sequence: for
them, count independent units (images, blocks) with `clustered_interval`, or resample blocks with
`pipeline.evaluation.bootstrap`.

Legend: b blocks.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.special import expit

from pipeline.evaluation.units import ratio_residuals

Array = npt.NDArray[np.float64]
Method = Literal["laplace", "jeffreys", "wilson"]

DEGREES = 0.7
"""The share of the degrees of freedom that counts: few residuals show too little of a long tail. With all of
them, shares near 0 or 1 over 10 units are covered 90 to 92 % of the time instead of 95."""
PRIOR = {"laplace": 1.0, "jeffreys": 0.5}
"""a of the Beta(a, a) prior: uniform, and Jeffreys' invariant one."""


def laplace(successes: npt.ArrayLike, trials: npt.ArrayLike) -> Array:
    """Laplace's rule of succession: (k + 1) / (n + 2), also for counts that are no whole numbers.

    >>> laplace([6, 600, 0], [10, 1000, 0]).round(4).tolist()
    [0.5833, 0.5998, 0.5]

    Raises:
        ValueError: a count is negative, or there are more successes than trials.
    """
    k, n = _counts(successes, trials)
    return (k + 1) / (n + 2)


def proportion_interval(
    successes: npt.ArrayLike,
    trials: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    method: Method = "jeffreys",
) -> Array:
    """Interval [2, ...] of a probability of which n independent trials gave k successes.

    `jeffreys` covers best on average, `laplace` matches the rule of succession, and `wilson` needs no prior.
    The first two are quantiles of Beta(k + a, n − k + a) with a = ½ and 1; their lower end is 0 without a
    success and their upper end 1 without a failure, else a true 0 or 1 would never be covered (Brown, Cai &
    DasGupta 2001, sections 3.1.1 and 4.1.1). Without any trial the interval is 0 to 1.

    Args:
        successes: k, [...]; need not be whole, as effective counts are not.
        trials: n, [...].

    >>> proportion_interval([6, 600], [10, 1000]).round(3).tolist()
    [[0.304, 0.569], [0.847, 0.63]]

    Raises:
        ValueError: a count is negative, there are more successes than trials, or `confidence` is not
            between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"Expected argument `confidence` to be between 0 and 1, but got {confidence}.")
    k, n = _counts(successes, trials)
    low, high = _wilson(k, n, confidence) if method == "wilson" else _credible(k, n, confidence, method)
    return np.stack([np.where(k > 0, low, 0.0), np.where(k < n, high, 1.0)])


def clustered_interval(
    successes: npt.ArrayLike, trials: npt.ArrayLike, *, confidence: float = 0.95
) -> tuple[Array, Array]:
    """A share over blocks whose trials depend on each other, and its interval.

    The interval is symmetric in the logit (Korn & Graubard 1999, section 3.3), with Student's t. The degrees
    of freedom are `DEGREES` of those of the scatter between blocks: of b − 1, or of fewer where few blocks
    make most of it, as they do where the share is near 0 or 1 (2·(Σe²)² / Σe⁴ − 1 for residuals e;
    Satterthwaite 1946). Where the
    blocks do not differ at all, as when every trial of a reliability bin is a success, each block counts as
    one trial with Jeffreys' interval; a bootstrap would give an interval of length 0.

    Args:
        successes: [b, ...].
        trials: [b, ...]; a block without trials is ignored.

    Returns:
        The share [...], NaN without trials, and its interval [2, ...], NaN with fewer than two blocks.

    Raises:
        ValueError: a count is negative, or there are more successes than trials.
    """
    k, n = _counts(successes, trials)
    total, count = n.sum(axis=0), (n > 0).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = k.sum(axis=0) / total
        # variance of the ratio Σk / Σn, by linearisation over blocks (Cochran 1977, equation 6.13)
        square = (k - share * n) ** 2
        reach = _reach(square, count, confidence) / total / (share * (1 - share))
        logit = np.log(share / (1 - share))
        interval = expit(np.stack([logit - reach, logit + reach]))
    known = count > 1
    trials_alike = np.where(known, np.minimum(count, total), 0.0)
    alike = proportion_interval(
        np.where(known, share, 0.0) * trials_alike, trials_alike, confidence=confidence
    )
    scattered = (square.sum(axis=0) > 1e-18 * total**2) & (share > 0) & (share < 1)
    return share, np.where(known, np.where(scattered, interval, alike), np.nan)


def paired_difference(
    new_successes: Array, new_trials: Array, successes: Array, trials: Array, *, confidence: float = 0.95
) -> tuple[Array, Array]:
    """The difference of two shares over the same blocks, and its interval, by linearisation over the blocks
    that have trials (Cochran 1977, section 6.5), with Student's t as in `clustered_interval`.

    Args:
        new_successes, new_trials, successes, trials: [b, ...].

    >>> right = np.array([[80.0], [84.0], [82.0]])
    >>> difference, interval = paired_difference(right, right * 0 + 100, right + 10, right * 0 + 100)
    >>> difference.round(3).tolist(), interval.round(3).tolist()
    ([-0.1], [[-0.1], [-0.1]])

    Returns:
        new − the other [...], NaN where one has no trials, and its interval [2, ...], NaN with fewer than two
        blocks.
    """
    count = (new_trials + trials > 0).sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = new_successes.sum(axis=0) / new_trials.sum(axis=0) - successes.sum(axis=0) / trials.sum(
            axis=0
        )
        residual = ratio_residuals(new_successes, new_trials) - ratio_residuals(successes, trials)
        reach = _reach(residual**2, count, confidence)
    reach = np.where(count > 1, np.where((residual**2).sum(axis=0) > 0, reach, 0.0), np.nan)
    return difference, np.stack([difference - reach, difference + reach])


def _reach(square: Array, count: Array, confidence: float) -> Array:
    """Half the length [...] of the interval of a sum over `count` [...] blocks, from the squared residuals
    [b, ...]."""
    total = square.sum(axis=0)
    scatter = np.minimum(2 * total**2 / (square**2).sum(axis=0) - 1, count - 1)
    degrees = np.maximum(DEGREES * scatter, 1)
    return stats.t.ppf((1 + confidence) / 2, degrees) * np.sqrt(count / (count - 1) * total)


def _credible(k: Array, n: Array, confidence: float, method: str) -> tuple[Array, Array]:
    prior = PRIOR[method]
    tails = (1 - confidence) / 2, (1 + confidence) / 2
    low, high = (stats.beta.ppf(tail, k + prior, n - k + prior) for tail in tails)
    return np.asarray(low), np.asarray(high)


def _wilson(k: Array, n: Array, confidence: float) -> tuple[Array, Array]:
    """Wilson 1927: the probabilities that a test on the normal approximation would not reject."""
    z = stats.norm.ppf((1 + confidence) / 2)
    safe = np.maximum(n, np.finfo(float).tiny)
    centre = (k + z**2 / 2) / (safe + z**2)
    reach = z / (safe + z**2) * np.sqrt(k * (n - k) / safe + z**2 / 4)
    return centre - reach, centre + reach


def _counts(successes: npt.ArrayLike, trials: npt.ArrayLike) -> tuple[Array, Array]:
    k, n = np.broadcast_arrays(np.asarray(successes, dtype=float), np.asarray(trials, dtype=float))
    if (k < 0).any() or (k > n * (1 + 1e-9)).any():
        raise ValueError("Expected `successes` to be between 0 and `trials`.")
    return np.minimum(k, n), n
