"""Networks whose channels drop in several stages of the decoder: `model.placement: deep`.

Legend: B batch, C classes.

The deep stages drop, as in the central placement of Kendall et al. (2015), and the features under the final
layer too. The encoder, and all of the decoder that no dropout reaches, still run once an image: what is
expensive and shallow is shared, what is deep and small runs once a sample.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from pipeline.model.architectures import DeepLabV3PlusSegmenter, DeepLabV3Segmenter, FpnSegmenter
from pipeline.model.segmenter import ChannelDrop, Segmenter, Trunk, for_samples

DROPPED_BLOCKS = 3
"""Blocks of a U-shaped decoder, from the deepest on, whose output drops."""


class DeepSegmenter(Segmenter):
    """A segmenter whose tail is more than one convolution."""

    @property
    def linear_head(self) -> None:
        return None


class DeepFpn(DeepSegmenter, FpnSegmenter):
    """FPN: its pyramid drops at strides 32, 16 and 8, before the segmentation blocks. The block at stride 4,
    more than half of the decoder's work, runs once."""

    def _shared(self, encoded: Any) -> Trunk:
        decoder = self.part("decoder")
        c2, c3, c4, c5 = encoded[-4:]
        p5 = decoder.p5(c5)
        p4 = decoder.p4(p5, c4)
        p3 = decoder.p3(p4, c3)
        return Trunk(features=p5, context=(p4, p3, decoder.seg_blocks[3](decoder.p2(p3, c2))))

    def _decode(self, trunk: Trunk, drop: ChannelDrop) -> Tensor:
        decoder = self.part("decoder")
        *coarse, finest = trunk.context
        maps = [
            self._block(block.block, drop, pyramid)
            for block, pyramid in zip(decoder.seg_blocks, (trunk.features, *coarse), strict=False)
        ]
        return drop(decoder.merge([*maps, for_samples(finest, maps[0])]))

    def _block(self, layers: Any, drop: ChannelDrop, pyramid: Tensor) -> Tensor:
        first = layers[0]
        convolution, *rest = first.block
        features = drop.convolve(convolution, pyramid)
        for layer in rest:
            features = layer(features)
        if first.upsample:
            features = functional.interpolate(features, scale_factor=2.0, mode="bilinear", align_corners=True)
        return layers[1:](features)


class DeepUnet(DeepSegmenter):
    """A U-shaped decoder: the outputs of its three deepest blocks drop."""

    def _shared(self, encoded: Any) -> Trunk:
        head, *skips = encoded[1:][::-1]
        centre = getattr(self.part("decoder"), "center", nn.Identity())
        # The decoder's last map is as large as the image itself, which the encoder gives first
        shared = (*skips, encoded[0][:, :0])
        first = self._run_block(0, centre(head), shared)
        return Trunk(features=first, context=shared)

    def _decode(self, trunk: Trunk, drop: ChannelDrop) -> Tensor:
        features = drop(trunk.features)
        for index in range(1, len(self.part("decoder").blocks)):
            features = self._run_block(index, features, trunk.context)
            if index < DROPPED_BLOCKS:
                features = drop(features)
        return drop(features)

    def _run_block(self, index: int, features: Tensor, shared: tuple[Tensor, ...]) -> Tensor:
        """Block `index`, whose skip connection is shared by all samples."""
        *skips, _ = shared
        skip = for_samples(skips[index], features) if index < len(skips) else None
        return self._call(index, features, skip, tuple(shared[index].shape[-2:]))

    def _call(self, index: int, features: Tensor, skip: Tensor | None, size: tuple[int, ...]) -> Tensor:
        return self.part("decoder").blocks[index](features, *size, skip_connection=skip)


class DeepLinknet(DeepUnet):
    """Linknet and MAnet, whose blocks find their own size."""

    def _call(self, index: int, features: Tensor, skip: Tensor | None, size: tuple[int, ...]) -> Tensor:
        return self.part("decoder").blocks[index](features, skip)


class DeepPspNet(DeepSegmenter):
    """PSPNet: the pooled pyramid drops, and what is made of it."""

    def _shared(self, encoded: Any) -> Trunk:
        return Trunk(features=self.part("decoder").psp(encoded[-1]))

    def _decode(self, trunk: Trunk, drop: ChannelDrop) -> Tensor:
        return drop(self.part("decoder").conv(drop(trunk.features)))


class DeepSegformer(DeepSegmenter):
    """Segformer: the maps of all stages drop before they are fused, and what is made of them."""

    def _shared(self, encoded: Any) -> Trunk:
        collected: list[Tensor] = []
        fuse = self.part("decoder").fuse_stage
        # The decoder's own code up to its last stage, which is handed the maps and returns them
        hook = fuse.register_forward_pre_hook(lambda _module, inputs: collected.append(inputs[0]))
        try:
            self.part("decoder")(encoded)
        finally:
            hook.remove()
        return Trunk(features=collected[0])

    def _decode(self, trunk: Trunk, drop: ChannelDrop) -> Tensor:
        return drop(self.part("decoder").fuse_stage(drop(trunk.features)))


class DeepDeepLabV3(DeepLabV3Segmenter):
    """DeepLabV3: also what follows the spatial pyramid drops."""

    def _decode(self, trunk: Trunk, drop: ChannelDrop) -> Tensor:
        return drop(super()._decode(trunk, drop))


class DeepDeepLabV3Plus(DeepLabV3PlusSegmenter):
    """DeepLabV3+: also the fused features drop."""

    def _decode(self, trunk: Trunk, drop: ChannelDrop) -> Tensor:
        return drop(super()._decode(trunk, drop))


DEEP: dict[str, type[Segmenter]] = {
    "fpn": DeepFpn,
    "unet": DeepUnet,
    "manet": DeepLinknet,
    "linknet": DeepLinknet,
    "pspnet": DeepPspNet,
    "segformer": DeepSegformer,
    "deeplabv3": DeepDeepLabV3,
    "deeplabv3plus": DeepDeepLabV3Plus,
}
"""Architectures that offer `placement: deep`."""
