"""Calibrators, which correct a network's logits so that their softmax is a probability.

Legend: C classes, h and w the logits' height and width, `...` any leading axes (batch, samples).

A calibrator maps logits to logits; softmax follows. With stochastic samples it acts on each sample,
before the mean over samples: p̄ = mean_t softmax(calibrator(z_t)) (Laves et al. 2019), so that
entropy = expected entropy + mutual information still holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from pipeline.calibration.histogram import HistogramBinning
from pipeline.calibration.scaling import Calibrator, ClasswiseTemperature, Temperature, VectorScaling
from pipeline.calibration.selective import SelectiveScaling
from pipeline.evaluation.confidence import Confidence, confidence_of


@dataclass(frozen=True)
class Identity(Calibrator):
    """The logits unchanged: right for a network that is calibrated already."""

    name = "identity"

    def __call__(self, logits: Tensor) -> Tensor:
        return logits


KINDS: dict[str, type[Any]] = {
    kind.name: kind
    for kind in (
        *(Identity, Temperature, ClasswiseTemperature),
        *(VectorScaling, HistogramBinning, SelectiveScaling),
    )
}


def calibrator_from(name: str, parameters: Mapping[str, Any]) -> Calibrator:
    """The calibrator that a `calibration` row describes; further parameters (how it was fitted) are ignored.

    >>> calibrator_from("temperature", {"temperature": 1.5, "at_bound": False})
    Temperature(temperature=1.5)

    Raises:
        ValueError: no calibrator has this name, or a parameter is missing or impossible.
    """
    kind = KINDS.get(name)
    if kind is None:
        raise ValueError(
            f"Expected a calibrator {', '.join(f'`{kind}`' for kind in KINDS)}, but got {name!r}."
        )
    values: dict[str, Any] = {}
    for item in fields(kind):
        if item.name not in parameters:
            raise ValueError(f"Expected the parameter `{item.name}`, but it is missing.")
        value = parameters[item.name]
        values[item.name] = tuple(map(float, value)) if isinstance(value, Sequence) else float(value)
    return kind(**values)


@dataclass(frozen=True)
class Calibrators:
    """A calibrator for the deterministic logits, and one for stochastic samples. Neither replaces the other,
    because averaging samples already softens the prediction.

    Attributes:
        confidence: what the calibrated softmax of the sampler in use is called.
    """

    deterministic: Calibrator = field(default_factory=Identity)
    sampled: Calibrator = field(default_factory=Identity)
    confidence: Confidence = field(default_factory=lambda: confidence_of(False, None))

    @property
    def change_nothing(self) -> bool:
        """Whether both are identities."""
        return isinstance(self.deterministic, Identity) and isinstance(self.sampled, Identity)

    @property
    def class_map(self) -> str:
        """How the name of a map of one class begins: `probability` or `softmax`."""
        return self.confidence.name.partition(" ")[0]
