"""Fitting calibrators by the negative log-likelihood of held-out pixels.

Legend: S terms of a pixel's probability, C classes, N pixels.

A served probability is a weighted mean of calibrated softmaxes, p̄ = Σ_s w_s softmax(calibrator(z_s)): over
samples (Laves et al. 2019), and over the cells of the logits that the pixel is interpolated from. The
calibrator acts inside the mean, as in prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

LOWEST, HIGHEST = 0.05, 20.0
"""Bounds of every temperature; a fit that ends at one of them is a sign of a fault in the network."""
TOLERANCE = 1e-3
"""Tolerance of ln τ."""
SCAN_VALUES = 200_000
VALUES_AT_ONCE = 2_000_000
"""Logits that pass through a calibrator together."""
ITERATIONS = 60

Scaling = Callable[[Tensor], Tensor]
"""Logits [..., C, h, w] → logits; every calibrator is such a function."""


@dataclass(frozen=True)
class Pixels:
    """Labeled pixels with their uncalibrated logits, on the CPU; the pixels of an image are adjacent, in
    random order.

    Attributes:
        logits: float32 [S, C, N].
        labels: int64 [N], class index.
        weights: float32 [N], positive: how much of the population each pixel represents.
        images: int64 [N], row of each pixel's image.
        shares: float32 [S, N], the weight of each term in the pixel's probability; they sum to 1. None where
            all terms weigh the same.
    """

    logits: Tensor
    labels: Tensor
    weights: Tensor
    images: Tensor
    shares: Tensor | None = None

    def __post_init__(self) -> None:
        """Raises ValueError: there is no pixel, or the shapes do not fit together."""
        count = self.logits.shape[-1]
        lengths = [len(self.labels), len(self.weights), len(self.images)]
        if self.logits.ndim != 3 or lengths != [count] * 3:
            raise ValueError(
                "Expected logits [S, C, N] with N labels, weights and images, but got "
                f"{list(self.logits.shape)} with {lengths}."
            )
        if count == 0:
            raise ValueError("Expected at least one pixel, but got none.")
        if self.shares is not None and self.shares.shape != (len(self.logits), count):
            raise ValueError(
                f"Expected shares [{len(self.logits)}, {count}], but got {list(self.shares.shape)}."
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        return self.logits.shape[1]

    def where(self, keep: Tensor) -> Pixels:
        """The pixels of a mask or index [n]."""
        return self._part(keep)

    @property
    def prior(self) -> Tensor:
        """The shares as float32 [S, N]."""
        if self.shares is not None:
            return self.shares
        return torch.full((len(self.logits), len(self)), 1 / len(self.logits))

    def thinned(self, values: int) -> Pixels:
        """Every k-th pixel, so that no more than about `values` logits are left."""
        stride = math.ceil(self.logits.numel() / values)
        return self if stride <= 1 else self.where(torch.arange(0, len(self), stride))

    def parts(self) -> Iterator[Pixels]:
        """All pixels in parts, each of at most `VALUES_AT_ONCE` logits."""
        step = max(1, VALUES_AT_ONCE // (self.logits.shape[0] * self.classes))
        for start in range(0, len(self), step):
            yield self._part(slice(start, start + step))

    def _part(self, some: Tensor | slice) -> Pixels:
        return Pixels(
            self.logits[..., some],
            self.labels[some],
            self.weights[some],
            self.images[some],
            None if self.shares is None else self.shares[:, some],
        )


def log_probability(scaling: Scaling, pixels: Pixels) -> Tensor:
    """ln Σ_s w_s softmax(calibrator(z_s)), the served probabilities [C, N]."""
    log_p_SCN = scaling(pixels.logits[..., None])[..., 0].log_softmax(dim=1)
    if len(log_p_SCN) == 1:
        return log_p_SCN[0]
    return (log_p_SCN + pixels.prior.log()[:, None]).logsumexp(dim=0)


def mean_nll(scaling: Scaling, pixels: Pixels) -> float:
    """Weighted mean of −ln p̄[label], in nats.

    >>> one = Pixels(torch.zeros(1, 4, 1), torch.tensor([2]), torch.ones(1), torch.zeros(1).long())
    >>> round(mean_nll(lambda logits: logits, one), 4)  # ln 4
    1.3863
    """
    total = 0.0
    for part in pixels.parts():
        total += float((_label_nll(scaling, part) * part.weights).double().sum())
    return total / float(pixels.weights.double().sum())


def fit_temperature(pixels: Pixels) -> float:
    """The temperature τ in [0.05, 20] that minimises the NLL (Guo et al. 2017, section 4.2).

    A scan of ln τ on some pixels brackets the minimum; golden section on all pixels finds it. The NLL of a
    deterministic network is convex in 1/τ and has one minimum; that of a mean over samples may have several,
    hence the scan.
    """
    low, high = math.log(LOWEST), math.log(HIGHEST)
    steps = 12
    grid = [low + (high - low) * index / steps for index in range(steps + 1)]
    some = pixels.thinned(SCAN_VALUES)

    def objective(point: float, pixels: Pixels = pixels) -> float:
        return mean_nll(lambda logits: logits / math.exp(point), pixels)

    nll = [objective(point, some) for point in grid]
    best = min(range(len(grid)), key=nll.__getitem__)
    return math.exp(_golden_section(objective, grid[max(0, best - 1)], grid[min(steps, best + 1)]))


def at_bound(temperature: float) -> bool:
    """Whether a search for this temperature ended at one of its bounds.

    >>> at_bound(0.0501), at_bound(1.0), at_bound(19.9)
    (True, False, True)
    """
    margin = 1 + 10 * TOLERANCE
    return temperature < LOWEST * margin or temperature > HIGHEST / margin


def minimise_nll(
    scaled: Callable[[Tensor, Tensor], Tensor],
    pixels: Pixels,
    *,
    start: list[float],
    low: list[float],
    high: list[float],
) -> list[float]:
    """The parameters [P] within bounds that minimise the NLL, by L-BFGS-B (Byrd et al. 1995).

    Args:
        scaled: calibrated logits [S, C, N, 1] from uncalibrated ones and the parameters [P], differentiable
            in these.
        start, low, high: [P].
    """
    weights = (pixels.weights / pixels.weights.sum()).double()

    def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = torch.tensor(values, dtype=torch.float32, requires_grad=True)
        loss = (_label_nll(lambda logits: scaled(logits, parameters), pixels) * weights).sum()
        loss.backward()
        if parameters.grad is None:
            raise ValueError("Expected calibrated logits that depend on the parameters.")
        return float(loss.detach()), parameters.grad.double().numpy()

    found = minimize(
        objective,
        np.array(start),
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(low, high, strict=True)),
        options={"maxiter": ITERATIONS, "ftol": 1e-7, "gtol": 1e-5},
    )
    return found.x.tolist()


def _label_nll(scaling: Scaling, pixels: Pixels) -> Tensor:
    """−ln p̄[label], [N]."""
    logits_SCN = scaling(pixels.logits[..., None])[..., 0]
    label_S1N = pixels.labels.view(1, 1, -1).expand(len(logits_SCN), 1, -1)
    log_p_SN = logits_SCN.gather(1, label_S1N)[:, 0] - logits_SCN.logsumexp(dim=1)
    return -(log_p_SN + pixels.prior.log()).logsumexp(dim=0)


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
