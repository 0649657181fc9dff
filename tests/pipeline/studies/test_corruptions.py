"""Inputs that a network has not been trained on."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor

from pipeline.studies import corruptions
from pipeline.uncertainty.samplers import Normalisation

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
NORMAL = Normalisation(MEAN, STD)


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_pixels_survive_the_way_to_the_network_and_back() -> None:
    unit = image(2, 3, 5, 7)
    normalised = NORMAL.normalise(unit)
    expected = (unit.numpy() - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
    np.testing.assert_allclose(normalised.numpy(), expected, atol=1e-5)
    torch.testing.assert_close(NORMAL.pixels(normalised), unit)


def test_an_adversary_steps_up_the_loss_by_exactly_epsilon_and_stays_an_image() -> None:
    weight = torch.randn(4, 3, 1, 1, generator=seeded(1))
    unit = image(2, 3, 8, 8)
    unit[:, :, 0] = 1.0
    label = torch.randint(4, (2, 8, 8), generator=seeded(2))

    def logits_of(normalised: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(normalised, weight)

    def loss(normalised: Tensor) -> float:
        return float(torch.nn.functional.cross_entropy(logits_of(normalised), label))

    normalised = NORMAL.normalise(unit)
    steps = (1 / 255, 4 / 255)
    attacked = corruptions.fgsm(normalised, label, logits_of, strengths=steps, normalisation=NORMAL)
    assert loss(normalised) < loss(attacked[0]) < loss(attacked[1])
    for step, result in zip(steps, attacked, strict=True):
        moved = (NORMAL.pixels(result) - unit).abs()
        assert moved.max() <= step + 1e-6
        assert (moved[:, :, 1:] > step * 0.99).float().mean() > 0.95
        back = NORMAL.pixels(result)
        assert back.min() >= -1e-6
        assert back.max() <= 1 + 1e-6


def test_an_adversary_does_nothing_to_pixels_that_no_label_depends_on() -> None:
    normalised = image(1, 3, 4, 4)
    label = torch.full((1, 4, 4), 255)
    label[0, 0, 0] = 1
    (attacked,) = corruptions.fgsm(
        normalised, label, lambda z: z, strengths=[0.1], normalisation=Normalisation([0.0] * 3, [1.0] * 3)
    )
    changed = (attacked != normalised).any(dim=1)[0]
    assert changed[0, 0]
    assert int(changed.sum()) == 1


@pytest.mark.parametrize("sigma", [1.0, 2.0, 4.0])
def test_blur_is_a_gaussian_filter(sigma: float) -> None:
    unit = image(1, 2, 40, 48)
    expected = scipy.ndimage.gaussian_filter(
        unit.numpy().astype(float), sigma=(0, 0, sigma, sigma), mode="mirror", truncate=3.0
    )
    np.testing.assert_allclose(corruptions.blur(unit, sigma).numpy(), expected, atol=1e-4)


def test_blur_takes_an_image_smaller_than_its_kernel() -> None:
    assert corruptions.blur(image(1, 3, 6, 9), 4.0).shape == (1, 3, 6, 9)


def test_shuffled_patches_hold_the_same_pixels_elsewhere_and_repeat_from_a_seed() -> None:
    unit = image(2, 3, 32, 48)
    shuffled = corruptions.shuffle_patches(unit, 4, generator=seeded(3))
    assert torch.equal(shuffled, corruptions.shuffle_patches(unit, 4, generator=seeded(3)))
    assert not torch.equal(shuffled, corruptions.shuffle_patches(unit, 4, generator=seeded(4)))
    assert torch.equal(shuffled.flatten(2).sort()[0], unit.flatten(2).sort()[0])
    whole = {patch.numpy().tobytes() for patch in unit[0].unfold(1, 8, 8).unfold(2, 12, 12).flatten(1, 2)[0]}
    moved = {
        patch.numpy().tobytes() for patch in shuffled[0].unfold(1, 8, 8).unfold(2, 12, 12).flatten(1, 2)[0]
    }
    assert whole == moved


def test_shuffling_keeps_the_size_of_an_image_that_no_grid_fits() -> None:
    assert corruptions.shuffle_patches(image(1, 3, 33, 50), 4, generator=seeded(0)).shape == (1, 3, 33, 50)
    with pytest.raises(ValueError, match="at least 8 rows"):
        corruptions.shuffle_patches(image(1, 3, 5, 50), 8, generator=seeded(0))


@pytest.mark.parametrize(("kind", "spread"), [("uniform", 12**-0.5), ("gaussian", 0.25)])
def test_noise_is_an_image_without_structure(kind: str, spread: float) -> None:
    drawn = corruptions.noise(image(1, 3, 64, 64), kind, generator=seeded(0))
    assert float(drawn.min()) >= 0
    assert float(drawn.max()) <= 1
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(drawn.std()) == pytest.approx(spread, abs=0.015)
    neighbours = np.corrcoef(drawn[..., 1:].flatten(), drawn[..., :-1].flatten())[0, 1]
    assert abs(neighbours) < 0.05


def test_other_resolutions_keep_the_brightness() -> None:
    unit = image(1, 3, 40, 60)
    smaller, larger = corruptions.rescale(unit, 0.5), corruptions.rescale(unit, 1.5)
    assert smaller.shape[-2:] == (20, 30)
    assert larger.shape[-2:] == (60, 90)
    assert float(smaller.mean()) == pytest.approx(float(unit.mean()), abs=0.01)
    assert smaller.std() < unit.std() * 0.8  # antialiased, not dropped
