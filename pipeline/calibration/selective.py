"""Selective scaling: suspected errors get a temperature of their own (Wang et al. 2023, CVPR, section 4).

Legend: S terms of a pixel's probability, C classes, N pixels, k sorted probabilities, h and w the logits'
height and width, `...` any leading axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from pipeline.calibration.fit import HIGHEST, LOWEST, Pixels, fit_temperature, minimise_nll
from pipeline.calibration.scaling import Calibrator, planes

LARGEST = 5
"""Sorted probabilities that are the classifier's features."""
RIDGE = 1e-4


@dataclass(frozen=True)
class SelectiveScaling(Calibrator):
    """Logits divided by τ₁, or by τ₂ ≥ τ₁ where a logistic classifier of the largest probabilities suspects
    an error. Never changes the argmax, but reorders uncertainties.

    Attributes:
        temperature, suspected_temperature: τ₁ and τ₂.
        weights: of the k largest probabilities, descending.
        bias: an error is suspected where weights · probabilities + bias > 0.

    Raises:
        ValueError: not 0 < τ₁ ≤ τ₂.
    """

    name = "selective"
    temperature: float
    suspected_temperature: float
    weights: tuple[float, ...]
    bias: float

    def __post_init__(self) -> None:
        if not 0 < self.temperature <= self.suspected_temperature < math.inf:
            raise ValueError(
                f"Expected 0 < τ₁ ≤ τ₂, but got {self.temperature} and {self.suspected_temperature}."
            )

    def __call__(self, logits: Tensor) -> Tensor:
        largest = logits.softmax(dim=-3).topk(len(self.weights), dim=-3).values
        suspicion = (largest * planes(self.weights, logits.device)).sum(dim=-3, keepdim=True)
        suspected = suspicion + self.bias > 0
        return torch.where(suspected, logits / self.suspected_temperature, logits / self.temperature)


def fit_selective(pixels: Pixels) -> SelectiveScaling:
    """Fit the classifier by logistic regression on each term's errors, then τ₁ and τ₂ by NLL. As many
    pixels are suspected as there are errors: if errors are rare, none reaches a probability of one half."""
    wrong_SN = pixels.logits.max(dim=1).indices != pixels.labels
    count = min(LARGEST, pixels.classes)
    largest_SNk = pixels.logits.softmax(dim=1).topk(count, dim=1).values.transpose(1, 2)
    features, wrong = largest_SNk.flatten(0, 1).double(), wrong_SN.flatten()
    mass = (pixels.weights * pixels.prior).flatten().double()
    weights = _classifier(features, wrong.double(), mass / mass.sum())
    bias = -_upper_quantile(features @ weights, mass, float((mass * wrong).sum() / mass.sum()))
    suspected_SN = (features @ weights + bias > 0).view_as(wrong_SN)[:, None, :, None]

    def scaled(logits: Tensor, parameters: Tensor) -> Tensor:
        first, more = parameters
        return logits / (first + suspected_SN * more).exp()

    overall = math.log(fit_temperature(pixels))
    first, more = minimise_nll(
        scaled,
        pixels,
        start=[overall, 0.1],
        low=[math.log(LOWEST), 0.0],
        high=[math.log(HIGHEST), math.log(HIGHEST)],
    )
    return SelectiveScaling(
        temperature=math.exp(first),
        suspected_temperature=math.exp(first + more),
        weights=tuple(weights.tolist()),
        bias=bias,
    )


def _classifier(features: Tensor, wrong: Tensor, mass: Tensor) -> Tensor:
    """Weights [k] of a logistic regression with an intercept, which the quantile replaces, and a small
    ridge, without which a network that is never wrong would have no minimum."""
    ones = torch.ones(len(features), 1, dtype=features.dtype)
    inputs = torch.cat([features, ones], dim=1)

    def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = torch.tensor(values, requires_grad=True)
        loss = binary_cross_entropy_with_logits(inputs @ parameters, wrong, weight=mass, reduction="sum")
        loss = loss + RIDGE * parameters[:-1].square().sum()
        (gradient,) = torch.autograd.grad(loss, parameters)
        return float(loss.detach()), gradient.numpy()

    found = minimize(objective, np.zeros(inputs.shape[1]), jac=True, method="L-BFGS-B")
    return torch.tensor(found.x[:-1])


def _upper_quantile(values: Tensor, mass: Tensor, share: float) -> float:
    """The value above which this share of the mass lies."""
    ordered, order = values.sort(descending=True)
    reached = mass[order].cumsum(dim=0) / mass.sum()
    return float(ordered[min(int(torch.searchsorted(reached, share)), len(ordered) - 1)])
