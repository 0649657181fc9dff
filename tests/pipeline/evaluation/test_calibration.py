"""Calibrators and the fit of their temperature."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipeline.calibration.calibrators import Identity, Temperature, calibrator_from
from pipeline.calibration.fit import HIGHEST, LOWEST, fit_temperature, mean_nll


def planted(
    temperature: float, *, samples: int = 1, pixels: int = 60_000, spread: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Logits [T, N, C] whose mean softmax at this temperature is the law that drew the labels."""
    generator = torch.Generator().manual_seed(7)
    base = torch.randn(1, pixels, 5, generator=generator) * 2
    calibrated = base + spread * torch.randn(samples, pixels, 5, generator=generator) * (samples > 1)
    law = calibrated.softmax(dim=2).mean(dim=0)
    labels = torch.multinomial(law, 1, generator=generator)[:, 0]
    return calibrated * temperature, labels


def halves(pixels: int) -> Tensor:
    return (torch.arange(pixels) // 100) % 2


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("samples", [1, 6])
def test_a_planted_temperature_is_found_within_two_percent(temperature: float, samples: int) -> None:
    logits, labels = planted(temperature, samples=samples)
    fit = fit_temperature(logits, labels, halves(len(labels)))
    assert fit.temperature == pytest.approx(temperature, rel=0.02)
    assert not fit.at_bound
    assert fit.cross_validated


def test_the_temperature_stands_inside_the_mean_over_samples() -> None:
    logits, labels = planted(2.0, samples=6, spread=2.0)
    inside = fit_temperature(logits, labels, halves(len(labels))).temperature
    mean_logits = logits.mean(dim=0, keepdim=True)
    outside = fit_temperature(mean_logits, labels, halves(len(labels))).temperature
    assert inside == pytest.approx(2.0, rel=0.02)
    assert abs(outside - 2.0) > 0.1


def test_nll_is_that_of_a_direct_computation_in_chunks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = planted(1.7, samples=3, pixels=1000)
    law = (logits / 1.3).softmax(dim=2).mean(dim=0)
    direct = -law[torch.arange(1000), labels].log().mean().item()
    assert mean_nll(logits, labels, 1.3) == pytest.approx(direct, abs=1e-5)
    monkeypatch.setattr("pipeline.calibration.fit.VALUES_AT_ONCE", 3 * 5 * 7)
    assert mean_nll(logits, labels, 1.3) == pytest.approx(direct, abs=1e-5)


def test_the_fit_lowers_the_nll_of_pixels_that_did_not_choose_it() -> None:
    logits, labels = planted(3.0)
    fit = fit_temperature(logits, labels, halves(len(labels)))
    assert fit.nll_after < fit.nll_before - 0.1
    best = mean_nll(logits, labels, fit.temperature)
    assert best <= fit.nll_after < best + 1e-3


def test_a_network_that_is_always_right_hits_the_bound_and_says_so() -> None:
    labels = torch.arange(5).repeat(100)
    logits = torch.nn.functional.one_hot(labels, 5).float()[None]
    fit = fit_temperature(logits, labels, halves(500))
    assert fit.at_bound
    assert fit.temperature == pytest.approx(LOWEST, rel=0.01)


def test_a_network_that_knows_nothing_hits_the_other_bound() -> None:
    labels = torch.arange(5).repeat(100)
    logits = torch.nn.functional.one_hot((labels + 1) % 5, 5).float()[None] * 100
    fit = fit_temperature(logits, labels, halves(500))
    assert fit.at_bound
    assert fit.temperature == pytest.approx(HIGHEST, rel=0.01)


def test_one_image_is_fitted_but_not_cross_validated() -> None:
    logits, labels = planted(2.0, pixels=500)
    fit = fit_temperature(logits, labels, torch.zeros(500, dtype=torch.long))
    assert not fit.cross_validated
    assert fit.nll_after == pytest.approx(mean_nll(logits, labels, fit.temperature))


def test_no_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one pixel"):
        fit_temperature(torch.zeros(1, 0, 3), torch.zeros(0).long(), torch.zeros(0).long())
    with pytest.raises(ValueError, match="N labels"):
        fit_temperature(torch.zeros(1, 4, 3), torch.zeros(3).long(), torch.zeros(4).long())


def test_a_temperature_never_changes_the_winner_and_softens_towards_chance() -> None:
    logits = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    hot = Temperature(1e6)(logits)
    assert torch.equal(hot.argmax(dim=-3), logits.argmax(dim=-3))
    probability = hot.softmax(dim=-3)
    entropy = -(probability * probability.log()).sum(dim=-3)
    assert torch.allclose(entropy, torch.tensor(math.log(4)), atol=1e-5)
    assert torch.equal(Identity()(logits), logits)


@pytest.mark.parametrize("calibrator", [Identity(), Temperature(1.25)])
def test_a_calibrator_is_made_again_from_its_row(calibrator: Identity | Temperature) -> None:
    assert calibrator_from(calibrator.name, calibrator.parameters) == calibrator


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_an_impossible_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="positive finite"):
        Temperature(temperature)


def test_an_unknown_calibrator_or_a_missing_parameter_is_refused() -> None:
    with pytest.raises(ValueError, match="isotonic"):
        calibrator_from("isotonic", {})
    with pytest.raises(ValueError, match="`temperature`"):
        calibrator_from("temperature", {})
