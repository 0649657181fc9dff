"""The losses: what they count, where their minimum lies, and that soft targets agree with hard ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config import LossConfig
from pipeline.training.losses import dice_loss, segmentation_loss, shares

WEIGHTS = torch.tensor([0.5, 2.0, 1.0])
LOSSES = [
    LossConfig(),
    LossConfig(label_smoothing=0.1),
    LossConfig(focal_gamma=2.0),
    LossConfig(focal_gamma=1.5, label_smoothing=0.05, cross_entropy=0.7),
]


def drawn() -> tuple[Tensor, Tensor]:
    """Logits [2, 3, 4, 4] and hard labels [2, 4, 4] of which the upper half is unknown."""
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    label = torch.randint(0, 3, (2, 4, 4), generator=torch.Generator().manual_seed(1))
    label[:, :2] = 255
    return logits, label


def minimum(target: list[float], config: LossConfig) -> Tensor:
    """The softmax at which the loss of a soft target is smallest."""
    logits = torch.zeros(1, len(target), 1, 1, requires_grad=True)
    soft = torch.tensor(target).reshape(1, -1, 1, 1)
    optimizer = torch.optim.LBFGS([logits], lr=0.5, max_iter=200, tolerance_change=1e-12)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = segmentation_loss(logits, soft, config, None)
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits.detach().softmax(dim=1).flatten()


def test_the_loss_by_default_is_torch_s_own_cross_entropy_of_the_labeled_pixels() -> None:
    logits, label = drawn()
    picked = logits.permute(0, 2, 3, 1)[label != 255], label[label != 255]
    for weight in (None, WEIGHTS):
        for smoothing in (0.0, 0.1):
            expected = functional.cross_entropy(
                *picked, weight=weight, label_smoothing=smoothing, reduction="sum"
            )
            mass = len(picked[1]) if weight is None else weight[picked[1]].sum()
            loss = segmentation_loss(logits, label, LossConfig(label_smoothing=smoothing), weight)
            torch.testing.assert_close(loss, expected / mass)


def test_the_default_loss_is_the_same_to_the_last_bit_as_without_any_option() -> None:
    logits, label = drawn()
    known = label != 255
    plain = logits.sum() * 0 + functional.cross_entropy(
        logits, label, ignore_index=255, reduction="sum"
    ) / known.sum().clamp(min=1e-6)
    assert torch.equal(segmentation_loss(logits, label, LossConfig(), None), plain)


@pytest.mark.parametrize("config", LOSSES, ids=str)
@pytest.mark.parametrize("weight", [None, WEIGHTS])
def test_a_soft_target_that_is_certain_costs_what_the_hard_one_does(
    config: LossConfig, weight: Tensor | None
) -> None:
    logits, label = drawn()
    hard = segmentation_loss(logits, label, config, weight)
    soft = segmentation_loss(logits, shares(label[:, None], 3), config, weight)
    torch.testing.assert_close(soft, hard)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_the_focal_loss_is_the_published_one(gamma: float) -> None:
    logits, label = drawn()
    known = label != 255
    p = logits.softmax(dim=1).gather(1, label.where(known, 0)[:, None])[:, 0][known]
    expected = (-((1 - p) ** gamma) * p.log()).mean()
    torch.testing.assert_close(
        segmentation_loss(logits, label, LossConfig(focal_gamma=gamma), None), expected
    )


def test_the_focal_loss_has_a_finite_slope_where_the_network_is_entirely_sure() -> None:
    logits = torch.tensor([200.0, -200.0]).reshape(1, 2, 1, 1).requires_grad_()
    label = torch.zeros(1, 1, 1, dtype=torch.int64)
    segmentation_loss(logits, label, LossConfig(focal_gamma=0.5), None).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_cross_entropy_is_smallest_at_the_share_of_the_votes_and_focal_is_less_sure() -> None:
    assert minimum([0.75, 0.25], LossConfig()).tolist() == pytest.approx([0.75, 0.25], abs=1e-4)
    smoothed = minimum([0.75, 0.25], LossConfig(label_smoothing=0.1))
    assert smoothed.tolist() == pytest.approx([0.725, 0.275], abs=1e-4)
    assert 0.5 < float(minimum([0.75, 0.25], LossConfig(focal_gamma=2.0))[0]) < 0.72


def test_pixels_that_nobody_knows_change_neither_loss_nor_gradient() -> None:
    logits, label = drawn()
    target = shares(label[:, None], 3)
    other = logits.clone()
    other[:, :, :2] = 9
    for config in LOSSES:
        assert segmentation_loss(other, target, config, WEIGHTS) == segmentation_loss(
            logits, target, config, WEIGHTS
        )
    assert dice_loss(other, label) == dice_loss(logits, label)
    free = logits.clone().requires_grad_()
    segmentation_loss(free, target, LOSSES[-1], WEIGHTS).backward()
    assert free.grad is not None
    assert float(free.grad[:, :, :2].abs().sum()) == 0
    assert float(free.grad[:, :, 2:].abs().sum()) > 0


@pytest.mark.parametrize("soft", [False, True])
def test_without_any_label_the_loss_is_zero_and_so_is_its_gradient(soft: bool) -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    label = torch.full((1, 4, 4), 255)
    target = shares(label[:, None], 3) if soft else label
    config = LossConfig(label_smoothing=0.1) if soft else LossConfig(dice=1.0)
    loss = segmentation_loss(logits, target, config, torch.ones(3))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert float(logits.grad.abs().sum()) == 0


def test_dice_adds_to_the_cross_entropy_and_refuses_shares() -> None:
    logits, label = drawn()
    both = segmentation_loss(logits, label, LossConfig(dice=0.5), None)
    torch.testing.assert_close(
        both, segmentation_loss(logits, label, LossConfig(), None) + 0.5 * dice_loss(logits, label)
    )
    with pytest.raises(ValueError, match="`target` to be hard"):
        segmentation_loss(logits, shares(label[:, None], 3), LossConfig(dice=0.5), None)


def test_dice_is_zero_for_a_sure_and_right_prediction_and_near_one_for_a_wrong_one() -> None:
    label = torch.tensor([[[0, 1] * 8] * 16])
    truth = functional.one_hot(label, 3).permute(0, 3, 1, 2).float()
    assert float(dice_loss(truth * 50, label)) == pytest.approx(0, abs=1e-3)
    swapped = truth[:, [1, 0, 2]]
    assert float(dice_loss(swapped * 50, label)) > 0.9


def test_votes_become_shares_and_laplace_smooths_them() -> None:
    votes = torch.tensor([0, 0, 0, 1], dtype=torch.uint8).reshape(1, 4, 1, 1)
    assert shares(votes, 3).flatten().tolist() == [0.75, 0.25, 0.0]
    # (n_c + 1) / (N + C)
    assert shares(votes, 3, prior=1.0).flatten().tolist() == pytest.approx([4 / 7, 2 / 7, 1 / 7])


@pytest.mark.parametrize("prior", [0.0, 0.5])
def test_shares_agree_with_counting_by_hand(prior: float) -> None:
    rng = np.random.default_rng(0)
    votes = rng.integers(0, 5, (3, 6, 7, 8), dtype=np.uint8)
    votes[rng.random(votes.shape) < 0.5] = 255
    votes[:, :, 0] = 255
    found = shares(torch.from_numpy(votes), 5, prior=prior).numpy()
    for b, y, x in np.ndindex(3, 7, 8):
        given = votes[b, :, y, x]
        given = given[given != 255]
        counts = np.bincount(given, minlength=5)
        expected = (counts + prior) / (len(given) + 5 * prior) if len(given) else np.zeros(5)
        np.testing.assert_allclose(found[b, :, y, x], expected, atol=1e-6)
