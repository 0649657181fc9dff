"""How annotators agree: against pairs counted one by one, and scipy's entropy."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import entropy

from pipeline.config import IGNORE
from pipeline.evaluation.agreement import Agreement, pair_counts, region_agreement
from pipeline.regions.outlines import encode_outline

Votes = npt.NDArray[np.uint8]


def whole(votes: Votes, *, num_classes: int, outline: str | None = None) -> Agreement | None:
    height, width = votes.shape[1:]
    box = np.array([[0, 0, width, height]], np.int32)
    (found,) = region_agreement(votes, box, [outline], num_classes=num_classes)
    return found


def counted(votes: Votes, num_classes: int) -> tuple[float, float]:
    """Disagreement and vote entropy, pixel by pixel and pair by pair."""
    differing: list[float] = []
    entropies: list[float] = []
    for pixel in votes.reshape(len(votes), -1).T:
        said = [int(value) for value in pixel if value != IGNORE]
        if len(said) >= 2:
            differing.append(float(np.mean([a != b for a, b in combinations(said, 2)])))
            entropies.append(float(entropy(np.bincount(said, minlength=num_classes)) / np.log(num_classes)))
    return float(np.mean(differing)), float(np.mean(entropies))


def random_votes(annotators: int, num_classes: int, *, silent: float, seed: int = 0) -> Votes:
    generator = np.random.default_rng(seed)
    votes = generator.integers(0, num_classes, size=(annotators, 9, 11), dtype=np.uint8)
    votes[generator.random(votes.shape) < silent] = IGNORE
    return votes


@pytest.mark.parametrize("annotators", [2, 3, 7])
@pytest.mark.parametrize("num_classes", [2, 5, 200])
@pytest.mark.parametrize("silent", [0.0, 0.6])
def test_it_is_what_pairs_counted_one_by_one_say(annotators: int, num_classes: int, silent: float) -> None:
    votes = random_votes(annotators, num_classes, silent=silent)
    found = whole(votes, num_classes=num_classes)
    assert found is not None
    np.testing.assert_allclose((found.disagreement, found.vote_entropy), counted(votes, num_classes))
    assert found.annotators == annotators
    assert found.pixels == ((votes != IGNORE).sum(axis=0) >= 2).sum()


def test_whoever_agrees_has_no_disagreement_and_two_who_never_do_have_all_of_it() -> None:
    alike = np.full((3, 4, 4), 2, np.uint8)
    assert whole(alike, num_classes=4) == Agreement(annotators=3, pixels=16, disagreement=0, vote_entropy=0)
    opposed = np.stack([np.zeros((4, 4)), np.ones((4, 4))]).astype(np.uint8)
    assert whole(opposed, num_classes=2) == Agreement(2, 16, disagreement=1.0, vote_entropy=1.0)
    found = whole(opposed, num_classes=4)
    assert found is not None
    assert found.vote_entropy == pytest.approx(0.5)  # ln 2 / ln 4


def test_a_pixel_that_one_annotator_labeled_says_nothing_of_agreement() -> None:
    votes = np.full((2, 2, 4), IGNORE, np.uint8)
    votes[0, :, :2], votes[1, :, 1:] = 0, 1
    assert whole(votes, num_classes=2) == Agreement(2, 2, disagreement=1.0, vote_entropy=1.0)
    votes[0, :, 1] = IGNORE
    assert whole(votes, num_classes=2) is None


def test_an_annotator_of_other_pixels_is_not_counted() -> None:
    votes = np.full((3, 1, 4), IGNORE, np.uint8)
    votes[:2, 0, :2] = 0
    votes[2, 0, 3] = 1
    assert whole(votes, num_classes=2) == Agreement(2, 2, disagreement=0.0, vote_entropy=0.0)


def test_each_region_is_measured_on_its_own_pixels() -> None:
    votes = random_votes(3, 4, silent=0.1)
    outline = np.random.default_rng(1).random((6, 5)) < 0.5
    boxes = np.array([[0, 0, 4, 3], [4, 2, 5, 6], [8, 7, 10, 10]], np.int32)
    found = region_agreement(votes, boxes, [None, encode_outline(outline), None], num_classes=4)
    parts = [votes[:, :3, :4], votes[:, 2:8, 4:9][:, outline], votes[:, 7:, 8:]]
    for one, part in zip(found, parts, strict=True):
        assert one is not None
        np.testing.assert_allclose((one.disagreement, one.vote_entropy), counted(part, 4))


def test_the_order_of_annotators_and_of_classes_changes_nothing() -> None:
    votes = random_votes(4, 6, silent=0.3)
    found = whole(votes, num_classes=6)
    names = np.append(np.random.default_rng(2).permutation(6), np.full(250, IGNORE)).astype(np.uint8)
    other = whole(names[votes[::-1]], num_classes=6)
    assert found is not None
    assert other is not None
    assert (other.annotators, other.pixels) == (found.annotators, found.pixels)
    np.testing.assert_allclose(
        (other.disagreement, other.vote_entropy), (found.disagreement, found.vote_entropy)
    )


def test_pairs_are_counted_over_the_pixels_that_both_have_labeled() -> None:
    votes = random_votes(4, 3, silent=0.4)
    shared, same = pair_counts(votes)
    for one in range(4):
        for other in range(4):
            both = (votes[one] != IGNORE) & (votes[other] != IGNORE)
            assert shared[one, other] == both.sum()
            assert same[one, other] == (votes[one][both] == votes[other][both]).sum()


def test_one_class_or_votes_of_another_shape_are_refused() -> None:
    box = np.array([[0, 0, 2, 2]], np.int32)
    with pytest.raises(ValueError, match="`num_classes` to be at least 2, but got 1"):
        region_agreement(np.zeros((2, 2, 2), np.uint8), box, [None], num_classes=1)
    with pytest.raises(ValueError, match=r"`votes` to be \[N, H, W\], but got the shape \(2, 2\)"):
        region_agreement(np.zeros((2, 2), np.uint8), box, [None], num_classes=2)
    with pytest.raises(ValueError, match="`votes`"):
        pair_counts(np.zeros((2, 2), np.uint8))
