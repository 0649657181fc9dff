"""What a network is trained to lower.

Legend: B batch, N annotators, C classes, H W crop size.

A target is hard, int64 [B, H, W] with 255 where nothing is known, or soft, float32 [B, C, H, W]: the share of
each class. A soft target's sum over the classes is the pixel's weight, 0 where nothing is known.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config import IGNORE, LossConfig

SMOOTH = 1.0
"""Pixels added to both sides of the Dice ratio, so that a class of a few pixels doesn't jump."""

LEAST_MASS = 1e-6
"""Below this weight a batch says nothing, and its loss is 0 instead of 0 / 0."""


def class_weights(choice: str | list[float], pixels: npt.NDArray[np.float64]) -> list[float] | None:
    """Factors of the cross-entropy: none, the given ones, or `balanced`: 1/√(labeled pixels), with
    mean 1 over the classes that have any; the others, which no pixel names, get 1.

    >>> class_weights("balanced", np.array([100.0, 900, 0]))
    [1.5, 0.5, 1.0]
    """
    if isinstance(choice, list):
        return list(choice)
    if choice == "none":
        return None
    weights = np.ones(len(pixels))
    present = pixels > 0
    weights[present] = 1 / np.sqrt(pixels[present])
    weights[present] /= weights[present].mean()
    return [round(float(weight), 6) for weight in weights]


def segmentation_loss(
    logits: Tensor, target: Tensor, config: LossConfig, class_weights: Tensor | None
) -> Tensor:
    """Cross-entropy over what is known, plus the Dice loss where it is asked for.

    Args:
        logits: float32 [B, C, H, W].
        target: hard or soft. Without anything known the loss is 0.
        class_weights: [C], for the cross-entropy; its mean is weighted by them.

    Raises:
        ValueError: Dice is asked for, but the target is soft.
    """
    terms: list[Tensor] = []
    soft = target.is_floating_point()
    if config.cross_entropy:
        if soft:
            entropy = soft_cross_entropy(logits, target, config, class_weights)
        elif config.focal_gamma:
            entropy = soft_cross_entropy(
                logits, shares(target[:, None], logits.shape[1]), config, class_weights
            )
        else:
            entropy = hard_cross_entropy(logits, target, config.label_smoothing, class_weights)
        terms.append(config.cross_entropy * entropy)
    if config.dice:
        if soft:
            raise ValueError("Expected argument `target` to be hard for the Dice loss, but got a soft one.")
        terms.append(config.dice * dice_loss(logits, target))
    return torch.stack(terms).sum()


def hard_cross_entropy(
    logits: Tensor, label: Tensor, smoothing: float, class_weights: Tensor | None
) -> Tensor:
    """Weighted mean of −ln p over the labeled pixels, of labels smoothed by `smoothing`."""
    known = label != IGNORE
    summed = functional.cross_entropy(
        logits,
        label,
        weight=class_weights,
        ignore_index=IGNORE,
        reduction="sum",
        label_smoothing=smoothing,
    )
    weight = 1 if class_weights is None else class_weights[label.where(known, 0)]
    return summed / (weight * known).sum().clamp(min=LEAST_MASS)


def soft_cross_entropy(
    logits: Tensor, target: Tensor, config: LossConfig, class_weights: Tensor | None
) -> Tensor:
    """Weighted mean of −Σ_c t_c (1 − p_c)^γ ln p_c, where t is the target after label smoothing.

    With γ = 0 this is the cross-entropy, whose minimum is p = t: a share among annotators becomes a predicted
    probability. With γ > 0 it is the focal loss (Lin et al. 2017, equation 4) class by class, which is theirs
    for a hard target; its minimum is less sure than t (Charoenphakdee et al. 2021).
    """
    smoothing = config.label_smoothing
    smoothed = target
    if smoothing:
        smoothed = target * (1 - smoothing) + target.sum(dim=1, keepdim=True) * smoothing / target.shape[1]
    log_probability = logits.log_softmax(dim=1)
    loss = -smoothed * log_probability
    if config.focal_gamma:
        # 1 − e^x of x near 0; at x = 0 itself a power below 1 has no slope
        doubt = (-torch.expm1(log_probability)).clamp(min=1e-8)
        loss = loss * doubt**config.focal_gamma
    mass = target
    if class_weights is not None:
        loss, mass = loss * class_weights[:, None, None], target * class_weights[:, None, None]
    return loss.sum() / mass.sum().clamp(min=LEAST_MASS)


def dice_loss(logits: Tensor, label: Tensor) -> Tensor:
    """1 − soft Dice, mean over the classes that the batch's labels hold (Milletari et al. 2016, eq. 3, with
    sums instead of squares in the denominator).

    Args:
        logits: [B, C, H, W].
        label: int64 [B, H, W], 255 where nothing is known; those pixels count nowhere.
    """
    known = label != IGNORE
    truth = functional.one_hot(label.where(known, 0), logits.shape[1]).permute(0, 3, 1, 2)
    truth = truth * known[:, None]
    probability = logits.softmax(dim=1) * known[:, None]
    shared = (probability * truth).sum(dim=(0, 2, 3))
    size = probability.sum(dim=(0, 2, 3)) + truth.sum(dim=(0, 2, 3))
    present = truth.sum(dim=(0, 2, 3)) > 0
    loss = 1 - (2 * shared + SMOOTH) / (size + SMOOTH)
    return (loss * present).sum() / present.sum().clamp(min=1)


def shares(votes: Tensor, num_classes: int, *, prior: float = 0.0) -> Tensor:
    """The soft target of annotators' votes: (n_c + a) / (N + a·C), the mean of the posterior under a
    Dirichlet(a, …, a) prior (a = 1: Laplace), and 0 for every class where there is no vote.

    Args:
        votes: integers [B, N, H, W]: the class, or 255 where an annotator says nothing.
        prior: a.

    Returns:
        float32 [B, C, H, W].
    """
    batch, _, height, width = votes.shape
    # One class more than there are, to hold what says nothing
    counts = torch.zeros(batch, num_classes + 1, height, width, device=votes.device)
    index = votes.long().clamp(max=num_classes)
    counts.scatter_add_(1, index, torch.ones((), device=votes.device).expand(index.shape))
    counts = counts[:, :num_classes]
    known = counts.sum(dim=1, keepdim=True)
    share = (counts + prior) / (known + prior * num_classes).clamp(min=LEAST_MASS)
    return share * (known > 0)
