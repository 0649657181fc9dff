"""Calibrators: what stands between a network's logits and a probability.

Legend: C classes, h and w the logits' height and width, `...` any leading axes (batch, samples).

A calibrator maps logits to logits; softmax follows. With stochastic samples it acts on each sample,
before the mean over samples: p̄ = mean_t softmax(calibrator(z_t)) (Laves et al. 2019), so that
entropy = expected entropy + mutual information still holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor


class Calibrator(Protocol):
    """Scales logits [..., C, h, w]. `calibrator_from(name, parameters)` makes the same one again."""

    @property
    def name(self) -> str: ...

    @property
    def parameters(self) -> dict[str, Any]: ...

    def __call__(self, logits: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Identity:
    """Logits as they are: what stands behind their softmax is a score, not a probability."""

    @property
    def name(self) -> str:
        return "identity"

    @property
    def parameters(self) -> dict[str, Any]:
        return {}

    def __call__(self, logits: Tensor) -> Tensor:
        return logits


@dataclass(frozen=True)
class Temperature:
    """Logits divided by one positive number (Guo et al. 2017, section 4.2). Never changes the argmax.

    >>> import torch
    >>> Temperature(2.0)(torch.tensor([2.0, 4.0]).reshape(2, 1, 1)).flatten().tolist()
    [1.0, 2.0]

    Raises:
        ValueError: the temperature is not a positive finite number.
    """

    temperature: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"Expected a positive finite temperature, but got {self.temperature}.")

    @property
    def name(self) -> str:
        return "temperature"

    @property
    def parameters(self) -> dict[str, Any]:
        return {"temperature": self.temperature}

    def __call__(self, logits: Tensor) -> Tensor:
        return logits / self.temperature


def calibrator_from(name: str, parameters: Mapping[str, Any]) -> Calibrator:
    """The calibrator that a `calibration` row describes; further parameters (how it was fitted) are ignored.

    >>> calibrator_from("temperature", {"temperature": 1.5, "at_bound": False})
    Temperature(temperature=1.5)

    Raises:
        ValueError: no calibrator has this name, or a parameter is missing.
    """
    if name == "identity":
        return Identity()
    if name == "temperature":
        if "temperature" not in parameters:
            raise ValueError("Expected the parameter `temperature`, but it is missing.")
        return Temperature(temperature=float(parameters["temperature"]))
    raise ValueError(f"Expected a calibrator `identity` or `temperature`, but got {name!r}.")


@dataclass(frozen=True)
class Calibrators:
    """One calibrator for the deterministic logits, and one for stochastic samples: they are never
    exchanged, because averaging samples softens the prediction by itself."""

    deterministic: Calibrator = field(default_factory=Identity)
    sampled: Calibrator = field(default_factory=Identity)
