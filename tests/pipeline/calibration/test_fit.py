"""Fitting calibrators: what was planted is found, and what netcal finds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from netcal.scaling import TemperatureScaling
from sklearn.linear_model import LogisticRegression

from pipeline.calibration.calibrators import Identity
from pipeline.calibration.fit import HIGHEST, LOWEST, Pixels, at_bound, fit_temperature, mean_nll
from pipeline.calibration.histogram import BINS, fit_histogram
from pipeline.calibration.scaling import SHRINKAGE, Temperature, fit_classwise, fit_vector
from pipeline.calibration.selective import fit_selective
from tests.pipeline.calibration.planted import law, pixels_of, planted


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("samples", [1, 6])
def test_a_planted_temperature_is_found_within_two_percent(temperature: float, samples: int) -> None:
    found = fit_temperature(planted(temperature, samples=samples))
    assert found == pytest.approx(temperature, rel=0.02)
    assert not at_bound(found)


@pytest.mark.parametrize("temperature", [0.5, 1.7, 3.0])
def test_the_temperature_is_the_one_that_netcal_fits(temperature: float) -> None:
    pixels = planted(temperature)
    p = pixels.logits[0].softmax(dim=0).T.double().numpy()
    theirs = TemperatureScaling(method="mle").fit(p, pixels.labels.numpy())
    factor = theirs.temperature  # pyright: ignore[reportAttributeAccessIssue]
    assert fit_temperature(pixels) == pytest.approx(1 / float(factor.item()), rel=0.005)


def test_the_temperature_stands_inside_the_mean_over_samples() -> None:
    logits, labels = law(samples=6, spread=2.0)
    pixels = pixels_of(logits * 2, labels)
    assert fit_temperature(pixels) == pytest.approx(2.0, rel=0.02)
    outside = pixels_of(logits.mean(dim=0, keepdim=True) * 2, labels)
    assert abs(fit_temperature(outside) - 2.0) > 0.1


def test_nll_is_that_of_a_direct_computation_in_parts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = planted(1.7, samples=3, pixels=1000)
    p = (pixels.logits / 1.3).softmax(dim=1).mean(dim=0)
    direct = -p[pixels.labels, torch.arange(1000)].log().mean().item()
    assert mean_nll(Temperature(1.3), pixels) == pytest.approx(direct, abs=1e-5)
    monkeypatch.setattr("pipeline.calibration.fit.VALUES_AT_ONCE", 3 * 5 * 7)
    assert mean_nll(Temperature(1.3), pixels) == pytest.approx(direct, abs=1e-5)


def test_a_weight_counts_as_that_many_pixels() -> None:
    logits, labels = law(pixels=600)
    logits = logits * torch.where(torch.arange(600) < 200, 3.0, 1.0)
    weights = torch.where(torch.arange(600) < 200, 4.0, 1.0)
    repeated = torch.arange(600).repeat_interleave(weights.long())
    weighted = pixels_of(logits, labels, weights=weights)
    copies = pixels_of(logits[..., repeated], labels[repeated])
    assert mean_nll(Identity(), weighted) == pytest.approx(mean_nll(Identity(), copies), rel=1e-5)
    assert fit_temperature(weighted) == pytest.approx(fit_temperature(copies), rel=2e-3)
    assert fit_temperature(weighted) > fit_temperature(pixels_of(logits, labels)) * 1.1
    np.testing.assert_allclose(
        fit_histogram(weighted).accuracies, fit_histogram(copies).accuracies, atol=0.02
    )


def test_a_network_that_is_always_right_or_knows_nothing_ends_at_a_bound() -> None:
    labels = torch.arange(5).repeat(100)
    right = pixels_of(torch.nn.functional.one_hot(labels, 5).float().T[None], labels)
    assert fit_temperature(right) == pytest.approx(LOWEST, rel=0.01)
    wrong = pixels_of(torch.nn.functional.one_hot((labels + 1) % 5, 5).float().T[None] * 100, labels)
    assert fit_temperature(wrong) == pytest.approx(HIGHEST, rel=0.01)
    assert at_bound(fit_temperature(right))
    assert at_bound(fit_temperature(wrong))


def test_classwise_temperatures_are_found_where_a_class_has_images_and_shrunk_where_it_has_few() -> None:
    logits, labels = law(pixels=20_000)
    truth = torch.tensor([1.0, 1.5, 2.0, 2.5, 3.0])
    winner = logits.argmax(dim=1)
    pixels = pixels_of(logits * truth[winner][:, None], labels, images=500)
    many = fit_classwise(pixels)
    np.testing.assert_allclose(many.temperatures, truth, rtol=0.1)

    few = pixels_of(pixels.logits, labels, images=2)
    shrunk = fit_classwise(few).temperatures
    overall = fit_temperature(few)
    for temperature, own in zip(shrunk, many.temperatures, strict=True):
        expected = math.log(overall) + 2 / (2 + SHRINKAGE) * math.log(own / overall)
        assert math.log(temperature) == pytest.approx(expected, abs=0.02)


def test_a_class_that_is_never_predicted_keeps_the_global_temperature() -> None:
    logits, labels = law()
    logits = torch.cat([logits, torch.full_like(logits[:, :1], -50.0)], dim=1) * 2
    pixels = pixels_of(logits, labels)
    assert fit_classwise(pixels).temperatures[5] == pytest.approx(fit_temperature(pixels), rel=1e-6)


def test_planted_weights_and_biases_of_classes_are_found() -> None:
    logits, labels = law(pixels=20_000)
    weights = torch.tensor([0.5, 1.0, 1.5, 0.8, 1.2])[:, None]
    biases = torch.tensor([1.0, -1.0, 0.5, -0.5, 0.0])[:, None]
    found = fit_vector(pixels_of((logits - biases) / weights, labels))
    np.testing.assert_allclose(found.weights, weights[:, 0], atol=0.08)
    np.testing.assert_allclose(found.biases, biases[:, 0], atol=0.12)
    assert sum(found.biases) == pytest.approx(0, abs=1e-6)


def test_the_histogram_counts_the_winners_of_equally_full_bins() -> None:
    pixels = planted(2.5, pixels=6000)
    found = fit_histogram(pixels)
    p = pixels.logits[0].softmax(dim=0).double().numpy()
    confidence, right = p.max(axis=0), p.argmax(axis=0) == pixels.labels.numpy()
    index = np.searchsorted(np.quantile(confidence, np.arange(1, BINS) / BINS), confidence)
    for row, accuracy in enumerate(found.accuracies):
        here = right[index == row]
        assert (here.sum() + 0.5) / (len(here) + 1) == pytest.approx(accuracy, abs=0.01)


def test_the_histogram_of_samples_lowers_the_nll_of_their_mean_below_that_of_any_other_counting() -> None:
    logits, labels = law(samples=6, spread=2.0, pixels=8000)
    pixels = pixels_of(logits * 2, labels)
    found = fit_histogram(pixels)
    apart = fit_histogram(pixels_of(pixels.logits.transpose(0, 1).flatten(1)[None], labels.repeat(6)))
    assert mean_nll(found, pixels) < mean_nll(apart, pixels) - 0.01
    assert mean_nll(found, pixels) < mean_nll(Identity(), pixels) - 0.02


def test_selective_scaling_finds_the_pixels_that_are_too_sure() -> None:
    """Where two classes are close, half of the pixels have a label at random: their logits are too sure."""
    logits, labels = law(pixels=20_000, sure=4.0)
    largest = logits[0].softmax(dim=0).topk(2, dim=0).values
    doubtful = (largest[0] - largest[1]) < 0.9
    generator = torch.Generator().manual_seed(1)
    random = torch.randint(5, labels.shape, generator=generator)
    labels = torch.where(doubtful & (torch.rand(labels.shape, generator=generator) < 0.5), random, labels)
    pixels = pixels_of(logits, labels)
    found = fit_selective(pixels)
    assert found.suspected_temperature > 1.5 * found.temperature
    assert mean_nll(found, pixels) < mean_nll(Temperature(fit_temperature(pixels)), pixels) - 0.005


def test_the_suspicion_ranks_pixels_as_a_logistic_regression_does() -> None:
    pixels = planted(2.0, pixels=4000)
    found = fit_selective(pixels)
    features = pixels.logits[0].softmax(dim=0).T.sort(dim=1, descending=True).values[:, :5].numpy()
    wrong = (pixels.logits[0].argmax(dim=0) != pixels.labels).numpy()
    reference = LogisticRegression(C=1 / (2 * 1e-4 * len(wrong)), tol=1e-8, max_iter=2000).fit(
        features, wrong
    )
    mine = features @ np.array(found.weights)
    theirs = features @ reference.coef_[0]
    assert np.corrcoef(mine, theirs)[0, 1] > 0.9999
    assert ((mine + found.bias) > 0).mean() == pytest.approx(wrong.mean(), abs=0.002)


def test_no_pixels_and_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one pixel"):
        Pixels(torch.zeros(1, 3, 0), *[torch.zeros(0).long()] * 3)
    with pytest.raises(ValueError, match="N labels"):
        Pixels(torch.zeros(1, 3, 4), *[torch.zeros(3).long()] * 3)
