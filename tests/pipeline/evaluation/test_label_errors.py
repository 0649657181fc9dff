"""Which labels the model doubts: against cleanlab, and confident learning written out pixel by pixel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from cleanlab.count import compute_confident_joint, get_confident_thresholds

from pipeline.evaluation.label_errors import (
    RegionDoubts,
    class_thresholds,
    doubted_pixels,
    region_doubts,
    self_confidence,
)

Floats = npt.NDArray[np.float32]


def some(seed: int, *, classes: int = 4, side: int = 24) -> tuple[Floats, npt.NDArray[np.uint8]]:
    """Probability [C, H, W] that mostly agrees with a label, which is 255 here and there."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, size=(side, side)).astype(np.uint8)
    logits = rng.normal(0, 1.5, size=(classes, side, side))
    logits += 2.0 * (np.arange(classes)[:, None, None] == label)
    probability = np.exp(logits) / np.exp(logits).sum(axis=0)
    label[rng.random((side, side)) < 0.1] = 255
    return probability.astype(np.float32), label


def doubts_of(
    probability: torch.Tensor,
    label: torch.Tensor,
    *,
    thresholds: npt.NDArray[np.float64],
    rows: npt.NDArray[np.int32],
    areas: npt.NDArray[np.int64],
    band: int = 7,
) -> RegionDoubts:
    """The doubts of an image that is looked at in bands of so many rows."""
    parts = [slice(start, start + band) for start in range(0, len(label), band)]
    found = (
        doubted_pixels(probability[:, part], label[part], thresholds=thresholds, rows=rows[part])
        for part in parts
    )
    return region_doubts(found, classes=len(probability), areas=areas)


def mean_self_confidence(probability: Floats, label: npt.NDArray[np.uint8]) -> list[float]:
    given = [[] for _ in probability]
    for (row, column), index in np.ndenumerate(label):
        if index != 255:
            given[index].append(float(probability[index, row, column]))
    return [sum(values) / len(values) for values in given]


@pytest.mark.parametrize("seed", range(3))
def test_thresholds_are_the_mean_self_confidence_of_each_class_over_all_images(seed: int) -> None:
    images = [some(seed), some(seed + 10)]
    sums = sum(self_confidence(torch.from_numpy(p), torch.from_numpy(label)) for p, label in images)
    both = np.concatenate([p for p, _ in images], axis=2), np.concatenate([y for _, y in images], axis=1)
    assert class_thresholds(np.asarray(sums)) == pytest.approx(mean_self_confidence(*both), abs=1e-6)


def test_without_a_labeled_pixel_there_are_no_thresholds() -> None:
    empty = torch.full((3, 3), 255, dtype=torch.uint8)
    with pytest.raises(ValueError, match="labeled pixel"):
        class_thresholds(self_confidence(torch.full((2, 3, 3), 0.5), empty))
    with pytest.raises(ValueError, match="labeled pixel"):
        class_thresholds(np.zeros((2, 3)))


@pytest.mark.parametrize("seed", range(3))
def test_thresholds_and_doubted_pixels_are_cleanlabs(seed: int) -> None:
    probability, label = some(seed)
    known = label != 255
    p, y = probability[:, known].T.astype(np.float64), label[known].astype(np.int64)
    thresholds = class_thresholds(self_confidence(torch.from_numpy(probability), torch.from_numpy(label)))
    assert thresholds == pytest.approx(get_confident_thresholds(y, p), abs=1e-6)

    joint, doubted = compute_confident_joint(y, p, calibrate=False, return_indices_of_off_diagonals=True)
    assert joint.sum() - np.trace(joint) == len(doubted) > 20
    margin = np.where(p >= thresholds, p, 0).max(axis=1) - p[np.arange(len(y)), y]
    whole = doubts_of(
        torch.from_numpy(probability),
        torch.from_numpy(label),
        thresholds=thresholds,
        rows=np.zeros(label.shape, dtype=np.int32),
        areas=np.array([label.size]),
    )
    assert whole.score[0] == pytest.approx(margin[doubted].clip(min=0).sum() / label.size, rel=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_doubts_are_those_of_confident_learning_by_region(seed: int) -> None:
    probability, label = some(seed)
    classes, side = 4, 24
    limits = mean_self_confidence(probability, label)
    rows = (np.arange(side)[:, None] // 8 * 3 + np.arange(side) // 8).astype(np.int32)
    rows[rows == 4] = -1
    areas = np.full(9, 64)
    found = doubts_of(
        torch.from_numpy(probability),
        torch.from_numpy(label),
        thresholds=np.array(limits),
        rows=rows,
        areas=areas,
    )
    margins: dict[int, dict[tuple[int, int], list[tuple[float, float]]]] = {}
    for (row, column), given in np.ndenumerate(label):
        here = probability[:, row, column]
        over = [name for name in range(classes) if here[name] >= limits[name]]
        if given == 255 or not over or rows[row, column] < 0:
            continue
        said = max(over, key=lambda name: here[name])
        if said != given and here[said] > here[given]:
            pairs = margins.setdefault(int(rows[row, column]), {})
            pairs.setdefault((int(given), said), []).append((here[said] - here[given], here[said]))
    assert found.region.tolist() == sorted(margins)
    assert len(found.region) >= 6
    for place, region in enumerate(found.region.tolist()):
        pairs = margins[region]
        total = sum(margin for values in pairs.values() for margin, _ in values)
        assert found.score[place] == pytest.approx(total / 64, rel=1e-5)
        best = max(pairs, key=lambda pair: sum(margin for margin, _ in pairs[pair]))
        assert (found.label[place], found.predicted[place]) == best
        assert found.share[place] == pytest.approx(len(pairs[best]) / 64)
        sure = [confidence for _, confidence in pairs[best]]
        assert found.confidence[place] == pytest.approx(sum(sure) / len(sure), rel=1e-5)


def test_a_class_that_the_model_is_never_sure_of_needs_less_to_be_believed() -> None:
    probability = torch.tensor([0.3, 0.6, 0.1]).reshape(3, 1, 1).expand(3, 4, 4)
    label = torch.zeros(4, 4, dtype=torch.uint8)
    settings = {"rows": np.zeros((4, 4), np.int32), "areas": np.array([16])}
    easy = doubts_of(probability, label, thresholds=np.array([0.9, 0.5, 0.9]), **settings)
    assert (easy.label.tolist(), easy.predicted.tolist(), easy.share.tolist()) == ([0], [1], [1.0])
    assert easy.score == pytest.approx([0.3])
    hard = doubts_of(probability, label, thresholds=np.array([0.9, 0.7, 0.9]), **settings)
    assert len(hard.region) == 0


def test_a_class_without_a_labeled_pixel_has_the_threshold_of_all() -> None:
    sums = np.array([[3.0, 1.0, 0.0], [4.0, 4.0, 0.0]])
    assert class_thresholds(sums).tolist() == [0.75, 0.25, 0.5]
