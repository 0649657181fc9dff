"""Reliability diagrams for each part of the pixels, with intervals over independent units.

Legend: N pixels, C classes, P stored parts (see `parts`), K bins, b independent units, R resamples.

The class of a pixel is here the *predicted* one: among pixels whose label is c, the share that is right is
the recall, whatever the confidence, and a perfectly calibrated model would look wrong (Gupta & Ramdas 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pipeline.evaluation.bootstrap import SHARE, BlockBootstrap
from pipeline.evaluation.estimate import Estimate
from pipeline.evaluation.metrics import calibration_error, calibration_noise
from pipeline.evaluation.parts import Parts, with_whole
from pipeline.evaluation.proportions import clustered_interval

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Reliability:
    """One part's reliability diagram.

    Attributes:
        share: [K] of the part's pixels in each bin.
        confidence, accuracy: [K] means; NaN in an empty bin.
        low, high: [K] interval of the accuracy.
        ece: expected calibration error over the K bins.
        ece_noise: the ECE that so few units would show by chance if calibration were perfect.
    """

    share: Array
    confidence: Array
    accuracy: Array
    low: Array
    high: Array
    ece: Estimate
    ece_noise: float


def reliability_table(confidence_N: Tensor, right_N: Tensor, parts: Parts, *, bins: int) -> Array:
    """Pixels, summed confidence and right pixels in linear bins of confidence: [P, K, 3].

    Args:
        confidence_N: in 0 to 1.
        right_N: bool, whether the predicted class is the label.
        parts: with the predicted classes.
    """
    column_N = (confidence_N.double() * bins).long().clamp_(0, bins - 1)
    return parts.count(column_N, bins, confidence_N, right_N)


def reliability_estimates(tables: Array, *, bootstrap: BlockBootstrap) -> list[Reliability]:
    """The diagram of each part, the whole first (see `part_names`), from tables [b, P, K, 3]."""
    whole = with_whole(tables, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        total = whole.sum(axis=0)
        _, (low, high) = clustered_interval(whole[..., 2], whole[..., 0], confidence=bootstrap.confidence)
        error = calibration_error(total)
        error_low, error_high = bootstrap.interval(calibration_error, whole, within=SHARE)
        pixels, confident, right = np.moveaxis(total, -1, 0)
        share, confidence = pixels / pixels.sum(axis=1, keepdims=True), confident / pixels
        accuracy = right / pixels
        noise = [
            float(calibration_noise(whole[:, part], bootstrap.weights).mean()) if len(whole) > 1 else np.nan
            for part in range(whole.shape[1])
        ]
    return [
        Reliability(
            share=share[part],
            confidence=confidence[part],
            accuracy=accuracy[part],
            low=low[part],
            high=high[part],
            ece=Estimate(float(error[part]), float(error_low[part]), float(error_high[part])),
            ece_noise=noise[part],
        )
        for part in range(whole.shape[1])
    ]
