"""Reliability by part and the class-frequency test, where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve

from pipeline.evaluation.bootstrap import BlockBootstrap, bootstrap_weights
from pipeline.evaluation.frequency import covered, fit_groups, frequency_sums, frequency_test
from pipeline.evaluation.parts import Parts, part_names
from pipeline.evaluation.quality import RegionSums
from pipeline.evaluation.reliability import Reliability, reliability_estimates, reliability_table

CLASSES = 3
BINS = 15
NAMES = part_names(["ground", "water", "tree"])


def bootstrap_of(blocks: int) -> BlockBootstrap:
    return BlockBootstrap(bootstrap_weights(blocks, resamples=300, seed=0), confidence=0.95)


def draw(
    seed: int, *, pixels: int = 2000, sharpened: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions [N, C], labels drawn from the true probabilities, and the boundary band. With
    `sharpened` above 1 the predictions are surer than the truth."""
    generator = np.random.default_rng(seed)
    truth = generator.dirichlet([0.6, 0.4, 0.3], pixels)
    label = (truth.cumsum(axis=1) < generator.random((pixels, 1))).sum(axis=1)
    predicted = truth**sharpened
    return predicted / predicted.sum(axis=1, keepdims=True), label, generator.random(pixels) < 0.25


def diagrams(sharpened: float, *, blocks: int = 30) -> dict[str, Reliability]:
    tables = []
    for seed in range(blocks):
        p, label, boundary = draw(seed, sharpened=sharpened)
        predicted = torch.from_numpy(p.argmax(axis=1))
        parts = Parts(predicted, torch.from_numpy(boundary), CLASSES)
        right = predicted == torch.from_numpy(label)
        tables.append(reliability_table(torch.from_numpy(p.max(axis=1)), right, parts, bins=BINS))
    return dict(
        zip(NAMES, reliability_estimates(np.stack(tables), bootstrap=bootstrap_of(blocks)), strict=True)
    )


class TestReliability:
    @pytest.mark.parametrize("part", NAMES)
    def test_each_parts_diagram_is_scikit_learns(self, part: str):
        found = diagrams(1.5, blocks=4)[part]
        p, label, boundary = (
            np.concatenate(column)
            for column in zip(*(draw(seed, sharpened=1.5) for seed in range(4)), strict=True)
        )
        winner = p.argmax(axis=1)
        kept = {"all": np.ones_like(boundary), "boundary": boundary, "interior": ~boundary} | {
            name: winner == index for index, name in enumerate(NAMES[3:])
        }
        accuracy, confidence = calibration_curve(
            (winner == label)[kept[part]], p.max(axis=1)[kept[part]], n_bins=BINS
        )
        filled = found.share > 0
        assert found.accuracy[filled] == pytest.approx(accuracy)
        assert found.confidence[filled] == pytest.approx(confidence)
        assert found.share.sum() == pytest.approx(1)
        expected = np.abs(accuracy - confidence) @ found.share[filled]
        assert found.ece.value == pytest.approx(expected)

    def test_bands_hold_the_diagonal_of_a_calibrated_model_and_not_of_a_sharpened_one(self):
        def inside(sharpened: float) -> float:
            found = diagrams(sharpened)["all"]
            filled = found.share > 0.01
            held = (found.low <= found.confidence) & (found.confidence <= found.high)
            return float(held[filled].mean())

        assert inside(1.0) >= 0.8
        assert inside(2.0) <= 0.3

    def test_the_ece_of_a_calibrated_model_is_noise_and_that_of_a_sharpened_one_is_not(self):
        assert diagrams(1.0)["all"].ece.value < 2 * diagrams(1.0)["all"].ece_noise
        assert diagrams(2.0)["all"].ece.low > 3 * diagrams(2.0)["all"].ece_noise


class TestFrequency:
    def groups(self, sharpened: float, *, blocks: int = 30):
        centroids = fit_groups(draw(99, sharpened=sharpened)[0], groups=12)
        sums = []
        for seed in range(blocks):
            p, label, _ = draw(seed, sharpened=sharpened)
            sums.append(
                frequency_sums(
                    torch.from_numpy(p).T.float(),
                    torch.from_numpy(label),
                    torch.from_numpy(centroids).float(),
                )
            )
        return frequency_test(np.stack(sums), bootstrap=bootstrap_of(blocks))

    def test_what_is_predicted_comes_true_where_the_model_is_calibrated(self):
        groups = self.groups(1.0)
        assert len(groups) == 12
        assert sum(group.share for group in groups) == pytest.approx(1)
        assert covered(groups) >= 0.85

    def test_and_does_not_where_it_is_too_sure(self):
        assert covered(self.groups(2.0)) < 0.4

    def test_sums_are_those_of_the_nearest_centroid(self):
        p, label, _ = draw(3, pixels=300)
        centroids = fit_groups(p, groups=5)
        found = frequency_sums(torch.from_numpy(p).T, torch.from_numpy(label), torch.from_numpy(centroids))
        nearest = ((p[:, None] - centroids) ** 2).sum(axis=2).argmin(axis=1)
        for group in range(len(centroids)):
            assert found[group, 0] == pytest.approx(p[nearest == group].sum(axis=0))
            assert found[group, 1].tolist() == np.bincount(label[nearest == group], minlength=3).tolist()

    def test_a_class_that_never_came_has_the_interval_of_no_success_in_as_many_blocks(self):
        sums = np.zeros((20, 1, 2, 3))
        sums[:, 0, 0] = [90, 9, 1]
        sums[:, 0, 1] = [91, 9, 0]
        (group,) = frequency_test(sums, bootstrap=bootstrap_of(20))
        assert group.low[2] == 0
        assert group.high[2] == pytest.approx(1 - 0.025 ** (1 / 20))
        assert group.covered[2]

    def test_groups_in_too_few_blocks_are_left_out(self):
        sums = np.zeros((5, 2, 2, 3))
        sums[:, 0] = 100
        sums[:2, 1] = 100
        assert len(frequency_test(sums, bootstrap=bootstrap_of(5))) == 1

    def test_fewer_different_vectors_than_groups_are_groups_themselves(self):
        vectors = np.array([[1.0, 0, 0], [0, 1.0, 0], [1.0, 0, 0]])
        assert fit_groups(vectors, groups=40).tolist() == [[0, 1, 0], [1, 0, 0]]


class TestRegions:
    def test_scores_are_means_over_the_region_and_errors_over_its_labeled_pixels(self):
        generator = np.random.default_rng(1)
        row = np.repeat(np.arange(4), 25).reshape(10, 10)
        row[0, 0] = -1
        value, wrong = generator.random((10, 10)), generator.random((10, 10)) < 0.4
        valid = generator.random((10, 10)) < 0.8
        valid[row == 2] = False
        sums = RegionSums(4)
        for part in (slice(0, 4), slice(4, 10)):
            sums.add(
                torch.from_numpy(row[part]),
                {"entropy": torch.from_numpy(value[part])},
                {"entropy": torch.from_numpy(wrong[part])},
                torch.from_numpy(valid[part]),
            )
        found = sums.table(most=100, generator=generator)
        kept = (0, 1, 3)
        assert found.scores[:, 0] == pytest.approx([value[row == index].mean() for index in kept])
        assert found.errors[:, 0] == pytest.approx([wrong[(row == index) & valid].mean() for index in kept])

    def test_no_more_regions_are_kept_than_asked_for(self):
        row = torch.arange(100).reshape(10, 10)
        sums = RegionSums(100)
        sums.add(
            row,
            {"entropy": row.double()},
            {"entropy": torch.zeros(10, 10, dtype=torch.bool)},
            torch.ones(10, 10, dtype=torch.bool),
        )
        found = sums.table(most=7, generator=np.random.default_rng(0))
        assert len(set(found.scores[:, 0].tolist())) == 7
