"""Calibrators against each other, on pixels that did not fit them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.calibration.calibrators import KINDS, Identity, Temperature, VectorScaling
from pipeline.calibration.comparison import Comparison, cross_fit, evaluate_calibrator, fit_calibrator
from pipeline.calibration.fit import Pixels, mean_nll
from pipeline.config import EvaluationConfig
from pipeline.evaluation.units import Runs
from tests.pipeline.calibration.planted import law, pixels_of, planted


def comparison_of(pixels: Pixels, *, block: int = 2, names: tuple[str, ...] = tuple(KINDS)) -> Comparison:
    images = int(pixels.images.max()) + 1
    runs = Runs.of(["clip"] * images, range(images), block=block)
    return cross_fit(pixels, runs, EvaluationConfig(resamples=500), seed=0, names=names)


def singly(images: int) -> Runs:
    return Runs.of(["clip"] * images, range(images), block=1, independent=True)


def test_an_overconfident_network_is_put_right_and_passes_only_then() -> None:
    comparison = comparison_of(planted(2.5))
    assert comparison.cross_fitted
    before, after = comparison.fitted["identity"], comparison.fitted["temperature"]
    assert after.nll.high < before.nll.low
    assert after.ece.value < before.ece.value / 5
    assert after.brier.value < before.brier.value
    assert comparison.refusal("identity") is not None
    assert comparison.refusal("temperature") is None
    assert list(comparison.fitted) == list(KINDS)


def test_what_is_calibrated_already_passes_as_it_is() -> None:
    comparison = comparison_of(planted(1.0), names=("temperature",))
    assert comparison.refusal("identity") is None
    assert comparison.fitted["identity"].ece.value < 3 * comparison.fitted["identity"].ece_noise


def test_each_half_is_evaluated_with_the_calibrator_of_the_other() -> None:
    """Two sites need different temperatures: cross-fitting shows it, because a site is in one half."""
    logits, labels = law()
    images = torch.arange(12_000) * 30 // 12_000
    second = images % 2 == 1
    pixels = pixels_of(logits * torch.where(second, 4.0, 1.0), labels)
    runs = Runs.of([f"site {index % 2}" for index in range(30)], range(30), block=2)
    found = cross_fit(pixels, runs, EvaluationConfig(resamples=500), seed=0).fitted["temperature"]
    halves = [pixels.where(~second), pixels.where(second)]
    crossed = [mean_nll(fit_calibrator("temperature", halves[1 - row]), halves[row]) for row in (0, 1)]
    assert found.nll.value == pytest.approx(np.average(crossed, weights=list(map(len, halves))), abs=1e-4)
    assert found.nll.value > mean_nll(found.calibrator, pixels) + 0.05


def test_ece_and_brier_are_those_of_a_direct_computation() -> None:
    pixels = planted(2.0, samples=3, pixels=4000)
    weights = torch.where(pixels.images < 10, 3.0, 1.0)
    pixels = Pixels(pixels.logits, pixels.labels, weights, pixels.images)
    found = evaluate_calibrator(Temperature(1.4), pixels, singly(30), EvaluationConfig(resamples=200), seed=0)
    p = (pixels.logits / 1.4).softmax(dim=1).mean(dim=0).double().numpy()
    w, y = weights.numpy() / weights.numpy().sum(), pixels.labels.numpy()
    confidence, right = p.max(axis=0), p.argmax(axis=0) == y
    index = np.minimum((confidence * 15).astype(int), 14)
    ece = sum(abs((w * (right - confidence))[index == k].sum()) for k in range(15))
    brier = (w * ((p - np.eye(5)[y].T) ** 2).sum(axis=0)).sum()
    assert found.ece.value == pytest.approx(ece, abs=1e-6)
    assert found.brier.value == pytest.approx(brier, abs=1e-6)
    assert found.nll.value == pytest.approx(mean_nll(Temperature(1.4), pixels), abs=1e-6)
    assert found.nll.low < found.nll.value < found.nll.high


def test_no_interval_of_nll_or_brier_begins_below_zero() -> None:
    pixels = planted(2.0, pixels=4000)
    kept = pixels.images < 2
    two = Pixels(pixels.logits[..., kept], pixels.labels[kept], pixels.weights[kept], pixels.images[kept])
    worse = torch.where(two.images == 1, 8.0, 0.2)
    two = Pixels(two.logits * worse, two.labels, two.weights, two.images)
    found = evaluate_calibrator(Temperature(1.0), two, singly(2), EvaluationConfig(resamples=200), seed=0)
    assert (found.nll.low, found.brier.low) == (0.0, 0.0)
    assert found.nll.high > 2 * found.nll.value


def test_auto_takes_the_best_nll_among_those_that_change_no_winner() -> None:
    """One class was made too likely: vector scaling repairs it, but changes labels."""
    logits, labels = law()
    biases = torch.tensor([2.0, 0.0, 0.0, 0.0, 0.0])[:, None]
    comparison = comparison_of(pixels_of(logits * 2 + biases, labels))
    vector = comparison.fitted["vector"]
    assert vector.nll.value == min(item.nll.value for item in comparison.fitted.values())
    assert vector.winners_changed
    assert vector.labels_changed > 0.05
    chosen = comparison.fitted[comparison.auto]
    assert not chosen.winners_changed
    assert chosen.labels_changed == 0
    assert chosen.nll.value < comparison.fitted["identity"].nll.value


@pytest.mark.parametrize(("temperature", "chosen"), [(1.0, "identity"), (2.5, "temperature")])
def test_auto_takes_the_simplest_that_is_as_good_as_the_best(temperature: float, chosen: str) -> None:
    comparison = comparison_of(planted(temperature), names=("temperature", "classwise_temperature"))
    assert comparison.auto == chosen
    best = min(comparison.fitted.values(), key=lambda item: item.nll.value)
    found = comparison.fitted[chosen]
    assert found.nll.value <= best.nll.value + found.standard_error(best)


def test_a_standard_error_is_that_of_a_mean_of_differences_over_units() -> None:
    pixels = planted(2.0)
    items = [
        evaluate_calibrator(Temperature(tau), pixels, singly(30), EvaluationConfig(resamples=100), seed=0)
        for tau in (1.0, 2.0)
    ]
    mean = [
        [mean_nll(Temperature(tau), pixels.where(pixels.images == image)) for image in range(30)]
        for tau in (1.0, 2.0)
    ]
    difference = np.array(mean[0]) - np.array(mean[1])
    expected = difference.std(ddof=1) / math.sqrt(30)
    assert items[0].standard_error(items[1]) == pytest.approx(expected, rel=1e-4)


def test_terms_of_a_pixel_count_by_their_shares() -> None:
    """Two terms with shares of ¾ and ¼ are four equal terms of which three are the same."""
    logits, labels = law(samples=2, pixels=3000, spread=1.5)
    shares = torch.tensor([[0.75], [0.25]]).expand(2, 3000)
    images = torch.arange(3000) * 30 // 3000
    shared = Pixels(logits * 2, labels, torch.ones(3000), images, shares)
    repeated = Pixels(logits[[0, 0, 0, 1]] * 2, labels, torch.ones(3000), images)
    for name in KINDS:
        first, second = fit_calibrator(name, shared), fit_calibrator(name, repeated)
        expected = mean_nll(second, repeated)
        assert mean_nll(first, shared) == pytest.approx(expected, abs=1e-3)
        assert mean_nll(second, shared) == pytest.approx(expected, abs=1e-5)


def test_a_temperature_changes_no_winner_though_the_mean_of_samples_may_have_another() -> None:
    logits, labels = law(samples=6, spread=2.0)
    found = comparison_of(pixels_of(logits * 3, labels), names=("temperature",)).fitted["temperature"]
    assert not found.winners_changed
    before, after = ((logits * 3 / tau).softmax(dim=1).mean(dim=0).argmax(dim=0) for tau in (1.0, 3.0))
    assert found.labels_changed == pytest.approx((before != after).float().mean().item(), rel=0.1)


def test_one_image_is_evaluated_on_itself_and_nothing_passes() -> None:
    comparison = comparison_of(planted(2.0, images=1, pixels=2000), names=("temperature",))
    assert not comparison.cross_fitted
    found = comparison.fitted["temperature"]
    assert math.isnan(found.ece.low)
    assert found.document()["ece"]["high"] is None
    assert found.document()["ece_noise"] is None
    assert comparison.refusal("temperature") is not None


def test_images_of_one_block_are_halved_but_have_no_interval_and_do_not_pass() -> None:
    comparison = comparison_of(planted(2.0, images=4, pixels=4000), block=4, names=("temperature",))
    assert comparison.cross_fitted
    assert math.isnan(comparison.fitted["temperature"].ece.high)
    assert comparison.auto == "identity"
    assert comparison.refusal("temperature") is not None


def test_an_unknown_calibrator_is_refused() -> None:
    with pytest.raises(ValueError, match="isotonic"):
        fit_calibrator("isotonic", planted(1.0, pixels=100))


def test_a_calibrator_that_is_worse_by_chance_passes_and_one_that_is_worse_does_not() -> None:
    pixels = planted(1.0)

    def verdict(temperature: float) -> tuple[bool, bool, float]:
        item = evaluate_calibrator(
            Temperature(temperature), pixels, singly(30), EvaluationConfig(resamples=500), seed=0
        )
        expected = mean_nll(Temperature(temperature), pixels) - mean_nll(Identity(), pixels)
        assert item.nll_change.value == pytest.approx(expected, abs=1e-5)
        uncalibrated = evaluate_calibrator(
            Identity(), pixels, singly(30), EvaluationConfig(resamples=500), seed=0
        )
        fitted = {"identity": uncalibrated, "temperature": item}
        comparison = Comparison(fitted=fitted, cross_fitted=True, units=30)
        return comparison.refusal("temperature") is None, item.worse, expected

    passed, worse, change = verdict(1.01)
    assert (passed, worse) == (True, False)
    assert 0 < change < 0.001
    assert verdict(0.8)[:2] == (False, True)


def test_a_label_change_is_a_share_of_weights() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).T.reshape(1, 2, 2)
    pixels = Pixels(logits, torch.tensor([0, 1]), torch.tensor([3.0, 1.0]), torch.tensor([0, 1]))
    flip = VectorScaling((1.0, 1.0), (0.0, 5.0))
    found = evaluate_calibrator(flip, pixels, singly(2), EvaluationConfig(resamples=100), seed=0)
    assert found.labels_changed == pytest.approx(0.75)
    same = evaluate_calibrator(Identity(), pixels, singly(2), EvaluationConfig(resamples=100), seed=0)
    assert same.labels_changed == 0
