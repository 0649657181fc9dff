"""Fitting one temperature by negative log-likelihood on held-out pixels.

Legend: T stochastic samples (1 for a deterministic network), N pixels, C classes.

The temperature stands inside the mean over samples, p̄ = mean_t softmax(z_t / τ) (Laves et al. 2019), as
it does where the model is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

LOWEST, HIGHEST = 0.05, 20.0
"""Bounds of the search: a fit that ends here says that the network, not its temperature, is at fault."""
TOLERANCE = 1e-3
SCAN_PIXELS = 4000
VALUES_AT_ONCE = 8_000_000


@dataclass(frozen=True)
class TemperatureFit:
    """A fitted temperature.

    Attributes:
        temperature: τ, fitted on all pixels.
        at_bound: the search ended at one of its bounds.
        nll_before: mean NLL of all pixels at τ = 1, in nats.
        nll_after: the same with each half of the images at the temperature of the other half, so that no
            pixel judges a temperature that it has chosen; of the fit itself where there is one image.
        cross_validated: whether `nll_after` was found that way.
    """

    temperature: float
    at_bound: bool
    nll_before: float
    nll_after: float
    cross_validated: bool


def fit_temperature(logits_TNC: Tensor, labels_N: Tensor, halves_N: Tensor) -> TemperatureFit:
    """Minimise the NLL over ln τ in [ln 0.05, ln 20] (Guo et al. 2017, section 4.2).

    Args:
        logits_TNC: float32, uncalibrated.
        labels_N: class index of each pixel, int64.
        halves_N: 0 or 1, by image: the two halves that judge each other's temperature.

    Raises:
        ValueError: there is no pixel, or the shapes do not fit together.
    """
    if logits_TNC.ndim != 3 or not len(labels_N) == len(halves_N) == logits_TNC.shape[1]:
        raise ValueError(
            f"Expected logits [T, N, C] with N labels and N halves, but got {list(logits_TNC.shape)}, "
            f"{len(labels_N)} and {len(halves_N)}."
        )
    if len(labels_N) == 0:
        raise ValueError("Expected at least one pixel, but got none.")
    temperature = _search(logits_TNC, labels_N)
    parts = [halves_N == half for half in (0, 1)]
    cross_validated = all(bool(part.any()) for part in parts)
    if cross_validated:
        total = 0.0
        for judged, fitted in (parts, parts[::-1]):
            other = _search(logits_TNC[:, fitted], labels_N[fitted])
            total += mean_nll(logits_TNC[:, judged], labels_N[judged], other) * int(judged.sum())
        nll_after = total / len(labels_N)
    else:
        nll_after = mean_nll(logits_TNC, labels_N, temperature)
    margin = 1 + 10 * TOLERANCE
    return TemperatureFit(
        temperature=temperature,
        at_bound=temperature < LOWEST * margin or temperature > HIGHEST / margin,
        nll_before=mean_nll(logits_TNC, labels_N, 1.0),
        nll_after=nll_after,
        cross_validated=cross_validated,
    )


def mean_nll(logits_TNC: Tensor, labels_N: Tensor, temperature: float) -> float:
    """Mean of −ln mean_t softmax(z_t / τ)[label], in nats.

    >>> import torch
    >>> round(mean_nll(torch.zeros(1, 1, 4), torch.tensor([2]), 1.0), 4)  # ln 4
    1.3863
    """
    samples, pixels, classes = logits_TNC.shape
    step = max(1, VALUES_AT_ONCE // (samples * classes))
    total = 0.0
    for start in range(0, pixels, step):
        z_TnC = logits_TNC[:, start : start + step] / temperature
        label_Tn1 = labels_N[start : start + step].view(1, -1, 1).expand(samples, -1, 1)
        log_p_Tn = z_TnC.gather(2, label_Tn1)[..., 0] - z_TnC.logsumexp(dim=2)
        log_p_n = log_p_Tn.logsumexp(dim=0) - math.log(samples)
        total -= float(log_p_n.double().sum())
    return total / pixels


def _search(logits_TNC: Tensor, labels_N: Tensor) -> float:
    """A scan of ln τ on some pixels brackets the minimum; golden section on all of them finds it.

    The NLL of a deterministic network is convex in 1/τ, so its minimum is the only one; that of a mean
    over samples need not be, hence the scan.
    """
    low, high = math.log(LOWEST), math.log(HIGHEST)
    steps = 12
    grid = [low + (high - low) * index / steps for index in range(steps + 1)]
    stride = max(1, len(labels_N) // SCAN_PIXELS)
    scanned, scanned_labels = logits_TNC[:, ::stride], labels_N[::stride]
    nll = [mean_nll(scanned, scanned_labels, math.exp(point)) for point in grid]
    best = min(range(len(grid)), key=nll.__getitem__)

    def objective(point: float) -> float:
        return mean_nll(logits_TNC, labels_N, math.exp(point))

    found = _golden_section(objective, grid[max(0, best - 1)], grid[min(steps, best + 1)])
    return math.exp(found)


def _golden_section(objective: Callable[[float], float], low: float, high: float) -> float:
    """The minimum of a function with one minimum between `low` and `high`, within the tolerance."""
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = objective(left), objective(right)
    while high - low > TOLERANCE:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = objective(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = objective(right)
    return (low + high) / 2
