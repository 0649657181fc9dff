"""Running sums over samples: memory does not grow with their number.

Legend: B batch, T samples, t samples of one chunk, C classes, h and w the maps' height and width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

from pipeline.calibration.calibrators import Calibrator
from pipeline.uncertainty.samplers.base import Band

LEAST = -1e30
"""In place of ln 0, whose product with 0 is not a number."""


class SampledPrediction(NamedTuple):
    """Means over T samples: probability [B, C, h, w], normalised entropy [B, h, w], and the share of samples
    in which a class has the largest probability [B, C, h, w]. Each class of a tie gets the vote."""

    probability: Tensor
    expected_entropy: Tensor
    votes: Tensor


def sum_bands(
    bands: Iterable[Band], calibrators: Sequence[Calibrator], *, samples: int, like: Tensor
) -> list[SampledPrediction]:
    """For each calibrator p̄ = mean_t softmax(calibrator(z_t)), the expected entropy
    mean_t H[softmax(calibrator(z_t))] / ln C (Gal 2016; Depeweg et al. 2018), and the votes.

    Args:
        bands: of a sampler; they cover every image and row once.
        calibrators: each gives one prediction.
        samples: T.
        like: the maps' shape [B, C, h, w] and device, float32.
    """
    predictions = [
        SampledPrediction(
            probability=like.new_empty(like.shape),
            expected_entropy=like.new_empty(like.shape[:1] + like.shape[2:]),
            votes=like.new_empty(like.shape),
        )
        for _ in calibrators
    ]
    for band in bands:
        for whole, part in zip(predictions, sum_samples(band.chunks, calibrators, samples), strict=True):
            for maps, of_band in zip(whole, part, strict=True):
                maps[band.images, ..., band.rows, :] = of_band
    return predictions


def sum_samples(
    chunks: Iterable[Tensor], calibrators: Sequence[Calibrator], samples: int
) -> list[SampledPrediction]:
    """The sums of one stream of chunks [t, B, C, h, w] with T samples in all, for each calibrator."""
    sums: list[tuple[Tensor, Tensor, Tensor] | None] = [None] * len(calibrators)
    classes = 2
    for logits in chunks:
        classes = logits.shape[-3]
        for index, calibrator in enumerate(calibrators):
            log_probability = calibrator(logits).log_softmax(dim=-3).clamp_(min=LEAST)
            probability = log_probability.exp()
            part = probability.sum(dim=0), log_probability.mul_(probability).sum(dim=(0, -3))
            # A comparison in place costs a fifth of the softmax; an argmax across classes, forty times it
            won = probability.ge_(probability.amax(dim=-3, keepdim=True))
            sums[index] = _add(sums[index], (*part, won.sum(dim=0)))
    scale = -1 / (samples * math.log(classes))
    return [
        SampledPrediction(
            probability=total[0].div_(samples),
            expected_entropy=total[1].mul_(scale).clamp_(min=0, max=1),
            votes=total[2].div_(samples),
        )
        for total in sums
        if total is not None
    ]


def _add(
    total: tuple[Tensor, Tensor, Tensor] | None, part: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    if total is None:
        return part
    return total[0].add_(part[0]), total[1].add_(part[1]), total[2].add_(part[2])
