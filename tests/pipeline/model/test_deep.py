"""Dropout in several stages of the decoder, against whole passes of the plain network with hooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.model.build import build_segmenter
from pipeline.model.deep import DEEP
from pipeline.uncertainty.samplers import draw_masks
from tests.pipeline.model.test_segmenter import ARCHITECTURES, CLASSES, plain_smp, tiny, tiny_config

U_SHAPED = ["decoder.blocks.0", "decoder.blocks.1", "decoder.blocks.2", "decoder"]
SITES = {
    "fpn": ["<decoder.seg_blocks.0", "<decoder.seg_blocks.1", "<decoder.seg_blocks.2", "decoder.merge"],
    "unet": U_SHAPED,
    "manet": U_SHAPED,
    "linknet": U_SHAPED,
    "pspnet": ["decoder.psp", "decoder"],
    "segformer": ["<decoder.fuse_stage", "decoder"],
    "deeplabv3": ["decoder.aspp", "decoder"],
    "deeplabv3plus": ["decoder.aspp.0", "decoder"],
}
"""Modules of the plain network whose output drops; with `<`, whose input drops."""


class DroppingNetwork:
    """The plain network with a mask a site in one pass."""

    def __init__(self, plain: nn.Module, sites: list[str]) -> None:
        self.plain = plain
        self.masks: list[Tensor] = []
        for index, name in enumerate(sites):
            module = plain.get_submodule(name.removeprefix("<"))
            if name.startswith("<"):
                module.register_forward_pre_hook(lambda _m, given, i=index: (self._drop(given[0], i),))
            else:
                module.register_forward_hook(lambda *given, i=index: self._drop(given[-1], i))

    def __call__(self, image: Tensor, masks: Any) -> Tensor:
        self.masks = list(masks)
        return self.plain(image)

    def _drop(self, features: Tensor, index: int) -> Tensor:
        return features * self.masks[index][None, :, None, None]


@pytest.mark.parametrize("p", [0.2, 0.7])
@pytest.mark.parametrize("architecture", list(DEEP))
def test_samples_from_one_trunk_equal_whole_passes_with_the_same_masks(architecture: str, p: float) -> None:
    segmenter = tiny(architecture, placement="deep").eval()
    whole = DroppingNetwork(plain_smp(architecture, segmenter), SITES[architecture])
    masks = draw_masks(3, segmenter.sites, p=p, seed=0)
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        logits = segmenter.tail(segmenter.trunk(image), masks.repeat_interleave(2, dim=0))
        samples = segmenter.upsample(logits).unflatten(0, (3, 2))
        assert len(SITES[architecture]) == len(segmenter.sites)
        for sample, mask in zip(samples, masks, strict=True):
            expected = whole(image, mask.split(list(segmenter.sites)))
            assert (sample - expected).abs().max() < 1e-5 * expected.abs().max()
    assert not torch.allclose(samples[0], samples[1])


@pytest.mark.parametrize("architecture", ["fpn", "unet", "deeplabv3plus"])
def test_in_training_each_image_drops_its_own_channels_at_every_site(architecture: str) -> None:
    segmenter = tiny(architecture, placement="deep", freeze_encoder=True)
    image = torch.randn(1, 3, 64, 64).repeat(2, 1, 1, 1)
    segmenter.train()
    first, second = segmenter(image)
    assert not torch.allclose(first, second)
    segmenter(image).square().mean().backward()
    decoder = segmenter.part("decoder")
    assert all(parameter.grad is not None for parameter in decoder.parameters())
    segmenter.eval()
    with torch.no_grad():
        first, second = segmenter(image)
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - set(DEEP)))
def test_other_architectures_refuse_with_the_key_to_change(architecture: str) -> None:
    config = tiny_config(architecture, placement="deep")
    with pytest.raises(ConfigError, match=r"Set `placement: head`"):
        build_segmenter(config, num_classes=CLASSES, channels=3, root=Path())
