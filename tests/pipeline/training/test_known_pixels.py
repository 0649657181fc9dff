"""The loss of the known pixels alone is the loss of all pixels, and so is its gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.config import IGNORE, LossConfig
from pipeline.model.segmenter import Segmenter
from pipeline.training import known_pixels as module
from pipeline.training import loop
from pipeline.training.known_pixels import known_pixels
from pipeline.training.losses import segmentation_loss, shares
from tests.pipeline.model.test_segmenter import ARCHITECTURES, CLASSES, tiny
from tests.pipeline.training.test_loop import run

SIZE = 120, 152
"""Of crops that are padded before the encoder."""
PLAIN = ("unet", "unetplusplus", "linknet", "manet")
"""Architectures whose logits have the image's size."""
HARD: tuple[LossConfig, ...] = (
    LossConfig(),
    LossConfig(label_smoothing=0.1),
    LossConfig(focal_gamma=2.0),
    LossConfig(dice=0.5),
    LossConfig(cross_entropy=0.0, dice=1.0),
)
SOFT = (LossConfig(), LossConfig(label_smoothing=0.1), LossConfig(focal_gamma=1.5))
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.7])

pytestmark = pytest.mark.usefixtures("one_thread")


def labels() -> Tensor:
    """Two crops with some known rectangles at the corners and inside, and one without any."""
    label = torch.full((3, *SIZE), IGNORE)
    label[0, :30, :20] = torch.randint(CLASSES, (30, 20))
    label[0, 100:, 130:] = 1
    label[1, 40:70, 50:90] = torch.randint(CLASSES, (30, 40))
    return label


def known_in(target: Tensor) -> tuple[Tensor, Tensor]:
    found = known_pixels(target)
    assert found is not None
    return found


def loss_and_gradient(
    segmenter: Segmenter, target: Tensor, config: LossConfig, *, few: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """With the same crops and the same dropout."""
    torch.manual_seed(1)
    image = torch.randn(3, 3, *SIZE)
    segmenter.zero_grad()
    places, there = known_in(target) if few else (None, target)
    logits, _ = segmenter.forward_encoded(segmenter.encode(segmenter.pad(image)), SIZE, places=places)
    loss = segmentation_loss(logits, there, config, WEIGHTS)
    loss.backward()
    gradient = {name: p.grad for name, p in segmenter.named_parameters() if p.grad is not None}
    return loss.detach(), {name: value.clone() for name, value in gradient.items()}


@pytest.mark.parametrize("soft", [False, True])
def test_loss_and_gradient_of_an_fpn_are_those_of_all_pixels(soft: bool) -> None:
    segmenter = tiny("fpn")
    segmenter.train()
    for config in SOFT if soft else HARD:
        torch.manual_seed(0)
        target = shares(labels()[:, None], CLASSES, prior=0.3) if soft else labels()
        dense, gradient = loss_and_gradient(segmenter, target, config, few=False)
        loss, found = loss_and_gradient(segmenter, target, config, few=True)
        torch.testing.assert_close(loss, dense, atol=1e-5, rtol=1e-5)
        assert float(dense) > 0.1
        assert found.keys() == gradient.keys()
        longest = max(float(value.abs().max()) for value in gradient.values())
        for name, value in gradient.items():
            torch.testing.assert_close(
                found[name],
                value,
                atol=1e-5 * longest,
                rtol=1e-5,
                msg=lambda text, name=name: f"{name}: {text}",
            )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_single_logits_are_those_of_the_whole_image_wherever_they_are_interpolated(architecture: str) -> None:
    segmenter = tiny(architecture).eval()
    assert segmenter.interpolated == (architecture not in PLAIN)
    if not segmenter.interpolated:
        assert segmenter.logits_stride == 1
        return
    torch.manual_seed(0)
    image = torch.randn(2, 3, *SIZE)
    places = torch.randint(SIZE[0] * SIZE[1], (2, 500))
    places[:, :4] = torch.tensor([0, SIZE[1] - 1, (SIZE[0] - 1) * SIZE[1], SIZE[0] * SIZE[1] - 1])
    with torch.no_grad():
        encoded = segmenter.encode(segmenter.pad(image))
        whole, _ = segmenter.forward_encoded(encoded, SIZE)
        found, _ = segmenter.forward_encoded(encoded, SIZE, places=places)
    assert found.shape == (2, CLASSES, 1, 500)
    expected = whole.flatten(2).gather(2, places[:, None].expand(-1, CLASSES, -1))[:, :, None]
    assert expected.std() > 1e-4
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_known_pixels_are_all_of_them_and_the_rest_is_filled_with_nothing_known() -> None:
    label = torch.full((2, 4, 5), IGNORE)
    label[0, 0, 0], label[0, 2, 3], label[1, 3, 4] = 2, 0, 1
    places, target = known_in(label)
    assert places.tolist() == [[0, 13], [19, 0]]
    assert target.tolist() == [[[2, 0]], [[1, IGNORE]]]
    votes = shares(label[:, None], 3)
    places, target = known_in(votes)
    assert places.tolist() == [[0, 13], [19, 0]]
    assert target[:, :, 0].tolist() == [[[0, 1], [0, 0], [1, 0]], [[0, 0], [1, 0], [0, 0]]]


def test_without_any_known_pixel_there_is_still_a_loss_of_zero() -> None:
    places, target = known_in(torch.full((2, 4, 5), IGNORE))
    assert places.tolist() == [[0], [0]]
    assert float(segmentation_loss(torch.randn(2, 3, 1, 1), target, LossConfig(dice=1.0), None)) == 0


def test_many_known_pixels_are_not_looked_at_one_by_one() -> None:
    label = torch.full((2, 4, 5), IGNORE)
    label[1, :2] = 0
    assert known_pixels(label) is not None
    label[1, 2, 0] = 0
    assert known_pixels(label) is None


@pytest.mark.parametrize("freeze", [False, True])
def test_training_on_small_labels_ends_where_a_loss_of_all_pixels_leads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, freeze: bool
) -> None:
    model: dict[str, Any] = {"architecture": "fpn", "freeze_encoder": freeze}
    model["decoder"] = {"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32}
    settings: dict[str, Any] = {"model": model, "iterations": 3, "crop": (64, 64)}
    shapes: list[torch.Size] = []
    original = loop.segmentation_loss

    def watch(logits: Tensor, *others: Any) -> Tensor:
        shapes.append(logits.shape)
        return original(logits, *others)

    monkeypatch.setattr(loop, "segmentation_loss", watch)
    few, one = run(tmp_path / "few", **settings)
    assert {shape[2] for shape in shapes} == {1}
    monkeypatch.setattr(module, "MOST_KNOWN", -1)
    shapes.clear()
    all_pixels, other = run(tmp_path / "all", **settings)
    assert {shape[2:] for shape in shapes} == {(64, 64)}
    assert one.loss == pytest.approx(other.loss, rel=1e-4)
    mine, theirs = few.network.state_dict(), all_pixels.network.state_dict()
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-3, rtol=1e-3)
