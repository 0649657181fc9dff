"""A segmentation network that is split at its dropout: the trunk runs once, the tail once a sample.

Legend: B batch, K image channels, C classes, F channels at all dropouts together, H W image size, h w size
at the network's own stride. Everything before the first dropout is the *trunk*, everything after it the
*tail*; the network's own upsampling comes last, apart. The network itself stays as it was built by SMP
(segmentation-models-pytorch), with its state dict's names, except that its own dropouts are gone: the only
ones left are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import ConfigError
from pipeline.model.heads import SlimHeads

FINEST_STRIDE = 4
"""Image pixels a cell of the finest map that the slim heads look at, along one side."""
HEADS = "heads."
"""How the names of the heads' weights begin."""


@dataclass(frozen=True)
class Trunk:
    """What is computed once for an image.

    Attributes:
        features: [B, F', h', w'], the tensor that the first dropout masks.
        context: further tensors that the tail needs, of B images.
        pyramid: the encoder's maps that the slim heads look at; empty without heads.
    """

    features: Tensor
    context: tuple[Tensor, ...] = ()
    pyramid: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Lattice:
    """Which cells of the logits are computed: every `every`-th along each side, from the cells of `offset`
    (row, column) on."""

    every: int = 1
    offset: tuple[int, int] = (0, 0)


ALL_CELLS = Lattice()


class ChannelDrop:
    """The channel dropouts (Tompson et al. 2015) of one pass, each with its share of one mask.

    Called at each place in turn, it multiplies features [B, F', h, w] with the mask's next F' columns. A mask
    of t·B rows, sample by sample and each the same for all B, makes t·B maps of B. Without a mask it changes
    nothing.

    Attributes:
        channels: F' of each place so far.
    """

    def __init__(self, mask: Tensor | None) -> None:
        self.channels: list[int] = []
        self._mask = mask

    def __call__(self, features: Tensor) -> Tensor:
        start = sum(self.channels)
        self.channels.append(features.shape[1])
        if self._mask is None:
            return features
        factor = self._mask[:, start : start + features.shape[1], None, None]
        batch = features.shape[0]
        if len(factor) <= batch:
            return features * factor
        return (features * factor.unflatten(0, (-1, batch))).flatten(0, 1)

    def convolve(self, layer: nn.Conv2d, features: Tensor) -> Tensor:
        """`layer(self(features))`, for a convolution without groups.

        The layer is linear, so samples of the same features cost one convolution of all channels, and one
        each of the channels that the sample drops (or keeps, where these are fewer).
        """
        batch = features.shape[0]
        if self._mask is None or len(self._mask) <= batch:
            return layer(self(features))
        start = sum(self.channels)
        self.channels.append(features.shape[1])
        factors = self._mask[::batch, start : start + features.shape[1]]
        scale = float(factors.max())
        whole = _convolved(layer, features, slice(None)) * scale
        maps: list[Tensor] = []
        for factor in factors:
            kept, lost = factor.nonzero().squeeze(1), (factor == 0).nonzero().squeeze(1)
            if len(kept) <= len(lost):
                maps.append(_convolved(layer, features, kept) * scale)
            elif len(lost):
                maps.append(torch.sub(whole, _convolved(layer, features, lost), alpha=scale))
            else:
                maps.append(whole)
        stacked = torch.cat(maps)
        return stacked if layer.bias is None else stacked + layer.bias[:, None, None]


def _convolved(layer: nn.Conv2d, features: Tensor, channels: Tensor | slice) -> Tensor:
    """What the layer makes of some channels, without its bias."""
    return functional.conv2d(
        features[:, channels],
        layer.weight[:, channels],
        None,
        layer.stride,
        layer.padding,
        layer.dilation,
    )


class Segmenter(nn.Module):
    """An SMP network with channel dropout on its segmentation path.

    In `train` mode `forward` drops channels once, at random, apart for each image; in `eval` mode nothing is
    random. Stochastic passes in `eval` mode come from `tail` with masks.

    Attributes:
        num_classes: C.
        channels: K.
        dropout: probability p that a channel is dropped.
        heads: slim heads beside the network; None for none.
        sites: channels at each dropout, in the order of the pass; F is their sum.
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
        self.heads: SlimHeads | None = None
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
        """Run a blank image through, to learn `sites` and `logits_stride`.

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
                drop = ChannelDrop(None)
                logits = self.final_layer(self._decode(self.trunk(blank), drop))
                output = self.upsample(logits)
            except (
                RuntimeError,
                AssertionError,
            ) as error:  # shapes that do not fit, in SMP's or timm's layers
                raise ConfigError(
                    f"The network cannot be run on an image of {side}×{side}: {error}",
                    "Some encoders (MaxViT, CoAtNet, ViT) take images of one size only; Swin takes any with "
                    "`model.decoder: {strict_img_size: false}`. Or choose another `model.encoder`, such as "
                    "`resnet34` or `tu-convnext_tiny`, or another `model.decoder`.",
                ) from error
        self.train(training)
        if output.shape[-2:] != blank.shape[-2:]:
            raise ConfigError(
                f"The decoder's output is {output.shape[-1]} pixels wide for an image of {side}.",
                "Change `model.decoder` so that the network ends at the image's size.",
            )
        self.sites = tuple(drop.channels)
        self.logits_stride = side // logits.shape[-1]

    def trunk(self, image: Tensor) -> Trunk:
        """Everything before the first dropout.

        Args:
            image: float [B, K, H, W], normalised; H and W as `pad` leaves them.
        """
        return self.trunk_of(self.encode(image))

    def encode(self, image: Tensor) -> Any:
        """The encoder's output for images as `trunk` takes them: its maps [B, F', h', w'], finest first, the
        image itself as the first; of some encoders more than that."""
        return self.part("encoder")(image)

    def trunk_of(self, encoded: Any) -> Trunk:
        """The trunk, from the encoder's output."""
        trunk = self._shared(encoded)
        return trunk if self.heads is None else replace(trunk, pyramid=self.pyramid(encoded))

    def tail(self, trunk: Trunk, mask: Tensor | None = None, lattice: Lattice = ALL_CELLS) -> Tensor:
        """Everything after the first dropout, at the network's own stride.

        Args:
            trunk: of B images.
            mask: [B, F], [1, F] or [t·B, F] sample by sample: 0 for a dropped channel and 1/(1−p) for a kept
                one. None: no dropout.
            lattice: the cells to compute.

        Returns:
            Logits [B, C, h, w], or [t·B, C, h, w].
        """
        return final_logits(self.final_layer, self._decode(trunk, ChannelDrop(mask)), lattice)

    def head_logits(self, trunk: Trunk) -> Tensor:
        """The slim heads' logits [K, B, C, h, w], at the stride of the finest map that they see.

        Raises:
            ValueError: there are no heads.
        """
        if self.heads is None:
            raise ValueError("Expected a network with slim heads, but it has none.")
        return self.heads(trunk.pyramid)

    @property
    def mask_channels(self) -> int:
        """F, the length of a dropout mask."""
        return sum(self.sites)

    @property
    def final_layer(self) -> nn.Conv2d:
        """The convolution that ends the tail."""
        return self.part("segmentation_head")[0]

    @property
    def linear_head(self) -> nn.Conv2d | None:
        """The convolution that is all of the tail, where that is so: a channel mask is then a factor of its
        weight, and T samples are one convolution with T·C output channels."""
        return self.final_layer

    def upsample(self, logits: Tensor) -> Tensor:
        """The network's own upsampling: [B, C, h, w] to [B, C, H, W]."""
        return self.part("segmentation_head")[1](logits)

    @property
    def interpolated(self) -> bool:
        """Whether the network's own upsampling is bilinear interpolation with aligned corners."""
        layer = self.part("segmentation_head")[1]
        return isinstance(layer, nn.Upsample) and layer.mode == "bilinear" and bool(layer.align_corners)

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        """The height and width that `pad` brings an image to."""
        rows, columns = (max(self.minimum, -(-side // self.stride) * self.stride) for side in (height, width))
        return rows, columns

    def pad(self, image: Tensor) -> Tensor:
        """Repeat the last row and column of [B, K, H, W] until `trunk` takes it; the image stays top left."""
        return self.pad_to(image, self.padded_size(image.shape[-2], image.shape[-1]))

    def pad_to(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """The same until [B, K, H, W] have `size`."""
        below, right = size[0] - image.shape[-2], size[1] - image.shape[-1]
        if below == 0 and right == 0:
            return image
        return functional.pad(image, (0, right, 0, below), mode="replicate")

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, C, H, W] of images [B, K, H, W] of any size."""
        return self._logits(self.trunk(self.pad(image)), (image.shape[-2], image.shape[-1]))

    def forward_heads(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `forward`, and the slim heads' logits [K, B, C, h, w] of the padded images; None without heads.
        No gradient of the heads reaches the network."""
        return self.forward_encoded(self.encode(self.pad(image)), (image.shape[-2], image.shape[-1]))

    def forward_encoded(
        self, encoded: Any, size: tuple[int, int], *, places: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As `forward_heads`, of what `encode` gives for the padded images.

        Args:
            size: height and width of the images.
            places: int64 [B, P], pixels of each image, row · width + column: the logits are float32
                [B, C, 1, P], of these pixels only. The network must be `interpolated`.
        """
        trunk = self.trunk_of(encoded)
        logits = self._logits(trunk, size) if places is None else self._logits_at(trunk, size, places)
        return logits, None if self.heads is None else self.head_logits(trunk)

    def random_mask(self, features: Tensor) -> Tensor:
        """A dropout mask [B, F] for features [B, …], from the device's own generator."""
        shape = (features.shape[0], self.mask_channels)
        keep = torch.empty(shape, device=features.device, dtype=features.dtype)
        return keep.bernoulli_(1 - self.dropout) / (1 - self.dropout)

    def add_heads(self, count: int) -> None:
        """Put `count` slim heads with new weights on the encoder. The global generator stays as it is."""
        training = self.training
        self.eval()
        parameter = next(self.parameters())
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            blank = torch.zeros(1, self.channels, self.minimum, self.minimum, device=parameter.device)
            maps = self.pyramid(self.encode(blank))
            heads = SlimHeads([part.shape[1] for part in maps], count=count, num_classes=self.num_classes)
        self.heads = heads.to(parameter.device)
        self.train(training)

    def pyramid(self, encoded: Any) -> tuple[Tensor, ...]:
        """The encoder's maps from stride 4 on, finest first."""
        side = encoded[0].shape[-1]
        maps = [part for part in encoded[1:] if part.shape[1] and part.shape[-1] * FINEST_STRIDE <= side]
        return tuple(maps)

    def image_features(self, image: Tensor) -> Tensor:
        """Mean over all places of the encoder's deepest map: [B, F'] of padded images, to compare images."""
        return self.pyramid(self.encode(image))[-1].float().mean(dim=(-2, -1))

    def weights(self) -> dict[str, Tensor]:
        """All that is learnt, by SMP's names; the heads' begin with `heads.`."""
        state: dict[str, Tensor] = dict(self.network.state_dict())
        if self.heads is not None:
            state |= {f"{HEADS}{name}": value for name, value in self.heads.state_dict().items()}
        return state

    def load_weights(self, state: dict[str, Tensor]) -> None:
        """Put what `weights` gave into this network.

        Raises:
            RuntimeError: names or shapes differ.
        """
        heads = {name.removeprefix(HEADS): v for name, v in state.items() if name.startswith(HEADS)}
        rest = {name: value for name, value in state.items() if not name.startswith(HEADS)}
        self.network.load_state_dict(rest, strict=True)
        if self.heads is not None:
            self.heads.load_state_dict(heads, strict=True)
        elif heads:
            raise RuntimeError(f"{len(heads)} tensors belong to heads that this network does not have.")

    def freeze_encoder(self) -> None:
        """Train the rest only. The encoder's BatchNorm and drop-path stay as in `eval` mode."""
        cast(Any, self.network).freeze_encoder()
        self.part("encoder").eval()

    def _encoder_stride(self) -> int:
        return max(int(self.part("encoder").output_stride), 1)

    def _logits(self, trunk: Trunk, size: tuple[int, int]) -> Tensor:
        return self.upsample(self._cells(trunk))[..., : size[0], : size[1]]

    def _logits_at(self, trunk: Trunk, size: tuple[int, int], places: Tensor) -> Tensor:
        """What `_logits` gives at some pixels [B, P], as [B, C, 1, P], without the other pixels."""
        cells = self._cells(trunk).float().contiguous()
        last = [side * self.logits_stride - 1 for side in cells.shape[-2:]]
        row, column = places // size[1], places % size[1]
        grid = torch.stack([column * (2 / last[1]) - 1, row * (2 / last[0]) - 1], dim=-1)[:, None]
        return functional.grid_sample(cells, grid, mode="bilinear", padding_mode="border", align_corners=True)

    def _cells(self, trunk: Trunk) -> Tensor:
        """The logits [B, C, h, w] of one pass, with dropout in `train` mode."""
        return self.tail(trunk, self.random_mask(trunk.features) if self.training else None)

    def _shared(self, encoded: Any) -> Trunk:
        """The trunk, from the encoder's output."""
        return Trunk(features=self.part("decoder")(encoded))

    def _decode(self, trunk: Trunk, drop: ChannelDrop) -> Tensor:
        """The features under the final layer, dropped where the network drops."""
        return drop(trunk.features)


def final_logits(layer: nn.Conv2d, features: Tensor, lattice: Lattice) -> Tensor:
    """A convolution of stride 1, evaluated on the lattice alone."""
    if lattice == ALL_CELLS:
        return layer(features)
    padded = pad_for(layer, features)[..., lattice.offset[0] :, lattice.offset[1] :]
    return functional.conv2d(padded, layer.weight, layer.bias, lattice.every, 0, layer.dilation)


def pad_for(layer: nn.Conv2d, features: Tensor) -> Tensor:
    """Features with the convolution's zero padding around them."""
    below, right = (int(side) for side in layer.padding)
    return functional.pad(features, (right, right, below, below)) if below or right else features


def for_samples(shared: Tensor, sampled: Tensor) -> Tensor:
    """Maps [B, …] once for each sample of [t·B, …]."""
    return shared.repeat(sampled.shape[0] // shared.shape[0], 1, 1, 1)


def _remove_dropouts(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.modules.dropout._DropoutNd):
            setattr(module, name, nn.Identity())
        else:
            _remove_dropouts(child)
