"""Measures against scipy and against their definitions, spelled out a pixel at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from pipeline.studies.constructed import measures_of
from pipeline.uncertainty.measures import (
    MEASURES,
    energy,
    entropy,
    least_confidence,
    margin,
    max_logit,
    max_logit_norm,
    measure_maps,
    mutual_information,
    predicted_class,
)


def logits_of(classes: int, *, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(2, classes, 5, 7, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("classes", [2, 3, 11])
def test_measures_equal_their_definitions_at_every_pixel(classes: int) -> None:
    logits = logits_of(classes)
    probability = logits.softmax(dim=1)
    p = np.sort(probability.numpy(), axis=1)

    np.testing.assert_allclose(least_confidence(probability), 1 - p[:, -1], rtol=1e-5)
    np.testing.assert_allclose(margin(probability), 1 - (p[:, -1] - p[:, -2]), rtol=1e-5)
    np.testing.assert_allclose(entropy(probability), stats.entropy(p, axis=1) / math.log(classes), atol=1e-6)
    np.testing.assert_allclose(energy(logits), -special.logsumexp(logits.numpy(), axis=1), rtol=1e-5)
    np.testing.assert_allclose(max_logit(logits), -logits.numpy().max(axis=1))
    assert torch.equal(predicted_class(probability), probability.argmax(dim=1))
    centred = logits.numpy() - logits.numpy().mean(axis=1, keepdims=True)
    normed = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(max_logit_norm(logits), -normed.max(axis=1), rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), samples=st.integers(1, 6), classes=st.integers(2, 9))
def test_mutual_information_is_never_negative_and_never_above_the_entropy(
    seed: int, samples: int, classes: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    probabilities = (8 * torch.randn(samples, classes, 3, 3, generator=generator)).softmax(dim=1)
    total = entropy(probabilities.mean(dim=0))
    information = mutual_information(total, entropy(probabilities).mean(dim=0))
    assert (information >= 0).all()
    assert (information <= total + 1e-6).all()
    assert ((total >= 0) & (total <= 1)).all()


def test_a_certain_pixel_has_no_uncertainty_and_a_uniform_one_has_all() -> None:
    certain = torch.tensor([1.0, 0.0, 0.0]).reshape(3, 1, 1)
    uniform = torch.full((3, 1, 1), 1 / 3)
    assert [f(certain).item() for f in (least_confidence, margin, entropy)] == [0, 0, 0]
    assert entropy(uniform).item() == pytest.approx(1)
    assert margin(uniform).item() == pytest.approx(1)
    assert least_confidence(uniform).item() == pytest.approx(2 / 3)


def test_without_samples_there_is_no_mutual_information() -> None:
    logits = logits_of(4)
    p = logits.softmax(dim=1)
    alone = measure_maps(logits=logits, probability=p, expected_entropy=None, votes=None)
    sampled = measure_maps(logits=logits, probability=p, expected_entropy=entropy(p) / 2, votes=p)
    assert tuple(sampled) == MEASURES
    assert set(MEASURES) - set(alone) == {"expected_entropy", "mutual_information", "variation_ratio"}
    torch.testing.assert_close(sampled["mutual_information"], sampled["entropy"] / 2)


def test_confidence_is_that_of_the_mean_over_samples_and_novelty_that_of_the_deterministic_logits() -> None:
    logits = logits_of(4)
    mean = logits_of(4, seed=1).softmax(dim=1)
    maps = measure_maps(logits=logits, probability=mean, expected_entropy=entropy(mean), votes=mean)
    p = np.sort(mean.numpy(), axis=1)
    np.testing.assert_allclose(maps["least_confidence"], 1 - p[:, -1], rtol=1e-5)
    np.testing.assert_allclose(maps["margin"], 1 - (p[:, -1] - p[:, -2]), rtol=1e-5)
    np.testing.assert_allclose(maps["max_logit"], -logits.numpy().max(axis=1))


def test_two_classes_have_no_normed_logit_because_it_would_be_constant() -> None:
    logits = logits_of(2)
    assert max_logit_norm(logits).max() - max_logit_norm(logits).min() < 1e-6
    p = logits.softmax(dim=1)
    maps = measure_maps(logits=logits, probability=p, expected_entropy=entropy(p), votes=p)
    assert set(MEASURES) - set(maps) == {"max_logit_norm"}
    assert tuple(maps) == measures_of("mc_dropout", num_classes=2)
    assert measures_of("mc_dropout", num_classes=3) == MEASURES


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="C of at least 2"):
        entropy(torch.ones(1, 1, 4, 4))


def test_shapes_that_differ_are_refused() -> None:
    logits = logits_of(3)
    with pytest.raises(ValueError, match="of one shape"):
        measure_maps(
            logits=logits,
            probability=logits[..., :4],
            expected_entropy=None,
            votes=None,
        )
