"""What calibrators do to logits, and how they are stored."""

from __future__ import annotations

import json
import math

import pytest
import torch

from pipeline.calibration.calibrators import (
    KINDS,
    Calibrator,
    ClasswiseTemperature,
    HistogramBinning,
    Identity,
    SelectiveScaling,
    Temperature,
    VectorScaling,
    calibrator_from,
)
from pipeline.config import CalibrationConfig

ONE_OF_EACH: list[Calibrator] = [
    Identity(),
    Temperature(1.25),
    ClasswiseTemperature((0.5, 1.0, 2.0, 4.0)),
    VectorScaling((1.0, 0.5, 2.0, 1.0), (0.1, -0.2, 0.0, 0.1)),
    HistogramBinning((-1.0, 0.5), (0.4, 0.6, 0.9)),
    SelectiveScaling(0.8, 2.0, (-3.0, 1.0, 0.5), 1.5),
]


def some_logits() -> torch.Tensor:
    return torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize("calibrator", ONE_OF_EACH, ids=lambda item: item.name)
def test_a_calibrator_is_made_again_from_its_row(calibrator: Calibrator) -> None:
    stored = json.loads(json.dumps({**calibrator.parameters, "fitted_on": "something"}))
    assert calibrator_from(calibrator.name, stored) == calibrator


def test_every_calibrator_of_the_settings_exists() -> None:
    offered = CalibrationConfig.model_json_schema()["properties"]["calibrator"]["enum"]
    assert set(offered) == {"auto", *KINDS} == {"auto", *(item.name for item in ONE_OF_EACH)}


@pytest.mark.parametrize("calibrator", ONE_OF_EACH, ids=lambda item: item.name)
def test_axes_before_the_classes_do_not_matter(calibrator: Calibrator) -> None:
    logits = some_logits()
    whole = calibrator(logits)
    assert whole.shape == logits.shape
    assert torch.allclose(calibrator(logits[1, 2]), whole[1, 2])
    assert torch.allclose(calibrator(logits[1, 2][:, 3:4, 2:3]), whole[1, 2][:, 3:4, 2:3])


@pytest.mark.parametrize(
    "calibrator", [item for item in ONE_OF_EACH if item.name != "vector"], ids=lambda item: item.name
)
def test_a_shift_of_all_logits_changes_no_probability(calibrator: Calibrator) -> None:
    logits = some_logits()
    before, after = (calibrator(z).softmax(dim=-3) for z in (logits, logits + 7.0))
    assert torch.allclose(before, after, atol=1e-5)


@pytest.mark.parametrize(
    "calibrator",
    [item for item in ONE_OF_EACH if item.name in ("temperature", "classwise_temperature", "selective")],
    ids=lambda item: item.name,
)
def test_calibrators_of_temperatures_never_change_the_winner(calibrator: Calibrator) -> None:
    logits = some_logits()
    assert not torch.allclose(calibrator(logits), logits)
    assert torch.equal(calibrator(logits).argmax(dim=-3), logits.argmax(dim=-3))


def test_a_high_temperature_softens_towards_chance() -> None:
    probability = Temperature(1e6)(some_logits()).softmax(dim=-3)
    entropy = -(probability * probability.log()).sum(dim=-3)
    assert torch.allclose(entropy, torch.tensor(math.log(4)), atol=1e-5)


def test_a_histogram_gives_the_winner_its_bins_accuracy_and_the_others_their_shares() -> None:
    logits = some_logits()
    before = logits.double().softmax(dim=-3)
    after = HistogramBinning((-1.0, 0.5), (0.4, 0.6, 0.9))(logits).double().softmax(dim=-3)
    confidence, winner = before.max(dim=-3, keepdim=True)
    odds = (confidence / (1 - confidence)).log()
    expected = torch.where(odds < -1, 0.4, torch.where(odds < 0.5, 0.6, 0.9)).double()
    assert torch.allclose(after.gather(-3, winner), expected, atol=1e-5)
    others = torch.ones_like(before).scatter(-3, winner, 0).bool()
    ratio = (after / before)[others]
    shared = ((1 - expected) / (1 - confidence)).expand_as(before)[others]
    assert torch.allclose(ratio, shared, rtol=1e-3)


def test_a_histogram_keeps_what_float32_calls_certain() -> None:
    logits = torch.tensor([60.0, 0.0, 0.0]).reshape(3, 1, 1)
    after = HistogramBinning((10.0, 50.0), (0.5, 0.8, 0.9))(logits).softmax(dim=0).flatten()
    assert torch.allclose(after, torch.tensor([0.9, 0.05, 0.05]), atol=1e-6)


def test_selective_scaling_softens_what_it_suspects_only() -> None:
    logits = torch.tensor([[4.0, 0.0, 0.0], [1.0, 0.9, 0.0]]).reshape(2, 3, 1, 1)
    calibrator = SelectiveScaling(0.5, 2.0, (-1.0, 0.0), 0.7)  # suspects a confidence below 0.7
    assert calibrator(logits).flatten().tolist() == pytest.approx([8.0, 0.0, 0.0, 0.5, 0.45, 0.0])


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_an_impossible_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="positive finite"):
        Temperature(temperature)
    with pytest.raises(ValueError, match="positive finite"):
        ClasswiseTemperature((1.0, temperature))


def test_impossible_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="τ₁"):
        SelectiveScaling(2.0, 1.0, (1.0,), 0.0)
    with pytest.raises(ValueError, match="as many"):
        VectorScaling((1.0, 2.0), (0.0,))
    with pytest.raises(ValueError, match="ascending"):
        HistogramBinning((1.0, 0.0), (0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="between 0 and 1"):
        HistogramBinning((), (1.0,))


def test_an_unknown_calibrator_or_a_missing_parameter_is_refused() -> None:
    with pytest.raises(ValueError, match="isotonic"):
        calibrator_from("isotonic", {})
    with pytest.raises(ValueError, match="`temperature`"):
        calibrator_from("temperature", {})
