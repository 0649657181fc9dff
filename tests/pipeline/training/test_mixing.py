"""Mixed crops: what is blended or pasted, and that it can be drawn again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.config import TrainingConfig
from pipeline.training.losses import shares
from pipeline.training.mixing import mix

CLASSES = 4


def config(kind: str, **settings: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({"mix": kind, "mix_alpha": 1.0, **settings})


def batch() -> tuple[Tensor, Tensor]:
    """Crops [4, 3, 12, 16], each of one brightness, labeled with its number; crop 3 is unknown."""
    numbers = torch.arange(4.0)
    image = numbers[:, None, None, None].expand(4, 3, 12, 16).contiguous()
    label = torch.arange(4)[:, None, None].expand(4, 12, 16).contiguous()
    label[3] = 255
    return image, label


def mixed(
    kind: str, iteration: int = 0, target: Tensor | None = None, **settings: Any
) -> tuple[Tensor, Tensor]:
    image, label = batch()
    return mix(
        image,
        label if target is None else target,
        config(kind, **settings),
        num_classes=CLASSES,
        iteration=iteration,
    )


def test_without_mixing_nothing_is_copied() -> None:
    image, label = batch()
    same = mix(image, label, config("none"), num_classes=CLASSES, iteration=3)
    assert same[0] is image
    assert same[1] is label


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_what_is_drawn_depends_on_seed_and_iteration_only(kind: str) -> None:
    first = mixed(kind, 5)
    torch.rand(7)
    np.random.default_rng().random()
    again = mixed(kind, 5)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert not torch.equal(first[0], mixed(kind, 6)[0])
    assert not torch.equal(first[0], mixed(kind, 5, seed=1)[0])


def test_mixing_takes_no_number_from_the_dropout_s_generator() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    mixed("mixup")
    mixed("cutmix")
    assert torch.equal(torch.rand(3), expected)


def test_mixup_blends_image_and_target_by_the_same_share() -> None:
    for iteration in range(20):
        image, target = mixed("mixup", iteration)
        for crop in range(3):
            weight = target[crop, :, 0, 0]
            assert (target[crop] == weight[:, None, None]).all()
            partner = [c for c in range(3) if c != crop and weight[c] > 0]
            second = partner[0] if partner else 3  # the unknown crop adds brightness, but no class
            expected = weight[crop] * crop + (1 - weight[crop]) * second
            assert float(image[crop, 0, 0, 0]) == pytest.approx(float(expected), abs=1e-5)


def test_a_pixel_known_in_one_crop_only_counts_by_that_crop_s_share() -> None:
    totals = torch.cat([mixed("mixup", iteration)[1].sum(dim=1)[:, 0, 0] for iteration in range(30)])
    assert float(totals.max()) == pytest.approx(1.0)
    assert ((totals > 0.01) & (totals < 0.99)).any()
    image, label = batch()
    _, target = mix(image, torch.full_like(label, 255), config("mixup"), num_classes=CLASSES, iteration=0)
    assert float(target.sum()) == 0


def test_cutmix_pastes_pixels_with_their_label_and_keeps_hard_labels_hard() -> None:
    pasted = 0
    for iteration in range(20):
        image, label = mixed("cutmix", iteration)
        assert label.dtype == torch.int64
        seen = torch.where(image[:, 0] == 3, 255, image[:, 0].long())
        assert torch.equal(seen, label)
        for crop in range(4):
            other = (image[crop, 0] != crop).nonzero()
            if len(other):
                (top, left), (bottom, right) = other.amin(0).tolist(), other.amax(0).tolist()
                assert len(other) == (bottom - top + 1) * (right - left + 1)  # one whole box
                assert len(image[crop, 0].unique()) <= 2
                pasted += 1
    assert pasted > 40


def test_cutmix_pastes_soft_labels_too() -> None:
    image, label = batch()
    soft = shares(label[:, None], CLASSES)
    for iteration in range(5):
        _, hard = mixed("cutmix", iteration)
        _, mixed_soft = mixed("cutmix", iteration, target=soft)
        assert torch.equal(mixed_soft, shares(hard[:, None], CLASSES))
    assert torch.equal(image, batch()[0])


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_the_share_of_the_second_crop_follows_its_beta_distribution(alpha: float) -> None:
    drawn = []
    for iteration in range(200):
        _, target = mixed("mixup", iteration, mix_alpha=alpha)
        drawn += [1 - float(target[crop, crop, 0, 0]) for crop in range(3)]
    share = np.array(drawn)
    assert share.mean() == pytest.approx(0.5, abs=0.04)
    assert share.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.15)
