"""Monte Carlo dropout at the price of one pass: the trunk runs once, only what follows the dropout T times.

Legend: B batch, T samples, t samples of one chunk, F channels under the dropout, C classes, h and w the
logits' height and width.

The T masks are drawn once from a seed and shared by every image, so scores are comparable between images
and independent of order and batch. Where a linear head alone follows the dropout, sample t is W·diag(m_t)·f:
t samples are one convolution with t·C output channels. Samples are summed as they come, so memory does not
grow with T.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.calibration.calibrators import Calibrator
from pipeline.model.segmenter import Segmenter, Trunk

CHUNK_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}
"""Logits that are alive at once: about a cache on the CPU, enough to fill the device on CUDA."""


@dataclass(frozen=True)
class SampledPrediction:
    """What T samples say: mean probability [B, C, h, w] and mean normalised entropy [B, h, w]."""

    probability: Tensor
    expected_entropy: Tensor


def draw_masks(samples: int, channels: int, *, p: float, seed: int) -> Tensor:
    """Channel dropout masks [T, F], float32 of 0 and 1/(1−p), the same on every machine.

    A mask without a single channel would be no sample of the network; one channel of it is kept.

    >>> draw_masks(2, 4, p=0.5, seed=0).unique().tolist()
    [0.0, 2.0]

    Raises:
        ValueError: `samples` or `channels` is below 1, or p is not between 0 and 1: without active dropout
            all samples would be equal.
    """
    if samples < 1 or channels < 1:
        raise ValueError(f"Expected at least one sample and one channel, but got {samples} and {channels}.")
    if not 0 < p < 1:
        raise ValueError(f"Expected a dropout probability between 0 and 1, but got {p}: nothing is sampled.")
    generator = torch.Generator().manual_seed(seed)
    keep = torch.rand(samples, channels, generator=generator) >= p
    spare = torch.randint(channels, (samples,), generator=generator)
    lost = (~keep.any(dim=1)).nonzero().squeeze(1)
    keep[lost, spare[lost]] = True
    return keep.float() / (1 - p)


def sample_logits(
    segmenter: Segmenter, trunk: Trunk, masks: Tensor, *, upsample: bool = False
) -> Iterator[Tensor]:
    """The logits of every mask, in chunks [t, B, C, h, w] float32, in the order of the masks.

    Args:
        segmenter: in eval mode.
        trunk: `segmenter.trunk(image)`, float32.
        masks: [T, F] on the trunk's device.
        upsample: logits at the size of the network's input instead of its own stride.
    """
    head = segmenter.linear_head
    for chunk in masks.split(_chunk(segmenter, trunk, upsample=upsample)):
        if head is not None:
            logits = _collapsed(head, trunk.features, chunk)
        else:
            logits = _repeated(segmenter, trunk, chunk)
        if upsample:
            logits = segmenter.upsample(logits.flatten(0, 1)).unflatten(0, logits.shape[:2])
        yield logits.float()


def sample_predictions(
    segmenter: Segmenter,
    trunk: Trunk,
    masks: Tensor,
    *,
    calibrators: Sequence[Calibrator],
    upsample: bool = False,
) -> list[SampledPrediction]:
    """Running sums over all masks, for each calibrator: p̄ = mean_t softmax(calibrator(z_t)), and the
    expected entropy mean_t H[softmax(calibrator(z_t))] / ln C (Gal 2016; Depeweg et al. 2018)."""
    probabilities: list[Tensor | None] = [None] * len(calibrators)
    entropies: list[Tensor | None] = [None] * len(calibrators)
    for logits in sample_logits(segmenter, trunk, masks, upsample=upsample):
        for index, calibrator in enumerate(calibrators):
            log_probability = calibrator(logits).log_softmax(dim=-3)
            probability = log_probability.exp()
            probabilities[index] = _add(probabilities[index], probability.sum(dim=0))
            entropies[index] = _add(entropies[index], log_probability.mul_(probability).sum(dim=(0, -3)))
    samples = masks.shape[0]
    scale = -1 / (samples * math.log(segmenter.num_classes))
    return [
        SampledPrediction(
            probability=probability.div_(samples),
            expected_entropy=entropy.mul_(scale).clamp_(min=0, max=1),
        )
        for probability, entropy in zip(probabilities, entropies, strict=True)
        if probability is not None and entropy is not None
    ]


def _add(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total.add_(part)


def _chunk(segmenter: Segmenter, trunk: Trunk, *, upsample: bool) -> int:
    """Samples at a time, so that a chunk's tensors stay near `CHUNK_BYTES`."""
    batch, _, height, width = trunk.features.shape
    if segmenter.linear_head is None:
        elements = max(part.numel() for part in (trunk.features, *trunk.context))
    else:
        elements = batch * segmenter.num_classes * height * width
    if upsample:
        elements *= segmenter.logits_stride**2
    budget = CHUNK_BYTES.get(trunk.features.device.type, CHUNK_BYTES["cpu"])
    return max(1, budget // (4 * elements))


def _collapsed(head: nn.Conv2d, features: Tensor, masks: Tensor) -> Tensor:
    """[t, B, C, h, w] from one convolution with t·C output channels."""
    samples, classes = masks.shape[0], head.out_channels
    weight = (head.weight[None] * masks[:, None, :, None, None]).flatten(0, 1)
    bias = None if head.bias is None else head.bias.repeat(samples)
    stacked = F.conv2d(features, weight, bias, head.stride, head.padding, head.dilation)
    return stacked.unflatten(1, (samples, classes)).transpose(0, 1)


def _repeated(segmenter: Segmenter, trunk: Trunk, masks: Tensor) -> Tensor:
    """[t, B, C, h, w] from one batch of t·B tails."""
    samples, batch = masks.shape[0], trunk.features.shape[0]
    repeated = Trunk(
        features=trunk.features.repeat(samples, 1, 1, 1),
        context=tuple(part.repeat(samples, *[1] * (part.ndim - 1)) for part in trunk.context),
    )
    return segmenter.tail(repeated, masks.repeat_interleave(batch, dim=0)).unflatten(0, (samples, batch))
