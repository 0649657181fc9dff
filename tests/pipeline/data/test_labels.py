"""The training mask of an image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.data.labels import compose_labels, count_classes, resize_mask
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
