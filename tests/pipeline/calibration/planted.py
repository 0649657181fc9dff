"""Pixels whose labels were drawn from a known law, and whose logits are a known distortion of it."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.calibration.fit import Pixels


def law(
    *, samples: int = 1, pixels: int = 12_000, classes: int = 5, spread: float = 0.5, sure: float = 2.0
) -> tuple[Tensor, Tensor]:
    """Calibrated logits [T, C, N], and labels [N] drawn from their mean softmax."""
    generator = torch.Generator().manual_seed(7)
    base = torch.randn(1, classes, pixels, generator=generator) * sure
    logits = base + spread * torch.randn(samples, classes, pixels, generator=generator) * (samples > 1)
    labels = torch.multinomial(logits.softmax(dim=1).mean(dim=0).T, 1, generator=generator)[:, 0]
    return logits, labels


def pixels_of(logits: Tensor, labels: Tensor, *, images: int = 30, weights: Tensor | None = None) -> Pixels:
    """Pixels in images of equal size, one after another."""
    count = len(labels)
    return Pixels(
        logits=logits,
        labels=labels,
        weights=torch.ones(count) if weights is None else weights,
        images=torch.arange(count) * images // count,
    )


def planted(temperature: float, *, images: int = 30, samples: int = 1, pixels: int = 12_000) -> Pixels:
    """Logits that are too large by this factor."""
    logits, labels = law(samples=samples, pixels=pixels)
    return pixels_of(logits * temperature, labels, images=images)
