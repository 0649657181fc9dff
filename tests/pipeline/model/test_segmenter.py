"""The split network against plain SMP, for every architecture."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import nn

from pipeline.config import ModelConfig
from pipeline.errors import ConfigError
from pipeline.model.build import build_segmenter
from pipeline.model.segmenter import Segmenter

ARCHITECTURES: tuple[str, ...] = get_args(ModelConfig.model_fields["architecture"].annotation)
CLASSES = 4
SMALL: dict[str, dict[str, Any]] = {
    "dpt": {"decoder_fusion_channels": 16, "decoder_intermediate_channels": [8, 8, 16, 16]},
    "fpn": {"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32},
    "manet": {"decoder_channels": [32, 16, 16, 16, 16], "decoder_pab_channels": 8},
    "deeplabv3": {"decoder_channels": 16},
    "deeplabv3plus": {"decoder_channels": 16},
}


def tiny_config(architecture: str, **changes: Any) -> ModelConfig:
    encoder = "tu-vit_tiny_patch16_224" if architecture == "dpt" else "tu-mobilenetv3_small_050"
    settings = {
        "architecture": architecture,
        "encoder": encoder,
        "encoder_weights": "none",
        "decoder": SMALL.get(architecture, {}),
        "dropout": 0.5,
    }
    return ModelConfig.model_validate(settings | changes)


def tiny(architecture: str, *, channels: int = 3, **changes: Any) -> Segmenter:
    """A copy of its own, with torch's generator as it is after building."""
    segmenter, state = _built(tiny_config(architecture, **changes).model_dump_json(), channels)
    torch.set_rng_state(state)
    return copy.deepcopy(segmenter)


@cache
def _built(config: str, channels: int) -> tuple[Segmenter, torch.Tensor]:
    """Built once: this takes longer than most of the tests."""
    torch.manual_seed(0)
    model = ModelConfig.model_validate_json(config)
    segmenter = build_segmenter(model, num_classes=CLASSES, channels=channels, root=Path())
    segmenter.train()  # one look at noise, so that no activation vanishes in eval mode
    with torch.no_grad():
        segmenter.network(torch.randn(2, channels, 128, 128))
    return segmenter, torch.get_rng_state()


def plain_smp(architecture: str, segmenter: Segmenter) -> nn.Module:
    config = tiny_config(architecture)
    extra = {"dynamic_img_size": True} if architecture == "dpt" else {}
    network = smp.create_model(
        architecture, config.encoder, encoder_weights=None, classes=CLASSES, **config.decoder, **extra
    )
    network.load_state_dict(segmenter.network.state_dict())
    return network.eval()


def mask_for(segmenter: Segmenter, batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    keep = torch.rand(batch, segmenter.mask_channels, generator=generator) > segmenter.dropout
    return keep / (1 - segmenter.dropout)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_trunk_tail_and_upsampling_equal_the_plain_network(architecture: str) -> None:
    segmenter = tiny(architecture).eval()
    image = torch.randn(2, 3, 128, 160)

    with torch.no_grad():
        expected = plain_smp(architecture, segmenter)(image)
        logits = segmenter.tail(segmenter.trunk(image))
        ours = segmenter.upsample(logits)

    assert expected.std() > 1e-4
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    assert logits.shape[-2:] == (128 // segmenter.logits_stride, 160 // segmenter.logits_stride)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_masked_tail_equals_a_whole_pass_with_that_mask(architecture: str) -> None:
    segmenter = tiny(architecture).eval()
    image = torch.randn(2, 3, 128, 128)
    mask = mask_for(segmenter, 2)
    plain = plain_smp(architecture, segmenter)
    position = {
        "deeplabv3": "decoder.aspp.project.3",
        "deeplabv3plus": "decoder.aspp.0.project.3",
        "dpt": "segmentation_head.head.3",
        "fpn": "decoder.dropout",
        "pspnet": "decoder.dropout",
    }.get(architecture, "decoder")

    def drop(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output * mask[:, :, None, None]

    plain.get_submodule(position).register_forward_hook(drop)
    with torch.no_grad():
        trunk = segmenter.trunk(image)
        before = trunk.features.clone()
        ours = segmenter.upsample(segmenter.tail(trunk, mask))
        whole = plain(image)
        without = segmenter.upsample(segmenter.tail(trunk))

    torch.testing.assert_close(ours, whole, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours, without)
    assert torch.equal(trunk.features, before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_linear_head_is_the_whole_tail(architecture: str) -> None:
    segmenter = tiny(architecture).eval()
    head = segmenter.linear_head
    if architecture in ("deeplabv3", "deeplabv3plus"):
        assert head is None
        return
    with torch.no_grad():
        trunk = segmenter.trunk(torch.randn(1, 3, 128, 128))
        mask = mask_for(segmenter, 1)
        masked = copy.deepcopy(head)
        assert masked is not None
        masked.weight.mul_(mask[0][None, :, None, None])
        torch.testing.assert_close(masked(trunk.features), segmenter.tail(trunk, mask), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_the_one_dropout_is_left_and_it_works_in_train_mode_only(architecture: str) -> None:
    segmenter = tiny(architecture)
    dropouts = [m for m in segmenter.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
    on_path = [
        *segmenter.part("decoder").modules(),
        *segmenter.part("segmentation_head").modules(),
    ]
    assert not any(module.inplace for module in dropouts)
    assert not any(isinstance(module, nn.modules.dropout._DropoutNd) for module in on_path)

    image = torch.randn(1, 3, 128, 128)
    segmenter.eval()
    with torch.no_grad():
        assert torch.equal(segmenter(image), segmenter(image))
        segmenter.training = True  # this module alone: the network's own layers stay in eval
        assert not torch.equal(segmenter(image), segmenter(image))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("size", [(1, 1), (33, 70)])
def test_images_of_any_size_are_padded_and_cropped_back(architecture: str, size: tuple[int, int]) -> None:
    segmenter = tiny(architecture).eval()
    with torch.no_grad():
        logits = segmenter(torch.randn(1, 3, *size))
    assert logits.shape == (1, CLASSES, *size)
    assert torch.isfinite(logits).all()


def test_padding_repeats_the_border_and_keeps_the_image_in_the_corner() -> None:
    segmenter = tiny("fpn")
    image = torch.arange(6.0).reshape(1, 1, 2, 3).repeat(1, 3, 1, 1)
    padded = segmenter.pad(image)
    assert padded.shape[-2:] == (64, 64)
    assert torch.equal(padded[..., :2, :3], image)
    assert padded[0, 0, 63, 63] == image[0, 0, 1, 2]


def test_a_frozen_encoder_neither_learns_nor_moves_its_statistics() -> None:
    segmenter = tiny("fpn", freeze_encoder=True)
    before = copy.deepcopy(segmenter.part("encoder").state_dict())
    decoder = copy.deepcopy(segmenter.part("decoder").state_dict())
    segmenter.train()
    optimizer = torch.optim.AdamW([p for p in segmenter.parameters() if p.requires_grad], lr=0.1)
    segmenter(torch.randn(2, 3, 64, 64)).square().mean().backward()
    optimizer.step()
    after = segmenter.part("encoder").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(not torch.equal(decoder[n], v) for n, v in segmenter.part("decoder").state_dict().items())


def test_a_decoder_that_does_not_end_at_the_image_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="Change `model.decoder`"):
        tiny("fpn", decoder={"upsampling": 2})
