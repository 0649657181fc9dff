"""Error detection from histograms against scikit-learn and brute force on the raw pixels."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from pipeline.evaluation.bootstrap import BlockBootstrap, bootstrap_weights
from pipeline.evaluation.detection import (
    PATCH,
    coarse,
    detection_estimates,
    error_histograms,
    error_metrics,
    find_patches,
    patch_sums,
    separation,
)
from pipeline.evaluation.estimate import Estimate
from pipeline.evaluation.measure_bins import MEASURE_BINS, BinSample, MeasureBins
from pipeline.evaluation.parts import Parts, boundary_band, part_names, with_whole
from pipeline.evaluation.ranks import rank_correlation

CLASSES = 3
UNTIED = np.zeros(MEASURE_BINS, dtype=bool)
NAMES = part_names(["ground", "water", "tree"])


def bootstrap_of(blocks: int, *, resamples: int = 200) -> BlockBootstrap:
    return BlockBootstrap(bootstrap_weights(blocks, resamples=resamples, seed=0), confidence=0.95)


class Scene:
    """Pixels whose errors follow a measure, more or less."""

    def __init__(self, seed: int, *, measure: str = "entropy", pixels: int = 40_000) -> None:
        generator = np.random.default_rng(seed)
        hidden = generator.normal(size=pixels)
        self.wrong = generator.random(pixels) < 1 / (1 + np.exp(3 - 2 * hidden))
        noisy = hidden + generator.normal(0, 0.7, pixels)
        self.value = (
            1 / (1 + np.exp(3 - 1.5 * noisy)) if measure == "entropy" else (noisy * 3 - 8).astype(np.float64)
        )
        self.label = generator.integers(0, CLASSES, pixels)
        self.boundary = generator.random(pixels) < 0.3
        self.measure = measure

    @property
    def parts(self) -> Parts:
        return Parts(torch.from_numpy(self.label), torch.from_numpy(self.boundary), CLASSES)

    def histograms(self) -> np.ndarray:
        measures = {self.measure: torch.from_numpy(self.value)}
        wrong, bins = torch.from_numpy(self.wrong), bins_of(self.measure)
        return error_histograms(measures, {self.measure: wrong}, self.parts, bins=bins)[0]

    def of_part(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        kept = {
            "all": np.ones_like(self.wrong),
            "boundary": self.boundary,
            "interior": ~self.boundary,
        } | {f"class:{name}": self.label == index for index, name in enumerate(("ground", "water", "tree"))}
        return self.wrong[kept[name]], self.value[kept[name]]


@cache
def bins_of(measure: str) -> dict[str, MeasureBins]:
    scene, sample = Scene(1, measure=measure), BinSample()
    sample.add({measure: torch.from_numpy(scene.value)}, torch.from_numpy(scene.wrong))
    return sample.bins()


def brute_force(wrong: np.ndarray, value: np.ndarray) -> dict[str, float]:
    order = np.argsort(value, kind="stable")
    errors = wrong[order].cumsum()
    kept = np.arange(1, len(wrong) + 1)
    best = np.sort(wrong).cumsum()
    false, true, _ = roc_curve(wrong, value)
    return {
        "auroc": float(roc_auc_score(wrong, value)),
        "aupr": float(average_precision_score(wrong, value)),
        "fpr95": float(false[np.argmax(true >= 0.95)]),
        "aurc": float((errors / kept).mean()),
        "e_aurc": float((errors / kept).mean() - (best / kept).mean()),
        "augrc": float((errors / len(wrong)).mean()),
    }


@pytest.mark.parametrize("measure", ["entropy", "energy"])
@pytest.mark.parametrize("part", NAMES)
def test_histograms_give_what_raw_pixels_give_in_every_part(measure: str, part: str) -> None:
    scene = Scene(1, measure=measure)
    found = error_metrics(with_whole(scene.histograms()[None], axis=1), tied=UNTIED)
    for metric, expected in brute_force(*scene.of_part(part)).items():
        tolerance = 6e-3 if metric == "fpr95" else 2e-3  # one threshold, not a mean over all of them
        assert found[metric][0, NAMES.index(part)] == pytest.approx(expected, abs=tolerance), metric


def test_a_perfect_ranking_has_no_excess_risk_and_a_reversed_one_has() -> None:
    right, wrong = np.zeros((2, 512))
    right[10], wrong[500] = 900, 100
    perfect = error_metrics(np.stack([right, wrong])[None], tied=UNTIED)
    reversed_ = error_metrics(np.stack([right[::-1], wrong[::-1]])[None], tied=UNTIED)
    assert perfect["e_aurc"][0] == pytest.approx(0, abs=1e-12)
    assert perfect["auroc"][0] == 1
    assert perfect["fpr95"][0] == 0
    assert reversed_["e_aurc"][0] > 0.2
    assert perfect["augrc"][0] == pytest.approx(0.1**2 / 2)


def test_augrc_follows_from_auroc_and_accuracy_as_its_authors_say() -> None:
    found = error_metrics(Scene(3).histograms()[None], tied=UNTIED)
    errors = Scene(3).histograms()
    accuracy = errors[:, 0].sum(axis=-1) / errors.sum(axis=(-1, -2))
    expected = (1 - found["auroc"][0]) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
    assert found["augrc"][0] == pytest.approx(expected)


def test_where_nothing_is_wrong_there_is_no_detection_to_speak_of() -> None:
    errors = np.zeros((2, 1, 2, 512))
    errors[:, :, 0, 7] = 10
    patches = np.zeros((2, 1, 2, 2))
    whole = np.concatenate([errors, errors], axis=1), np.concatenate([patches, patches], axis=1)
    found = detection_estimates(*whole, tied=UNTIED, lowest=0, highest=1, bootstrap=bootstrap_of(2))
    assert np.isnan(found["auroc"][0].value)
    assert found["aurc"][0].value == 0


def test_an_interval_holds_its_value_and_narrows_with_blocks() -> None:
    def width(blocks: int) -> float:
        scenes = [Scene(seed, pixels=800) for seed in range(blocks)]
        errors = np.stack([scene.histograms() for scene in scenes])
        found = detection_estimates(
            errors,
            np.zeros((blocks, *errors.shape[1:2], 2, 2)),
            tied=UNTIED,
            lowest=0,
            highest=1,
            bootstrap=bootstrap_of(blocks),
        )["auroc"][0]
        assert found.low < found.value < found.high
        return found.high - found.low

    assert width(40) < 0.6 * width(6)


def test_joining_bins_for_the_resamples_hardly_moves_a_metric() -> None:
    errors = Scene(5).histograms()[None]
    joined, tied = coarse(errors, UNTIED)
    assert not tied.any()
    assert joined.shape[-1] <= 256
    assert joined.sum() == errors.sum()
    fine, rough = error_metrics(errors, tied=UNTIED), error_metrics(joined, tied=tied)
    for metric in fine:
        tolerance = 5e-3 if metric == "fpr95" else 2e-3  # one threshold, not a mean over all of them
        assert rough[metric] == pytest.approx(fine[metric], abs=tolerance), metric


def test_pavpu_is_the_mean_over_thresholds_of_agreeing_patches() -> None:
    generator = np.random.default_rng(0)
    height, width = 37, 50
    value = generator.random((height, width))
    wrong = generator.random((height, width)) < value
    label = generator.integers(0, CLASSES, (height, width))
    label[:5, :9] = 255
    valid = torch.from_numpy(label != 255)
    parts = Parts(torch.from_numpy(label)[valid], torch.zeros(int(valid.sum()), dtype=torch.bool), CLASSES)
    patches = find_patches(valid, parts)
    found = patch_sums(torch.from_numpy(value)[valid], torch.from_numpy(wrong)[valid], patches)

    means, accurate = [], []
    for y in range(0, height - PATCH + 1, PATCH):
        for x in range(0, width - PATCH + 1, PATCH):
            window = (slice(y, y + PATCH), slice(x, x + PATCH))
            kept = label[window] != 255
            if kept.sum() * 2 >= PATCH**2:
                means.append(value[window][kept].mean())
                accurate.append(wrong[window][kept].mean() <= 0.5)
    assert found.sums[:2, :, 0].sum() == len(means)
    assert found.lowest == pytest.approx(min(means))
    assert found.highest == pytest.approx(max(means))
    thresholds = np.linspace(min(means), max(means), 20_001)
    certain = np.array(means)[:, None] < thresholds
    expected = (certain == np.array(accurate)[:, None]).mean()

    estimates = detection_estimates(
        np.ones((1, 2 + CLASSES, 2, 512)),
        found.sums[None],
        tied=UNTIED,
        lowest=found.lowest,
        highest=found.highest,
        bootstrap=bootstrap_of(1),
    )
    assert estimates["pavpu"][0].value == pytest.approx(expected, abs=1e-3)
    assert np.isnan(estimates["pavpu"][0].low)


def test_the_boundary_band_is_what_lies_near_another_label() -> None:
    generator = np.random.default_rng(2)
    label = np.kron(generator.integers(0, 3, (5, 6)), np.ones((7, 7))).astype(np.uint8)
    label[10:16, 10:30] = 255
    for width in (1, 3):
        found = boundary_band(torch.from_numpy(label), width=width).numpy()
        for y, x in np.ndindex(label.shape):
            window = label[max(0, y - width) : y + width + 1, max(0, x - width) : x + width + 1]
            expected = label[y, x] != 255 and bool(((window != label[y, x]) & (window != 255)).any())
            assert found[y, x] == expected


def test_novelty_is_told_from_the_known_as_scikit_learn_says() -> None:
    generator = np.random.default_rng(4)
    known, novel = generator.integers(0, 300, (6, 500)), generator.integers(100, 512, (6, 500))
    histograms = [
        np.stack([np.bincount(row, minlength=512) for row in rows]).astype(float) for rows in (known, novel)
    ]
    found = separation(*histograms, bootstrap=bootstrap_of(6))
    expected = roc_auc_score(np.repeat([0, 1], 3000), np.concatenate([known.ravel(), novel.ravel()]))
    assert found.value == pytest.approx(expected)
    assert found.low < found.value < found.high


def test_rank_correlation_is_scipys_and_its_interval_that_of_whole_resamples() -> None:
    generator = np.random.default_rng(6)
    block = np.repeat(np.arange(12), 60)
    score = generator.random(720) + generator.normal(0, 0.2, 12)[block]
    error = np.clip(score + generator.normal(0, 0.6, 720), 0, None)  # many regions have no error at all
    bootstrap = bootstrap_of(12, resamples=300)
    found = rank_correlation(score, error, block, bootstrap=bootstrap)
    assert found.value == pytest.approx(spearmanr(score, error)[0])
    drawn = []
    for weights in bootstrap.weights.astype(int):
        chosen = np.concatenate(
            [np.flatnonzero(block == index) for index in np.repeat(np.arange(12), weights)]
        )
        drawn.append(spearmanr(score[chosen], error[chosen])[0])
    expected = np.array([np.std(drawn)])
    assert (found.high - found.low) / (2 * 2.2) == pytest.approx(expected[0], rel=0.15)


@pytest.mark.parametrize("kind", ["almost all zero", "votes", "continuous"])
def test_the_resamples_rank_ties_as_the_value_does(kind: str) -> None:
    def bias(seed: int) -> float:
        generator = np.random.default_rng(seed)
        hidden = generator.normal(size=1800)
        score, error = hidden + generator.normal(size=1800), np.where(hidden > 1.645, hidden, 0)
        if kind == "almost all zero":
            score = np.where(score > np.quantile(score, 0.95), score, 0)
        elif kind == "votes":
            score, error = np.round(score * 2) / 2, np.round(np.clip(hidden, 0, 2) * 3) / 3
        else:
            error = hidden
        once = BlockBootstrap(np.ones((3, 12)), confidence=0.95)  # each resample is the data itself
        block = np.repeat(np.arange(12), 150)
        found = rank_correlation(score, error, block, bootstrap=once)
        assert found.low == pytest.approx(found.high)
        return abs(found.low - np.asarray(spearmanr(score, error))[0])

    assert max(map(bias, range(5))) < 2e-3


def test_one_region_has_no_rank_correlation() -> None:
    found = rank_correlation(np.ones(1), np.ones(1), np.zeros(1, dtype=np.int64), bootstrap=bootstrap_of(1))
    assert isinstance(found, Estimate)
    assert np.isnan(found.value)
