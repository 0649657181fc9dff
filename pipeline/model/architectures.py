"""Where each architecture of SMP is split at its dropout, if not before the convolution of its head.

Legend: B batch, F channels at all dropouts together, G channels of a map, h w its size, t samples.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.model.segmenter import ChannelDrop, Segmenter, Trunk


class FpnSegmenter(Segmenter):
    """FPN, whose group normalisation needs more than one value a group."""

    smallest_map = 2


class PanSegmenter(Segmenter):
    """PAN, whose pyramid halves the last feature map three times."""

    smallest_map = 8


class DptSegmenter(Segmenter):
    """DPT, whose head has three layers before its dropout and whose encoder also gives tokens."""

    @property
    def final_layer(self) -> nn.Conv2d:
        return self.part("segmentation_head").head[4]

    @property
    def interpolated(self) -> bool:
        return True

    def upsample(self, logits: Tensor) -> Tensor:
        factor = self.part("segmentation_head").upsampling_factor
        return functional.interpolate(logits, scale_factor=factor, mode="bilinear", align_corners=True)

    def _encoder_stride(self) -> int:
        return 2 * max(self.part("encoder").output_strides)  # the decoder halves the last map once more

    def _shared(self, encoded: Any) -> Trunk:
        features, tokens = encoded
        decoded = self.part("decoder")(features, tokens)
        return Trunk(features=self.part("segmentation_head").head[:4](decoded))

    def pyramid(self, encoded: Any) -> tuple[Tensor, ...]:
        return tuple(encoded[0])


class DeepLabV3Segmenter(Segmenter):
    """DeepLabV3, whose dropout ends the spatial pyramid, before a block and the head."""

    def _shared(self, encoded: Any) -> Trunk:
        return Trunk(features=self.part("decoder").aspp(encoded[-1]))

    @property
    def linear_head(self) -> None:
        return None

    def _decode(self, trunk: Trunk, drop: ChannelDrop) -> Tensor:
        decoder = self.part("decoder")
        return decoder.relu(decoder.bn(drop.convolve(decoder.conv, trunk.features)))


class DeepLabV3PlusSegmenter(Segmenter):
    """DeepLabV3+, whose tail also sees the encoder's features at stride 4.

    Two parts of the tail are the same for every sample, and belong to the trunk: the depthwise convolution
    after the dropout, which a channel's factor passes through; and what the last block makes of the encoder's
    features, because its convolutions add it to what they make of the others.
    """

    def _shared(self, encoded: Any) -> Trunk:
        decoder = self.part("decoder")
        features = decoder.aspp[1][0](decoder.aspp[0](encoded[-1]))
        depthwise, pointwise = decoder.block2[0]
        coarse = features.shape[1]
        fine = functional.conv2d(
            decoder.block1(encoded[2]),
            depthwise.weight[coarse:],
            padding=depthwise.padding,
            groups=depthwise.groups - coarse,
        )
        fine = functional.conv2d(fine, pointwise.weight[:, coarse:], pointwise.bias)
        factor, offset = _affine(decoder.block2[1])
        return Trunk(features=features, context=(fine * factor[:, None, None] + offset[:, None, None],))

    @property
    def linear_head(self) -> None:
        return None

    def _decode(self, trunk: Trunk, drop: ChannelDrop) -> Tensor:
        decoder = self.part("decoder")
        pointwise = decoder.aspp[1][1]
        coarse = decoder.up(decoder.aspp[2:](drop.convolve(pointwise, trunk.features)))
        depthwise, pointwise = decoder.block2[0]
        channels = coarse.shape[1]
        mixed = functional.conv2d(
            coarse, depthwise.weight[:channels], padding=depthwise.padding, groups=channels
        )
        factor, _ = _affine(decoder.block2[1])
        weight = pointwise.weight[:, :channels, 0, 0] * factor[:, None]
        fused = _add_product(trunk.context[0], mixed, weight)
        norm = decoder.block2[1]
        return functional.relu(norm(fused) if norm.training else fused)


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Factor and offset of a batch normalisation in eval mode; 1 and 0 while it still learns."""
    if norm.training or norm.running_var is None or norm.running_mean is None:
        return torch.ones_like(norm.weight), torch.zeros_like(norm.bias)
    factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return factor, norm.bias - norm.running_mean * factor


def _add_product(shared: Tensor, sampled: Tensor, weight: Tensor) -> Tensor:
    """A pointwise convolution of maps [t·B, F, h, w], added to maps [B, G, h, w] that all samples share, in
    one matrix product: the maps are too large to pass through memory twice."""
    batch, channels, height, width = shared.shape
    samples = sampled.shape[0] // batch
    rows = sampled.permute(0, 2, 3, 1).reshape(samples, -1, sampled.shape[1])
    base = shared.permute(0, 2, 3, 1).reshape(1, -1, channels).expand(samples, -1, -1)
    out = torch.baddbmm(base, rows, weight.T.expand(samples, -1, -1))
    return out.reshape(samples * batch, height, width, channels).permute(0, 3, 1, 2)


SEGMENTERS: dict[str, type[Segmenter]] = {
    "fpn": FpnSegmenter,
    "pan": PanSegmenter,
    "dpt": DptSegmenter,
    "deeplabv3": DeepLabV3Segmenter,
    "deeplabv3plus": DeepLabV3PlusSegmenter,
}
"""Where each architecture is split; the others are split before the convolution of their head."""
