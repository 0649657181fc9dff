"""A segmentation network that is split at its dropout: the trunk runs once, the tail once a sample.

Legend: B batch, K image channels, C classes, F channels at the dropout, H W image size, h w size at the
network's own stride. Everything before the dropout is the *trunk*, everything after it the *tail*; the
network's own upsampling comes last, apart. The network itself stays as segmentation-models-pytorch (SMP)
built it, with its state dict's names, except that its own dropouts are gone: the only one left is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Trunk:
    """What is computed once for an image.

    Attributes:
        features: [B, F, h', w'], the tensor that the dropout masks.
        context: further tensors that the tail needs, untouched by the dropout.
    """

    features: Tensor
    context: tuple[Tensor, ...] = ()


class Segmenter(nn.Module):
    """An SMP network with one channel dropout (Tompson et al. 2015) on its segmentation path.

    In `train` mode `forward` drops channels once, at random, apart for each image; in `eval` mode nothing is
    random. Stochastic passes in `eval` mode come from `tail` with masks.

    Attributes:
        num_classes: C.
        channels: K.
        dropout: probability p that a channel is dropped.
        mask_channels: F, the length of a dropout mask.
        stride: sides of the trunk's image are a multiple of it.
        minimum: the smallest side that the network can take.
        logits_stride: image pixels a cell of the logits, along one side.
    """

    smallest_map = 1
    """Cells that the encoder's last feature map needs along one side."""

    def __init__(self, network: nn.Module, *, num_classes: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.network = network
        self.num_classes = num_classes
        self.channels = channels
        self.dropout = dropout
        self.stride = self._encoder_stride()
        self.minimum = self.stride * self.smallest_map
        _remove_dropouts(self.part("decoder"))
        _remove_dropouts(self.part("segmentation_head"))
        for module in network.modules():
            if getattr(module, "inplace", False) and isinstance(module, nn.modules.dropout._DropoutNd):
                module.inplace = False

    def part(self, name: str) -> Any:
        """A part of the SMP network, which declares none of them."""
        return getattr(self.network, name)

    def probe(self) -> None:
        """Run a blank image through, to learn `mask_channels` and `logits_stride`.

        Raises:
            ConfigError: the network cannot take it, or its output is not as large as its input.
        """
        training = self.training
        self.eval()
        side = self.minimum
        parameter = next(self.parameters())
        with torch.no_grad():
            blank = torch.zeros(1, self.channels, side, side, device=parameter.device)
            try:
                trunk = self.trunk(blank)
                logits = self.tail(trunk)
                output = self.upsample(logits)
            except RuntimeError as error:  # shapes that do not fit, in SMP's own layers
                raise ConfigError(
                    f"The network cannot be run on an image of {side}×{side}: {error}",
                    "Choose another `model.encoder` or `model.decoder`.",
                ) from error
        self.train(training)
        if output.shape[-2:] != blank.shape[-2:]:
            raise ConfigError(
                f"The decoder's output is {output.shape[-1]} pixels wide for an image of {side}.",
                "Change `model.decoder` so that the network ends at the image's size.",
            )
        self.mask_channels = trunk.features.shape[1]
        self.logits_stride = side // logits.shape[-1]

    def trunk(self, image: Tensor) -> Trunk:
        """Everything before the dropout.

        Args:
            image: float [B, K, H, W], normalised; H and W as `pad` leaves them.
        """
        features = self.part("encoder")(image)
        return Trunk(features=self.part("decoder")(features))

    def tail(self, trunk: Trunk, mask: Tensor | None = None) -> Tensor:
        """Everything after the dropout, at the network's own stride.

        Args:
            trunk: of B images.
            mask: [B, F] or [1, F], 0 for a dropped channel and 1/(1−p) for a kept one. None: no dropout.

        Returns:
            Logits [B, C, h, w].
        """
        features = trunk.features if mask is None else trunk.features * mask[:, :, None, None]
        return self._after_dropout(features, trunk.context)

    @property
    def linear_head(self) -> nn.Conv2d | None:
        """The convolution that is all of the tail, where that is so: a channel mask is then a factor of its
        weight, and T samples are one convolution with T·C output channels."""
        return self.part("segmentation_head")[0]

    def upsample(self, logits: Tensor) -> Tensor:
        """The network's own upsampling: [B, C, h, w] to [B, C, H, W]."""
        return self.part("segmentation_head")[1](logits)

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """The height and width that `pad` brings an image to."""
        rows, columns = (max(self.minimum, -(-side // self.stride) * self.stride) for side in (height, width))
        return rows, columns

    def pad(self, image: Tensor) -> Tensor:
        """Repeat the last row and column of [B, K, H, W] until `trunk` takes it; the image stays top left."""
        height, width = self.padded_size(image.shape[-2], image.shape[-1])
        below, right = height - image.shape[-2], width - image.shape[-1]
        if below == 0 and right == 0:
            return image
        return functional.pad(image, (0, right, 0, below), mode="replicate")

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, C, H, W] of images [B, K, H, W] of any size."""
        trunk = self.trunk(self.pad(image))
        mask = self.random_mask(trunk.features) if self.training else None
        logits = self.upsample(self.tail(trunk, mask))
        return logits[..., : image.shape[-2], : image.shape[-1]]

    def random_mask(self, features: Tensor) -> Tensor:
        """A dropout mask [B, F] for features [B, F, h, w], from the device's own generator."""
        keep = torch.empty(features.shape[:2], device=features.device, dtype=features.dtype)
        return keep.bernoulli_(1 - self.dropout) / (1 - self.dropout)

    def freeze_encoder(self) -> None:
        """Train the rest only. The encoder's BatchNorm and drop-path stay as in `eval` mode."""
        cast(Any, self.network).freeze_encoder()
        self.part("encoder").eval()

    def _encoder_stride(self) -> int:
        return max(int(self.part("encoder").output_stride), 1)

    def _after_dropout(self, features: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        return self.part("segmentation_head")[0](features)


class FpnSegmenter(Segmenter):
    """FPN, whose group normalisation needs more than one value a group."""

    smallest_map = 2


class PanSegmenter(Segmenter):
    """PAN, whose pyramid halves the last feature map three times."""

    smallest_map = 8


class DptSegmenter(Segmenter):
    """DPT, whose head has three layers before its dropout and whose encoder also gives tokens."""

    def trunk(self, image: Tensor) -> Trunk:
        features, tokens = self.part("encoder")(image)
        decoded = self.part("decoder")(features, tokens)
        return Trunk(features=self.part("segmentation_head").head[:4](decoded))

    @property
    def linear_head(self) -> nn.Conv2d:
        return self.part("segmentation_head").head[4]

    def upsample(self, logits: Tensor) -> Tensor:
        factor = self.part("segmentation_head").upsampling_factor
        return functional.interpolate(logits, scale_factor=factor, mode="bilinear", align_corners=True)

    def _encoder_stride(self) -> int:
        return 2 * max(self.part("encoder").output_strides)  # the decoder halves the last map once more

    def _after_dropout(self, features: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        return self.linear_head(features)


class DeepLabV3Segmenter(Segmenter):
    """DeepLabV3, whose dropout ends the spatial pyramid, before a block and the head."""

    def trunk(self, image: Tensor) -> Trunk:
        features = self.part("encoder")(image)
        return Trunk(features=self.part("decoder").aspp(features[-1]))

    @property
    def linear_head(self) -> None:
        return None

    def _after_dropout(self, features: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        decoder = self.part("decoder")
        decoded = decoder.relu(decoder.bn(decoder.conv(features)))
        return self.part("segmentation_head")[0](decoded)


class DeepLabV3PlusSegmenter(Segmenter):
    """DeepLabV3+, whose tail also sees the encoder's features at stride 4."""

    def trunk(self, image: Tensor) -> Trunk:
        features = self.part("encoder")(image)
        decoder = self.part("decoder")
        return Trunk(features=decoder.aspp[0](features[-1]), context=(decoder.block1(features[2]),))

    @property
    def linear_head(self) -> None:
        return None

    def _after_dropout(self, features: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        decoder = self.part("decoder")
        coarse = decoder.up(decoder.aspp[1:](features))
        (fine,) = context
        if fine.shape[0] != coarse.shape[0]:
            fine = fine.repeat(coarse.shape[0] // fine.shape[0], 1, 1, 1)
        decoded = decoder.block2(torch.cat([coarse, fine], dim=1))
        return self.part("segmentation_head")[0](decoded)


SEGMENTERS: dict[str, type[Segmenter]] = {
    "fpn": FpnSegmenter,
    "pan": PanSegmenter,
    "dpt": DptSegmenter,
    "deeplabv3": DeepLabV3Segmenter,
    "deeplabv3plus": DeepLabV3PlusSegmenter,
}
"""Where each architecture is split; the others are split before the convolution of their head."""


def split(
    network: nn.Module, *, architecture: str, num_classes: int, channels: int, dropout: float
) -> Segmenter:
    """An SMP network as a segmenter.

    Raises:
        ConfigError: the network cannot run, or its output is not as large as its input.
    """
    kind = SEGMENTERS.get(architecture, Segmenter)
    segmenter = kind(network, num_classes=num_classes, channels=channels, dropout=dropout)
    segmenter.probe()
    return segmenter


def _remove_dropouts(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.modules.dropout._DropoutNd):
            setattr(module, name, nn.Identity())
        else:
            _remove_dropouts(child)
