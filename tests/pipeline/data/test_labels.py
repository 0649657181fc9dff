"""The training mask of an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.data.labels import (
    compose_labels,
    compose_votes,
    count_classes,
    count_votes,
    majority,
    resize_mask,
)
from pipeline.data.masks import write_mask
from pipeline.errors import DataError


def test_a_later_label_wins_only_where_it_says_something(tmp_path: Path) -> None:
    first = np.array([[0, 1, 255], [0, 1, 255]], dtype=np.uint8)
    second = np.array([[2, 255, 255], [255, 255, 2]], dtype=np.uint8)
    write_mask(tmp_path / "a.png", first)
    write_mask(tmp_path / "b.png", second)
    composed = compose_labels([tmp_path / "a.png", tmp_path / "b.png"], (3, 2))
    assert composed.tolist() == [[2, 1, 255], [0, 1, 2]]


def test_without_labels_nothing_is_known() -> None:
    assert compose_labels([], (2, 1)).tolist() == [[255, 255]]


def test_a_stored_label_of_another_size_or_missing_is_named(tmp_path: Path) -> None:
    write_mask(tmp_path / "a.png", np.zeros((2, 3), dtype=np.uint8))
    with pytest.raises(DataError, match=r"a\.png is not an 8-bit mask of 2×3"):
        compose_labels([tmp_path / "a.png"], (2, 3))
    with pytest.raises(DataError, match=r"b\.png"):
        compose_labels([tmp_path / "b.png"], (2, 3))


def test_classes_are_counted_and_strangers_refused() -> None:
    mask = np.array([[0, 2, 2, 255]], dtype=np.uint8)
    assert count_classes(mask, 3).tolist() == [1, 0, 2]
    with pytest.raises(DataError, match="class index 2, but the project has 2"):
        count_classes(mask, 2)


def test_masks_are_resized_to_values_that_were_there() -> None:
    mask = np.kron(np.array([[0, 255], [3, 1]], dtype=np.uint8), np.ones((4, 4), dtype=np.uint8))
    assert resize_mask(mask, (4, 4)).tolist() == np.kron([[0, 255], [3, 1]], np.ones((2, 2))).tolist()
    assert set(np.unique(resize_mask(mask, (5, 3)))) <= {0, 1, 3, 255}


def votes_of(*rows: list[int]) -> np.ndarray:
    """Masks [N, 1, W], oldest first."""
    return np.array(rows, dtype=np.uint8)[:, None]


def test_an_annotator_s_own_labels_are_painted_over_each_other_and_make_one_vote(tmp_path: Path) -> None:
    masks = {"a": [0, 255, 255], "b": [1, 1, 255], "c": [255, 2, 255]}
    for name, row in masks.items():
        write_mask(tmp_path / f"{name}.png", np.array([row], dtype=np.uint8))
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    assert compose_votes(paths, ["Ann", "Bo", "Ann"], (3, 1))[:, 0].tolist() == [[1, 1, 255], [0, 2, 255]]
    assert compose_votes(paths, [None, "Bo", None], (3, 1))[:, 0].tolist() == [[1, 1, 255], [0, 2, 255]]
    assert compose_votes(paths, [None] * 3, (3, 1))[0].tolist() == compose_labels(paths, (3, 1)).tolist()


def test_the_majority_decides_and_the_newest_where_there_is_none() -> None:
    votes = votes_of([0, 0, 255, 1, 255], [0, 1, 2, 255, 255], [1, 2, 255, 2, 255])
    assert majority(votes)[0].tolist() == [0, 2, 2, 2, 255]


def test_the_majority_agrees_with_counting_by_hand() -> None:
    rng = np.random.default_rng(0)
    votes = rng.integers(0, 3, (5, 20, 30), dtype=np.uint8)
    votes[rng.random(votes.shape) < 0.4] = 255
    found = majority(votes)
    for y, x in np.ndindex(20, 30):
        given = votes[:, y, x][votes[:, y, x] != 255]
        if len(given) == 0:
            assert found[y, x] == 255
            continue
        counts = np.bincount(given)
        tied = np.flatnonzero(counts == counts.max())
        assert found[y, x] == next(vote for vote in given[::-1] if vote in tied)


def test_a_disputed_pixel_counts_in_parts() -> None:
    votes = votes_of([0, 0, 255, 1], [0, 1, 255, 255], [0, 1, 255, 255])
    assert count_votes(votes, 3).tolist() == pytest.approx([1 + 1 / 3, 2 / 3 + 1, 0])
    mask = np.random.default_rng(0).integers(0, 3, (4, 5), dtype=np.uint8)
    assert count_votes(mask[None], 3).tolist() == count_classes(mask, 3).tolist()
    with pytest.raises(DataError, match="class index 2"):
        count_votes(votes_of([2]), 2)
