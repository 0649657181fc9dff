"""Calibrators that scale logits: one temperature, one for each predicted class, or one line for each class.

Legend: C classes, S terms of a pixel's probability, N pixels, h and w the logits' height and width, `...` any
leading axes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from pipeline.calibration.fit import HIGHEST, LOWEST, Pixels, fit_temperature, minimise_nll

SHRINKAGE = 10.0
"""Images in which a class must be predicted before its own temperature counts as much as the global one."""
STEEPEST, LARGEST_SHIFT = 20.0, 20.0
"""Bounds of vector scaling."""


@lru_cache(maxsize=64)
def planes(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Parameters [C, 1, 1] on a device, moved there once."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)[:, None, None]


class Calibrator(ABC):
    """Scales logits [..., C, h, w]. `calibrator_from(name, parameters)` makes an equal calibrator."""

    name: ClassVar[str]

    @property
    def parameters(self) -> dict[str, Any]:
        """The fields of the dataclass, for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    @abstractmethod
    def __call__(self, logits: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Temperature(Calibrator):
    """Logits divided by one positive number (Guo et al. 2017, section 4.2). Never changes the argmax.

    >>> Temperature(2.0)(torch.tensor([2.0, 4.0]).reshape(2, 1, 1)).flatten().tolist()
    [1.0, 2.0]

    Raises:
        ValueError: the temperature is not a positive finite number.
    """

    name = "temperature"
    temperature: float

    def __post_init__(self) -> None:
        _check(self.temperature)

    def __call__(self, logits: Tensor) -> Tensor:
        return logits / self.temperature


@dataclass(frozen=True)
class ClasswiseTemperature(Calibrator):
    """Logits divided by the temperature of the class that they predict. Never changes the argmax.

    >>> logits = torch.tensor([[2.0, 4.0], [0.0, 8.0]]).reshape(2, 2, 1, 1)
    >>> ClasswiseTemperature((1.0, 2.0))(logits).flatten().tolist()
    [1.0, 2.0, 0.0, 4.0]

    Raises:
        ValueError: a temperature is not a positive finite number.
    """

    name = "classwise_temperature"
    temperatures: tuple[float, ...]

    def __post_init__(self) -> None:
        for temperature in self.temperatures:
            _check(temperature)

    def __call__(self, logits: Tensor) -> Tensor:
        temperatures_C = planes(self.temperatures, logits.device).flatten()
        return logits / temperatures_C[logits.max(dim=-3, keepdim=True).indices]


@dataclass(frozen=True)
class VectorScaling(Calibrator):
    """w_c z_c + b_c for each class c (Guo et al. 2017, section 4.2). May change the argmax.

    Raises:
        ValueError: there are not as many weights as biases, or one of them is not finite.
    """

    name = "vector"
    weights: tuple[float, ...]
    biases: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.weights) != len(self.biases) or not all(map(math.isfinite, self.weights + self.biases)):
            raise ValueError(
                "Expected as many finite weights as biases, but got "
                f"{list(self.weights)} and {list(self.biases)}."
            )

    def __call__(self, logits: Tensor) -> Tensor:
        return logits * planes(self.weights, logits.device) + planes(self.biases, logits.device)


def fit_classwise(pixels: Pixels) -> ClasswiseTemperature:
    """One temperature for each predicted class, shrunk towards the global one.

    With n_c images in which class c is predicted, ln τ_c = ln τ + n_c / (n_c + 10) · (ln τ̂_c − ln τ): images
    count, not pixels, because the pixels of one image are strongly dependent. A class that is never predicted
    keeps τ.
    """
    overall = math.log(fit_temperature(pixels))
    predicted_SN = pixels.logits.max(dim=1).indices

    def scaled(logits: Tensor, parameters: Tensor) -> Tensor:
        return logits / parameters.exp()[predicted_SN][:, None, :, None]

    own = minimise_nll(
        scaled,
        pixels,
        start=[overall] * pixels.classes,
        low=[math.log(LOWEST)] * pixels.classes,
        high=[math.log(HIGHEST)] * pixels.classes,
    )
    shares = [
        count / (count + SHRINKAGE)
        for index in range(pixels.classes)
        for count in [len(pixels.images[(predicted_SN == index).any(dim=0)].unique())]
    ]
    return ClasswiseTemperature(
        tuple(math.exp(overall + share * (found - overall)) for share, found in zip(shares, own, strict=True))
    )


def fit_vector(pixels: Pixels) -> VectorScaling:
    """Weights and biases, fitted from the global temperature on; the mean of the biases, which does not
    change the softmax, is 0."""
    classes = pixels.classes
    start = 1 / fit_temperature(pixels)

    def scaled(logits: Tensor, parameters: Tensor) -> Tensor:
        weights, biases = parameters[:, None, None].split(classes)
        return logits * weights + biases

    found = minimise_nll(
        scaled,
        pixels,
        start=[start] * classes + [0.0] * classes,
        low=[0.0] * classes + [-LARGEST_SHIFT] * classes,
        high=[STEEPEST] * classes + [LARGEST_SHIFT] * classes,
    )
    biases = found[classes:]
    mean = sum(biases) / classes
    return VectorScaling(tuple(found[:classes]), tuple(bias - mean for bias in biases))


def _check(temperature: float) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"Expected a positive finite temperature, but got {temperature}.")
