"""Metrics from summed statistics, against scikit-learn, TorchMetrics, netcal and direct computation on the
pixels."""

from __future__ import annotations

import dataclasses
from functools import reduce

import numpy as np
import numpy.typing as npt
import pytest
import torch
from netcal.metrics import ECE
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    jaccard_score,
    log_loss,
    recall_score,
    roc_auc_score,
)
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_jaccard_index,
)

from pipeline.evaluation.bootstrap import BlockBootstrap, bootstrap_weights, percentile_interval
from pipeline.evaluation.measure_bins import MEASURE_BINS, BinSample, MeasureBins
from pipeline.evaluation.metrics import (
    area_under_risk_coverage,
    auroc,
    calibration_error,
    calibration_noise,
    compute,
    curves,
    linear_bins,
    summarise,
)
from pipeline.evaluation.overlap import intersection_over_union
from pipeline.evaluation.statistics import (
    Statistics,
    image_statistics,
    merge,
    stack,
)

MEASURES = ("least_confidence", "entropy", "max_logit")
CLASSES = 4
BINS = 15
Metrics = dict[tuple[str, int], float]
Pixels = dict[str, npt.NDArray[np.float64]]
Measured = tuple[Tensor, Tensor, dict[str, Tensor]]
"""Probability [C, H, W], label [H, W], and measures [H, W] by name."""


def resampled(statistics: Statistics, resamples: int) -> BlockBootstrap:
    return BlockBootstrap(bootstrap_weights(len(statistics.pixels), resamples=resamples, seed=0), 0.95)


def make_image(seed: int, *, height: int = 60, width: int = 70) -> Measured:
    """An overconfident network on one image: probability, label with some ignored pixels, measures."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, CLASSES, (height, width), generator=generator)
    logits = torch.randn(CLASSES, height, width, generator=generator) * 2.5
    logits += 3 * torch.nn.functional.one_hot(truth, CLASSES).permute(2, 0, 1)
    probability = logits.softmax(dim=0)
    entropy = -(probability * probability.clamp(min=1e-12).log()).sum(dim=0) / np.log(CLASSES)
    label = truth.clone()
    label[torch.rand(height, width, generator=generator) < 0.1] = 255
    measures = {
        "least_confidence": 1 - probability.amax(dim=0),
        "entropy": entropy,
        "max_logit": -logits.amax(dim=0),
    }
    return probability, label, measures


def choose_bins() -> dict[str, MeasureBins]:
    sample = BinSample()
    for seed in range(4):
        probability, label, measures = make_image(seed)
        valid = label != 255
        of_valid = {name: values[valid] for name, values in measures.items()}
        sample.add(of_valid, probability.argmax(dim=0)[valid] != label[valid])
    return sample.bins()


CHOSEN = choose_bins()


@pytest.fixture(scope="module")
def images() -> list[Measured]:
    return [make_image(seed) for seed in range(5)]


@pytest.fixture(scope="module")
def statistics(images: list[Measured]) -> Statistics:
    return stack([image_statistics(p, y, m, bins=CHOSEN, class_bins=BINS) for p, y, m in images])


@pytest.fixture(scope="module")
def pixels(images: list[Measured]) -> Pixels:
    """All labeled pixels of all images in one list: what the product never builds."""
    valid = [label != 255 for _, label, _ in images]
    flat = {
        "p": torch.cat([p[:, v].T for (p, _, _), v in zip(images, valid, strict=True)]),
        "y": torch.cat([y[v] for (_, y, _), v in zip(images, valid, strict=True)]),
    }
    for name in MEASURES:
        flat[name] = torch.cat([m[name][v] for (_, _, m), v in zip(images, valid, strict=True)])
    return {name: values.double().numpy() for name, values in flat.items()}


@pytest.fixture(scope="module")
def metrics(statistics: Statistics) -> Metrics:
    computed = compute(statistics, np.ones((1, 5)), bins=BINS)
    return {key: float(value[0]) for key, value in computed.items()}


def direct_ece(confidence: npt.NDArray, correct: npt.NDArray, edges: npt.NDArray) -> float:
    index = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, len(edges) - 2)
    return sum(
        abs(correct[index == k].mean() - confidence[index == k].mean()) * (index == k).mean()
        for k in np.unique(index)
    )


def test_iou_recall_and_accuracy_are_those_of_scikit_learn(metrics: Metrics, pixels: Pixels) -> None:
    predicted = pixels["p"].argmax(axis=1)
    for index in range(CLASSES):
        expected = jaccard_score(pixels["y"] == index, predicted == index)
        assert metrics[("iou", index)] == pytest.approx(expected, abs=1e-12)
        expected = recall_score(pixels["y"] == index, predicted == index)
        assert metrics[("recall", index)] == pytest.approx(expected, abs=1e-12)
    expected = jaccard_score(pixels["y"], predicted, average="macro")
    assert metrics[("miou", -1)] == pytest.approx(expected, abs=1e-12)
    assert metrics[("pixel_accuracy", -1)] == pytest.approx((predicted == pixels["y"]).mean(), abs=1e-12)


def test_the_confusion_matrix_has_true_classes_in_rows(statistics: Statistics, pixels: Pixels) -> None:
    expected = confusion_matrix(pixels["y"], pixels["p"].argmax(axis=1))
    assert np.array_equal(statistics.confusion.sum(axis=0), expected)


def test_nll_and_brier_are_those_of_a_direct_computation(metrics: Metrics, pixels: Pixels) -> None:
    p = pixels["p"] / pixels["p"].sum(axis=1, keepdims=True)
    assert metrics[("nll", -1)] == pytest.approx(log_loss(pixels["y"], p), rel=1e-5)
    one_hot = np.eye(CLASSES)[pixels["y"].astype(int)]
    assert metrics[("brier", -1)] == pytest.approx(
        ((pixels["p"] - one_hot) ** 2).sum(axis=1).mean(), rel=1e-6
    )


@pytest.mark.parametrize("bins", [5, 10, 15, 30, 150])
def test_ece_equals_the_direct_one_on_the_same_bins(
    statistics: Statistics, pixels: Pixels, bins: int
) -> None:
    confidence = pixels["p"].max(axis=1)
    correct = pixels["p"].argmax(axis=1) == pixels["y"]
    expected = direct_ece(confidence, correct, np.linspace(0, 1, bins + 1))
    found = compute(statistics, np.ones((1, 5)), bins=bins)[("ece", -1)][0]
    assert found == pytest.approx(expected, abs=1e-9)
    assert found > 0.01


@pytest.mark.parametrize("bins", [10, 15, 30])
def test_ece_and_miou_are_those_of_torchmetrics_and_netcal(
    statistics: Statistics, pixels: Pixels, bins: int
) -> None:
    found = compute(statistics, np.ones((1, 5)), bins=bins)
    p, y = torch.from_numpy(pixels["p"]), torch.from_numpy(pixels["y"]).long()
    theirs = multiclass_calibration_error(p, y, num_classes=CLASSES, n_bins=bins, norm="l1")
    assert found[("ece", -1)][0] == pytest.approx(theirs.item(), abs=1e-6)
    assert found[("ece", -1)][0] == pytest.approx(ECE(bins).measure(p.numpy(), y.numpy()), abs=1e-6)
    theirs = multiclass_jaccard_index(p.argmax(dim=1), y, num_classes=CLASSES)
    assert found[("miou", -1)][0] == pytest.approx(theirs.item(), abs=1e-6)


def test_adaptive_ece_equals_the_direct_one_on_bins_of_equal_mass(metrics: Metrics, pixels: Pixels) -> None:
    confidence = pixels["p"].max(axis=1)
    correct = (pixels["p"].argmax(axis=1) == pixels["y"]).astype(float)
    order = np.argsort(-confidence, kind="stable")
    parts = zip(np.array_split(confidence[order], BINS), np.array_split(correct[order], BINS), strict=True)
    expected = sum(abs(c.mean() - a.mean()) * len(c) for c, a in parts) / len(confidence)
    assert metrics[("adaptive_ece", -1)] == pytest.approx(expected, abs=5e-4)


def test_classwise_ece_equals_the_direct_one(metrics: Metrics, pixels: Pixels) -> None:
    edges = np.linspace(0, 1, BINS + 1)
    expected = [direct_ece(pixels["p"][:, c], pixels["y"] == c, edges) for c in range(CLASSES)]
    for index in range(CLASSES):
        assert metrics[("classwise_ece", index)] == pytest.approx(expected[index], abs=1e-6)
    assert metrics[("classwise_ece", -1)] == pytest.approx(np.mean(expected), abs=1e-6)


@pytest.mark.parametrize("name", MEASURES)
def test_error_detection_is_that_of_scikit_learn(metrics: Metrics, pixels: Pixels, name: str) -> None:
    wrong = pixels["p"].argmax(axis=1) != pixels["y"]
    assert 0.05 < wrong.mean() < 0.5
    assert metrics[(f"auroc_{name}", -1)] == pytest.approx(roc_auc_score(wrong, pixels[name]), abs=2e-4)
    assert metrics[(f"aupr_{name}", -1)] == pytest.approx(
        average_precision_score(wrong, pixels[name]), abs=1e-3
    )
    order = np.argsort(pixels[name], kind="stable")
    risks = wrong[order].cumsum() / np.arange(1, len(order) + 1)
    assert metrics[(f"aurc_{name}", -1)] == pytest.approx(risks.mean(), abs=2e-4)


def test_ties_count_half_in_auroc_and_are_spread_in_aurc() -> None:
    right, wrong = np.array([30.0, 0.0]), np.array([10.0, 0.0])
    assert auroc(right, wrong) == 0.5
    assert area_under_risk_coverage(right, wrong) == pytest.approx(0.25)


def test_a_perfect_detector_has_auroc_one_and_the_least_risk() -> None:
    right, wrong = np.array([75.0, 0.0]), np.array([0.0, 25.0])
    assert auroc(right, wrong) == 1.0
    optimal = np.concatenate([np.zeros(75), np.arange(1, 26)]) / np.arange(1, 101)
    assert area_under_risk_coverage(right, wrong) == pytest.approx(optimal.mean(), abs=2e-3)


def test_without_errors_their_detection_is_not_defined() -> None:
    with np.errstate(invalid="ignore"):
        assert np.isnan(auroc(np.array([5.0, 1.0]), np.zeros(2)))


@pytest.mark.parametrize("predicted", [0.0, 1.0])
def test_a_class_that_the_masks_lack_is_not_zero_but_a_missed_one_is(predicted: float) -> None:
    # Class 2 is in no mask; class 1 is in the mask and never predicted.
    iou = intersection_over_union(
        np.array([8.0, 0.0, 0.0]), np.array([8.0, 2.0, 0.0]), np.array([10.0 - predicted, 0.0, predicted])
    )
    assert iou[:2].tolist() == [8 / (10 - predicted), 0.0]
    assert np.isnan(iou[2])


def test_measures_of_logits_are_compared_with_the_deterministic_prediction(images: list[Measured]) -> None:
    (mean, label, measures), (other, *_) = images[0], images[1]
    deterministic = (0.4 * other + 0.6 * mean).argmax(dim=0)
    record = image_statistics(
        mean, label, measures, bins=CHOSEN, class_bins=BINS, deterministic_HW=deterministic
    )
    found = compute(stack([record]), np.ones((1, 1)), bins=BINS)
    valid = label != 255
    wrong = {"max_logit": deterministic != label} | dict.fromkeys(
        ("entropy", "least_confidence"), mean.argmax(dim=0) != label
    )
    assert wrong["max_logit"][valid].sum() != wrong["entropy"][valid].sum()
    for name, of_measure in wrong.items():
        expected = roc_auc_score(of_measure[valid], measures[name][valid])
        assert found[(f"auroc_{name}", -1)][0] == pytest.approx(expected, abs=2e-3), name


def test_miou_leaves_absent_classes_out() -> None:
    probability = torch.tensor([[0.9, 0.9], [0.05, 0.05], [0.05, 0.05]]).reshape(3, 1, 2)
    label = torch.tensor([[0, 255]])
    record = image_statistics(probability, label, {}, bins=CHOSEN, class_bins=5)
    metrics = compute(stack([record]), np.ones((1, 1)), bins=5)
    assert metrics[("miou", -1)][0] == 1.0
    assert np.isnan(metrics[("iou", 1)][0])
    assert record.pixels == 1


def test_records_of_parts_add_up_to_the_record_of_the_whole() -> None:
    probability, label, measures = make_image(3)
    whole = image_statistics(probability, label, measures, bins=CHOSEN, class_bins=BINS)
    parts = [
        image_statistics(
            probability[:, rows],
            label[rows],
            {name: values[rows] for name, values in measures.items()},
            bins=CHOSEN,
            class_bins=BINS,
        )
        for rows in (slice(0, 17), slice(17, 59), slice(59, 60))
    ]
    total = reduce(merge, parts)
    for name, array in whole.arrays().items():
        np.testing.assert_allclose(total.arrays()[name], array, rtol=1e-9, atol=1e-9)


def test_a_record_does_not_grow_with_the_image() -> None:
    small, large = (
        image_statistics(*make_image(0, height=side, width=side), bins=CHOSEN, class_bins=BINS)
        for side in (4, 128)
    )
    for name, array in small.arrays().items():
        assert array.shape == large.arrays()[name].shape


def test_an_image_without_labels_changes_nothing() -> None:
    probability, label, measures = make_image(0)
    empty = image_statistics(probability, torch.full_like(label, 255), measures, bins=CHOSEN, class_bins=BINS)
    assert all(np.all(array == 0) for array in empty.arrays().values())


def test_weights_are_repetitions_of_blocks(statistics: Statistics) -> None:
    weighted = compute(statistics, np.array([[2.0, 0.0, 1.0, 0.0, 0.0]]), bins=BINS)
    chosen = [0, 0, 2]
    repeated = dataclasses.replace(
        statistics, **{name: array[chosen] for name, array in statistics.arrays().items()}
    )
    expected = compute(repeated, np.ones((1, 3)), bins=BINS)
    for key, value in weighted.items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-12)


def test_every_metric_has_an_interval_around_it(statistics: Statistics) -> None:
    estimates = summarise(statistics, bins=BINS, bootstrap=resampled(statistics, 300))
    assert estimates[("ece_noise", -1)].value < estimates[("ece", -1)].value / 2
    for (name, _), estimate in estimates.items():
        assert estimate.low < estimate.high, name
        slack = estimate.high - estimate.low
        assert estimate.low - slack <= estimate.value <= estimate.high + slack, name
    again = summarise(statistics, bins=BINS, bootstrap=resampled(statistics, 300))
    assert again == estimates


def simulated_bins(generator: np.random.Generator, *, gap: float, blocks: int = 24) -> npt.NDArray:
    """Bins [b, 15, 3] of a network whose accuracy lies `gap` below its confidence, and varies by block."""
    confidence = (np.arange(15) + 0.5) / 15
    pixels = 1000 * np.exp(generator.normal(0, 0.3, (blocks, 15)))
    accuracy = confidence - gap + generator.normal(0, 0.05, (blocks, 15))
    return np.stack([pixels, pixels * confidence, pixels * accuracy], axis=-1)


def test_the_ece_of_a_perfectly_calibrated_network_is_its_noise() -> None:
    errors, noises = [], []
    for seed in range(60):
        table = simulated_bins(np.random.default_rng(seed), gap=0.0)
        errors.append(calibration_error(table.sum(axis=0)))
        weights = bootstrap_weights(24, resamples=100, seed=seed)
        noises.append(calibration_noise(table, weights).mean())
    assert np.mean(noises) == pytest.approx(np.mean(errors), rel=0.15)
    assert np.mean(errors) > 0.004


def test_the_interval_of_ece_holds_the_truth_where_there_is_a_gap() -> None:
    hits = 0
    for seed in range(200):
        table = simulated_bins(np.random.default_rng(seed), gap=0.05)
        weights = bootstrap_weights(24, resamples=200, seed=seed)
        drawn = calibration_error(np.tensordot(weights, table, axes=1))
        low, high = percentile_interval(drawn, 0.95, count=24)
        hits += bool(low <= 0.05 <= high)
    assert 0.90 <= hits / 200 <= 0.99


def test_no_interval_of_nll_or_brier_begins_below_zero(statistics: Statistics) -> None:
    few = {name: array[:2].copy() for name, array in statistics.arrays().items()}
    for name in ("nll", "brier"):
        few[name] *= np.array([0.01, 1.0])
    two = dataclasses.replace(statistics, **few)
    estimates = summarise(two, bins=BINS, bootstrap=resampled(two, 100))
    for name in ("nll", "brier"):
        assert estimates[name, -1].low == 0.0
        assert estimates[name, -1].high > 2 * estimates[name, -1].value > 0


def test_one_block_has_no_interval(statistics: Statistics) -> None:
    one = dataclasses.replace(statistics, **{name: a[:1] for name, a in statistics.arrays().items()})
    estimate = summarise(one, bins=BINS, bootstrap=resampled(one, 100))[("miou", -1)]
    assert estimate.value > 0.3
    assert np.isnan(estimate.low)
    assert np.isnan(estimate.high)
    document = curves(one, bins=BINS, bootstrap=resampled(one, 100))
    assert set(document["reliability"]["accuracy_low"]) == {None}


def test_curves_end_at_the_error_rate_and_agree_with_ece(statistics: Statistics, metrics: Metrics) -> None:
    document = curves(statistics, bins=BINS, bootstrap=resampled(statistics, 100))
    risk = document["risk_coverage"]
    for name in MEASURES:
        assert risk[name]["risk"][-1] == pytest.approx(1 - metrics[("pixel_accuracy", -1)], abs=1e-6)
        assert risk[name]["risk"][4] < risk[name]["risk"][-1]
        assert all(low <= high for low, high in zip(risk[name]["low"], risk[name]["high"], strict=True))
    bins = document["reliability"]
    gaps = [
        n * abs(a - c)
        for n, a, c in zip(bins["pixels"], bins["accuracy"], bins["confidence"], strict=True)
        if n
    ]
    assert sum(gaps) / sum(bins["pixels"]) == pytest.approx(metrics[("ece", -1)], abs=1e-5)


def test_measure_bins_are_monotone_and_stay_inside() -> None:
    values = torch.cat([-torch.logspace(6, -3, 500), torch.logspace(-3, 6, 500)])
    for name in ("energy", "max_logit", "entropy"):
        bins = MeasureBins.of(name).index(values)
        assert (bins.diff() >= 0).all()
        assert bins.min() >= 0
        assert bins.max() <= MEASURE_BINS - 1


def test_bad_arguments_are_named() -> None:
    probability, label, measures = make_image(0)
    with pytest.raises(ValueError, match="labels below 4 or 255, but got 7"):
        image_statistics(probability, torch.full_like(label, 7), {}, bins=CHOSEN, class_bins=BINS)
    with pytest.raises(ValueError, match="`entropy` to be as large"):
        image_statistics(
            probability, label, {"entropy": measures["entropy"][:5]}, bins=CHOSEN, class_bins=BINS
        )
    with pytest.raises(ValueError, match="divisor of 150"):
        linear_bins(np.zeros((150, 3)), 7)
    with pytest.raises(ValueError, match="at least one record"):
        stack([])
    with pytest.raises(ValueError, match="same measures"):
        merge(
            *(
                image_statistics(probability, label, {name: measures[name]}, bins=CHOSEN, class_bins=BINS)
                for name in ("entropy", "max_logit")
            )
        )
