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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.calibration.calibrators import Calibrator
from pipeline.model.segmenter import Segmenter, Trunk

CHUNK_BYTES = {"cpu": 3 << 20, "cuda": 256 << 20}
"""Logits that are summed at once: what a cache holds on the CPU (four times the speed of whole batches, whose
logits travel through memory again and again), enough to fill the device on CUDA."""
SAMPLES_AT_ONCE = 4
"""Images and rows are summed apart where so many samples of them together would not find room."""


@dataclass(frozen=True)
class SampledPrediction:
    """What T samples say: mean probability [B, C, h, w], mean normalised entropy [B, h, w], and the share of
    samples in which a class has the largest probability [B, C, h, w]. Each class of a tie gets the vote."""

    probability: Tensor
    expected_entropy: Tensor
    votes: Tensor


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
    scale = segmenter.logits_stride**2 if upsample else 1
    if head is None:
        chunks = _repeated(segmenter, trunk, masks, scale=scale)
    else:
        chunks = _collapsed(head, _padded(head, trunk.features), masks, scale=scale)
    for logits in chunks:
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
    expected entropy mean_t H[softmax(calibrator(z_t))] / ln C (Gal 2016; Depeweg et al. 2018).

    Args:
        segmenter, trunk, masks, upsample: as for `sample_logits`.
        calibrators: each gives one prediction.
    """
    head = segmenter.linear_head
    parts: list[list[SampledPrediction]] = []
    for part in _images(segmenter, trunk):
        if head is None or upsample:
            streams = [sample_logits(segmenter, part, masks, upsample=upsample)]
        else:
            streams = [_collapsed(head, rows, masks) for rows in _rows(head, part.features)]
        bands = [_sum_samples(stream, calibrators, samples=len(masks)) for stream in streams]
        parts.append(_joined(bands, dim=-2))
    return _joined(parts, dim=0)


def _sum_samples(
    chunks: Iterable[Tensor], calibrators: Sequence[Calibrator], *, samples: int
) -> list[SampledPrediction]:
    probabilities: list[Tensor | None] = [None] * len(calibrators)
    entropies: list[Tensor | None] = [None] * len(calibrators)
    votes: list[Tensor | None] = [None] * len(calibrators)
    classes = 2
    for logits in chunks:
        classes = logits.shape[-3]
        for index, calibrator in enumerate(calibrators):
            log_probability = calibrator(logits).log_softmax(dim=-3)
            probability = log_probability.exp()
            probabilities[index] = _add(probabilities[index], probability.sum(dim=0))
            entropies[index] = _add(entropies[index], log_probability.mul_(probability).sum(dim=(0, -3)))
            # A comparison in place costs a fifth of the softmax; an argmax across classes, forty times it
            won = probability.ge_(probability.amax(dim=-3, keepdim=True))
            votes[index] = _add(votes[index], won.sum(dim=0))
    scale = -1 / (samples * math.log(classes))
    return [
        SampledPrediction(
            probability=probability.div_(samples),
            expected_entropy=entropy.mul_(scale).clamp_(min=0, max=1),
            votes=vote.div_(samples),
        )
        for probability, entropy, vote in zip(probabilities, entropies, votes, strict=True)
        if probability is not None and entropy is not None and vote is not None
    ]


def _add(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total.add_(part)


def _joined(parts: list[list[SampledPrediction]], *, dim: int) -> list[SampledPrediction]:
    """One prediction a calibrator, from parts of it that lie beside each other along `dim`."""
    if len(parts) == 1:
        return parts[0]
    return [
        SampledPrediction(
            probability=torch.cat([one.probability for one in same], dim=dim),
            expected_entropy=torch.cat([one.expected_entropy for one in same], dim=dim),
            votes=torch.cat([one.votes for one in same], dim=dim),
        )
        for same in zip(*parts, strict=True)
    ]


def _room(features: Tensor) -> int:
    """Numbers of float32 that may be alive at once."""
    return CHUNK_BYTES[features.device.type] // 4


def _images(segmenter: Segmenter, trunk: Trunk) -> Iterator[Trunk]:
    """The trunk in parts of as many images as have room for a few samples."""
    batch, _, height, width = trunk.features.shape
    if segmenter.linear_head is None:
        size = max(part.numel() for part in (trunk.features, *trunk.context)) // batch
    else:
        size = SAMPLES_AT_ONCE * segmenter.num_classes * height * width
    count = max(1, _room(trunk.features) // size)
    if count >= batch:
        yield trunk
        return
    for start in range(0, batch, count):
        some = slice(start, start + count)
        yield Trunk(features=trunk.features[some], context=tuple(part[some] for part in trunk.context))


def _padded(head: nn.Conv2d, features: Tensor) -> Tensor:
    """Features with the head's zero padding around them, contiguous as the stacked weight is: otherwise
    every chunk would copy them into the other memory format."""
    below, right = (int(side) for side in head.padding)
    return (
        F.pad(features, (right, right, below, below)).contiguous()
        if below or right
        else features.contiguous()
    )


def _rows(head: nn.Conv2d, features: Tensor) -> Iterator[Tensor]:
    """Padded bands of rows, each with room for a few samples, that the head maps to whole rows of logits."""
    batch, _, height, width = features.shape
    padded = _padded(head, features)
    rows = max(8, _room(features) // (SAMPLES_AT_ONCE * batch * head.out_channels * width))
    halo = head.kernel_size[0] - 1
    for start in range(0, height, rows):
        yield padded[:, :, start : start + rows + halo]


def _collapsed(head: nn.Conv2d, padded: Tensor, masks: Tensor, *, scale: int = 1) -> Iterator[Tensor]:
    """Chunks [t, B, C, h, w], each from one convolution of padded features with t·C output channels."""
    classes = head.out_channels
    size = scale * padded.shape[0] * classes * padded.shape[2] * padded.shape[3]
    for chunk in masks.split(max(1, _room(padded) // size)):
        samples = len(chunk)
        weight = (head.weight[None] * chunk[:, None, :, None, None]).flatten(0, 1)
        bias = None if head.bias is None else head.bias.repeat(samples)
        if head.kernel_size == (1, 1):
            stacked = (weight.flatten(1) @ padded.flatten(2)).unflatten(2, padded.shape[2:])
            stacked = stacked if bias is None else stacked.add_(bias[:, None, None])
        else:
            stacked = F.conv2d(padded, weight.contiguous(), bias, head.stride, 0, head.dilation)
        yield stacked.unflatten(1, (samples, classes)).transpose(0, 1)


def _repeated(segmenter: Segmenter, trunk: Trunk, masks: Tensor, *, scale: int = 1) -> Iterator[Tensor]:
    """Chunks [t, B, C, h, w], each from one batch of t·B tails."""
    batch = trunk.features.shape[0]
    size = scale * max(part.numel() for part in (trunk.features, *trunk.context))
    for chunk in masks.split(max(1, _room(trunk.features) // size)):
        samples = len(chunk)
        repeated = Trunk(
            features=trunk.features.repeat(samples, 1, 1, 1),
            context=tuple(part.repeat(samples, *[1] * (part.ndim - 1)) for part in trunk.context),
        )
        logits = segmenter.tail(repeated, chunk.repeat_interleave(batch, dim=0))
        yield logits.unflatten(0, (samples, batch))
