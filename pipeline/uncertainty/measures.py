"""Measures of uncertainty: one number per pixel, larger = more uncertain, everywhere.

Legend: B batch, C classes, h and w the map's height and width. Logits and probabilities are float tensors
[..., C, h, w] with the class axis third from the end; measures are [..., h, w].
"""

from __future__ import annotations

import math
from typing import get_args

import torch
from torch import Tensor

from pipeline.config import Measure

MEASURES: tuple[Measure, ...] = get_args(Measure)
"""Every measure, in the order of the store's columns."""


def least_confidence(probability: Tensor) -> Tensor:
    """1 − max_c p (Lewis and Gale 1994), 0 to 1 − 1/C; of the mean over samples where there are samples.

    >>> round(least_confidence(torch.tensor([0.7, 0.2, 0.1]).reshape(3, 1, 1)).item(), 4)
    0.3

    Raises:
        ValueError: there are fewer than two classes.
    """
    _check_classes(probability)
    return 1 - probability.amax(dim=-3)


def margin(probability: Tensor) -> Tensor:
    """1 − (p₁ − p₂), best against second best (Scheffer et al. 2001), 0 to 1; of the mean over samples where
    there are samples.

    >>> round(margin(torch.tensor([0.7, 0.2, 0.1]).reshape(3, 1, 1)).item(), 4)
    0.5

    Raises:
        ValueError: there are fewer than two classes.
    """
    _check_classes(probability)
    planes = probability.unbind(dim=-3)
    best, second = torch.maximum(planes[0], planes[1]), torch.minimum(planes[0], planes[1])
    for plane in planes[2:]:  # ten times the speed of topk across the class axis
        second = torch.maximum(second, torch.minimum(best, plane))
        best = torch.maximum(best, plane)
    return 1 - (best - second)


def entropy(probability: Tensor) -> Tensor:
    """H[p] / ln C (Shannon 1948), 0 to 1. Of the mean over samples it is the total predictive uncertainty.

    >>> certain, uniform = torch.tensor([1.0, 0.0]), torch.full((2,), 0.5)
    >>> round(entropy(uniform.reshape(2, 1, 1)).item(), 4), entropy(certain.reshape(2, 1, 1)).item() == 0
    (1.0, True)

    Raises:
        ValueError: there are fewer than two classes.
    """
    classes = _check_classes(probability)
    tiny = torch.finfo(probability.dtype).tiny  # 0 · ln 0 = 0
    summed = (probability.clamp_min(tiny).log_() * probability).sum(dim=-3)
    return summed.div_(-math.log(classes)).clamp_(min=0, max=1)


def mutual_information(entropy: Tensor, expected_entropy: Tensor) -> Tensor:
    """Entropy of the mean minus mean of the entropies (Houlsby et al. 2011, eq. 2), both over ln C; ≥ 0.

    >>> round(mutual_information(torch.tensor(0.75), torch.tensor(0.5)).item(), 4)
    0.25
    """
    return (entropy - expected_entropy).clamp_(min=0)


def energy(logits: Tensor) -> Tensor:
    """−logsumexp(z), the free energy at temperature 1 of uncalibrated logits (Liu et al. 2020, eq. 4).

    >>> round(energy(torch.zeros(2, 1, 1)).item(), 4)
    -0.6931
    """
    return -logits.logsumexp(dim=-3)


def max_logit(logits: Tensor) -> Tensor:
    """−max_c z of uncalibrated logits (Hendrycks et al. 2022).

    >>> max_logit(torch.tensor([1.0, 3.0]).reshape(2, 1, 1)).item()
    -3.0
    """
    return -logits.amax(dim=-3)


def max_logit_norm(logits: Tensor) -> Tensor:
    """−max_c z / ‖z‖₂ of uncalibrated logits centred on their mean (Cattelan and Silva 2023), −1 to 0.

    It restores the ranking of errors that label smoothing spoils. Equal logits give 0. With two classes all
    others give −1/√2, so that nothing is measured.

    >>> round(max_logit_norm(torch.tensor([3.0, 1.0]).reshape(2, 1, 1)).item(), 4)
    -0.7071
    """
    centred = logits - logits.mean(dim=-3, keepdim=True)
    norm = centred.square().sum(dim=-3).sqrt_()
    return -centred.amax(dim=-3).div_(norm.clamp_(min=torch.finfo(logits.dtype).tiny))


def variation_ratio(votes: Tensor) -> Tensor:
    """1 − the largest share of votes (Freeman 1965), 0 to 1 − 1/C: the share that disagrees with the winner.

    >>> round(variation_ratio(torch.tensor([0.75, 0.25]).reshape(2, 1, 1)).item(), 4)
    0.25

    Raises:
        ValueError: there are fewer than two classes.
    """
    _check_classes(votes)
    return (1 - votes.amax(dim=-3)).clamp_(min=0)


def predicted_class(probability: Tensor) -> Tensor:
    """The index of the largest probability, the first of equals: int64 [..., h, w].

    >>> predicted_class(torch.tensor([0.2, 0.4, 0.4]).reshape(3, 1, 1)).item()
    1

    Raises:
        ValueError: there are fewer than two classes.
    """
    _check_classes(probability)
    planes = probability.unbind(dim=-3)
    best, index = planes[0], torch.zeros_like(planes[0], dtype=torch.int64)
    for position, plane in enumerate(planes[1:], start=1):  # argmax across the class axis is far slower
        index.masked_fill_(plane > best, position)
        best = torch.maximum(best, plane)
    return index


def measure_maps(
    *,
    logits: Tensor,
    probability: Tensor,
    expected_entropy: Tensor | None,
    votes: Tensor | None,
) -> dict[Measure, Tensor]:
    """Every measure of a prediction that its sampler allows, in the order of `MEASURES`; without
    `max_logit_norm` where there are two classes, for which it is constant.

    Args:
        logits: deterministic, uncalibrated [..., C, h, w]; of `LOGIT_MEASURES`.
        probability: mean over samples of the calibrated softmax, or the deterministic one, [..., C, h, w].
        expected_entropy: mean over samples of H / ln C [..., h, w]; None without samples.
        votes: share of the samples whose argmax is the class [..., C, h, w]; None without samples.

    Raises:
        ValueError: the shapes differ, or there are fewer than two classes.
    """
    if logits.shape != probability.shape:
        raise ValueError(
            "Expected `logits` and `probability` of one shape, but got "
            f"{tuple(logits.shape)} and {tuple(probability.shape)}."
        )
    maps: dict[Measure, Tensor] = {
        "least_confidence": least_confidence(probability),
        "margin": margin(probability),
        "entropy": entropy(probability),
    }
    if expected_entropy is not None:
        maps["expected_entropy"] = expected_entropy
        maps["mutual_information"] = mutual_information(maps["entropy"], expected_entropy)
    if votes is not None:
        maps["variation_ratio"] = variation_ratio(votes)
    maps["energy"] = energy(logits)
    maps["max_logit"] = max_logit(logits)
    if logits.shape[-3] > 2:
        maps["max_logit_norm"] = max_logit_norm(logits)
    return maps


def _check_classes(probability: Tensor) -> int:
    if probability.ndim < 3 or probability.shape[-3] < 2:
        raise ValueError(
            f"Expected a tensor [..., C, h, w] with C of at least 2, but got {tuple(probability.shape)}."
        )
    return probability.shape[-3]
