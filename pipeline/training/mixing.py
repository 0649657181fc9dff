"""Two crops in one: mixup and CutMix, drawn from the seed and the iteration only.

Legend: B batch, K channels, C classes, H W crop size. Targets are hard or soft, as `losses` says.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pipeline.config import TrainingConfig
from pipeline.training.losses import shares


def mix(
    image: Tensor, target: Tensor, config: TrainingConfig, *, num_classes: int, iteration: int
) -> tuple[Tensor, Tensor]:
    """Mix each crop of a batch with another one of it, as `training.mix` says.

    The share of the second crop is drawn for each crop apart, from Beta(α, α). What is drawn depends on the
    seed and the iteration only, so that an interrupted run goes on with the same crops.

    Args:
        image: float32 [B, K, H, W].
        target: hard, or soft.

    Returns:
        The images, and their targets: for mixup soft, else of the kind that they came in.
    """
    if config.mix == "none" or len(image) < 2:
        return image, target
    generator = np.random.default_rng([config.seed % 2**32, 2, iteration])
    partner = np.roll(np.arange(len(image)), int(generator.integers(1, len(image))))
    other = torch.from_numpy(partner).to(image.device)
    share = generator.beta(config.mix_alpha, config.mix_alpha, size=len(image))
    if config.mix == "mixup":
        return mixup(image, target, other, share, num_classes=num_classes)
    return cutmix(image, target, other, share, generator)


def mixup(
    image: Tensor, target: Tensor, other: Tensor, share: np.ndarray, *, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Blend images, and targets likewise (Zhang et al. 2018, equation 2).

    A pixel that is known in one of the two crops only counts by that crop's share.

    Args:
        other: int64 [B], the partner of each crop.
        share: [B], of the partner.
    """
    soft = target if target.is_floating_point() else shares(target[:, None], num_classes)
    second = torch.as_tensor(share, dtype=image.dtype, device=image.device)[:, None, None, None]
    blended = torch.lerp(image, image[other], second)
    return blended, torch.lerp(soft, soft[other], second.to(soft.dtype))


def cutmix(
    image: Tensor, target: Tensor, other: Tensor, share: np.ndarray, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Paste a box of the partner, its labels with it (Yun et al. 2019; French et al. 2020 for segmentation).

    The box has the partner's share of the area and the crop's aspect, around a point drawn uniformly; what
    would lie outside is cut off, as there.

    Args:
        other: int64 [B], the partner of each crop.
        share: [B], of the partner, before the cut.
    """
    height, width = image.shape[-2:]
    mixed, mixed_target = image.clone(), target.clone()
    for index, part in enumerate(share):
        rows, columns = (_cut(side, math.sqrt(part), generator) for side in (height, width))
        mixed[index, :, rows, columns] = image[other[index], :, rows, columns]
        mixed_target[index, ..., rows, columns] = target[other[index], ..., rows, columns]
    return mixed, mixed_target


def _cut(length: int, part: float, generator: np.random.Generator) -> slice:
    centre, reach = generator.uniform(0, length), length * part / 2
    return slice(max(0, round(centre - reach)), min(length, round(centre + reach)))
