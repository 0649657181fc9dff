"""Monte Carlo dropout with one pass of the trunk: only the layers after the dropout run T times.

Legend: B batch, T samples, t samples of one chunk, F channels under the dropouts, C classes, h and w the
maps' height and width.

The T masks are drawn once from a seed and shared by every image, so scores are comparable between images
and independent of order and batch. Where a linear head alone follows the dropout, sample t is W·diag(m_t)·f:
t samples are one convolution with t·C output channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.model.segmenter import Lattice, Trunk, pad_for
from pipeline.uncertainty.network import Pass, ScoringNetwork
from pipeline.uncertainty.samplers.base import Band, Sampler, room

SAMPLES_AT_ONCE = 4
"""Images and rows are split into parts if fewer samples of them together fit into the memory."""


def draw_masks(samples: int, sites: Sequence[int], *, p: float, seed: int) -> Tensor:
    """Channel dropout masks [T, F], float32 of 0 and 1/(1−p), the same on every machine.

    A mask without any channel would not be a sample of the network, so at least one channel is kept at each
    site.

    >>> draw_masks(2, [4], p=0.5, seed=0).unique().tolist()
    [0.0, 2.0]

    Args:
        samples: T.
        sites: channels under each dropout; F is their sum.
        p: the probability that a channel is dropped.
        seed: of the draw.

    Raises:
        ValueError: `samples` or a site is below 1, or p is not between 0 and 1: without active dropout
            all samples would be equal.
    """
    if samples < 1 or not sites or min(sites) < 1:
        raise ValueError(f"Expected at least one sample and one channel, but got {samples} and {sites}.")
    if not 0 < p < 1:
        raise ValueError(f"Expected a dropout probability between 0 and 1, but got {p}: nothing is sampled.")
    generator = torch.Generator().manual_seed(seed)
    masks: list[Tensor] = []
    for channels in sites:
        keep = torch.rand(samples, channels, generator=generator) >= p
        spare = torch.randint(channels, (samples,), generator=generator)
        lost = (~keep.any(dim=1)).nonzero().squeeze(1)
        keep[lost, spare[lost]] = True
        masks.append(keep.float() / (1 - p))
    return torch.cat(masks, dim=1)


class MCDropout(Sampler):
    """Samples of a network's dropout (Gal and Ghahramani 2016).

    Args:
        masks: [T, F] on the network's device.
    """

    def __init__(self, masks: Tensor) -> None:
        self.masks = masks
        self.samples = len(masks)

    def stream(self, network: ScoringNetwork, forward: Pass) -> Iterator[Tensor]:
        layer = network.segmenter.linear_head
        if layer is None or network.full:
            yield from _repeated(network, forward.trunk, forward.logits, self.masks)
        else:
            yield from _collapsed(layer, _padded(layer, forward.trunk.features), self.masks, network.lattice)

    def bands(self, network: ScoringNetwork, forward: Pass) -> Iterator[Band]:
        layer = network.segmenter.linear_head
        for images, part in _images(network, forward):
            if layer is None or network.full:
                yield Band(images, slice(None), self.stream(network, part))
                continue
            padded = _padded(layer, part.trunk.features)
            for rows, band in _rows(layer, padded, part.logits, network.lattice):
                yield Band(images, rows, _collapsed(layer, band, self.masks, network.lattice))


def _images(network: ScoringNetwork, forward: Pass) -> Iterator[tuple[slice, Pass]]:
    """The pass in parts, each of as many images as fit into the memory with a few samples."""
    batch = forward.logits.shape[0]
    if network.segmenter.linear_head is None:
        size = max(part.numel() for part in (forward.trunk.features, *forward.trunk.context)) // batch
    else:
        size = SAMPLES_AT_ONCE * forward.logits[0].numel()
    count = max(1, room(forward.logits.device) // size)
    for start in range(0, batch, count):
        some = slice(start, start + count)
        trunk = Trunk(
            features=forward.trunk.features[some], context=tuple(part[some] for part in forward.trunk.context)
        )
        yield some, Pass(image=forward.image[some], trunk=trunk, logits=forward.logits[some])


def _padded(layer: nn.Conv2d, features: Tensor) -> Tensor:
    """Padded features, contiguous as the stacked weight is: otherwise every chunk would copy them into the
    other memory format."""
    return pad_for(layer, features).contiguous()


def _rows(
    layer: nn.Conv2d, padded: Tensor, logits: Tensor, lattice: Lattice
) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the logits, and the band of padded features that the layer maps to them; few enough for a few
    samples to fit into the memory."""
    batch, classes, height, width = logits.shape
    count = max(8, room(padded.device) // (SAMPLES_AT_ONCE * batch * classes * width))
    reach = layer.dilation[0] * (layer.kernel_size[0] - 1)
    for start in range(0, height, count):
        end = min(start + count, height)
        first = lattice.every * start
        # The band keeps the lattice's offset, which the convolution skips
        last = lattice.offset[0] + lattice.every * (end - 1) + reach
        yield slice(start, end), padded[:, :, first : last + 1]


def _collapsed(layer: nn.Conv2d, padded: Tensor, masks: Tensor, lattice: Lattice) -> Iterator[Tensor]:
    """Chunks [t, B, C, h, w], each from one convolution of padded features with t·C output channels."""
    every, (row, column) = lattice.every, lattice.offset
    padded = padded[..., row:, column:]
    if layer.kernel_size == (1, 1):
        padded = padded[..., ::every, ::every].contiguous()
    classes = layer.out_channels
    size = padded.shape[0] * classes * padded.shape[2] * padded.shape[3]
    for chunk in masks.split(max(1, room(padded.device) // size)):
        samples = len(chunk)
        weight = (layer.weight[None] * chunk[:, None, :, None, None]).flatten(0, 1)
        bias = None if layer.bias is None else layer.bias.repeat(samples)
        if layer.kernel_size == (1, 1):
            stacked = (weight.flatten(1) @ padded.flatten(2)).unflatten(2, padded.shape[2:])
            stacked = stacked if bias is None else stacked.add_(bias[:, None, None])
        else:
            stacked = F.conv2d(padded, weight.contiguous(), bias, every, 0, layer.dilation)
        yield stacked.unflatten(1, (samples, classes)).transpose(0, 1)


def _repeated(network: ScoringNetwork, trunk: Trunk, logits: Tensor, masks: Tensor) -> Iterator[Tensor]:
    """Chunks [t, B, C, h, w], each from one batch of t·B tails."""
    batch = logits.shape[0]
    size = max(part.numel() for part in (trunk.features, *trunk.context, logits))
    for chunk in masks.split(max(1, room(logits.device) // size)):
        sampled = network.logits(trunk, chunk.repeat_interleave(batch, dim=0))
        yield sampled.unflatten(0, (len(chunk), batch))
