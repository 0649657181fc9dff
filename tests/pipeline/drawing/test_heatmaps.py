"""Heat maps that come back as they were, and pictures that show what they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.drawing.heatmaps import overlay, write_heatmap
from tests.pipeline.drawing.stored import read_heatmap


def test_a_heat_map_comes_back_with_its_scale(tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(-3, 9, (20, 30)).astype(np.float32)
    write_heatmap(tmp_path / "maps" / "a.png", values, measure="energy", low=-3, high=9)
    found = read_heatmap(tmp_path / "maps" / "a.png")
    assert (found.measure, found.low, found.high) == ("energy", -3, 9)
    assert np.abs(found.values - values).max() <= 12 / 510 + 1e-5
    with Image.open(tmp_path / "maps" / "a.png") as file:
        assert (file.mode, file.size) == ("L", (30, 20))


def test_values_beyond_the_scale_are_cut(tmp_path: Path) -> None:
    write_heatmap(tmp_path / "a.png", np.array([[-1.0, 2.0]]), measure="entropy", low=0, high=1)
    assert read_heatmap(tmp_path / "a.png").values.tolist() == [[0, 1]]


def test_a_flat_map_is_written_and_read(tmp_path: Path) -> None:
    write_heatmap(tmp_path / "a.png", np.full((2, 2), 0.3), measure="mutual_information", low=0.3, high=0.3)
    assert read_heatmap(tmp_path / "a.png").values == pytest.approx(np.full((2, 2), 0.3))


def test_an_overlay_glows_where_the_map_is_high_and_shows_the_image_elsewhere() -> None:
    image = np.full((80, 200, 3), 90, dtype=np.uint8)
    high = np.zeros((20, 50), dtype=np.float32)
    high[:, 25:] = 0.9
    picture = overlay(image, high)
    assert picture.dtype == np.uint8
    assert picture.shape[1:] == (200, 3)
    assert picture.shape[0] > 80
    assert np.abs(picture[:80, :90].astype(int) - 90).max() <= 30
    red, _, blue = picture[40, 180].astype(int)
    assert red > 200
    assert blue < red - 80


def test_boxes_are_outlined_and_nothing_else_changes_far_from_them() -> None:
    image = np.full((120, 160, 3), 40, dtype=np.uint8)
    flat = np.zeros((30, 40), dtype=np.float32)
    plain = overlay(image, flat)
    boxed = overlay(image, flat, np.array([[20, 30, 40, 50]]), names=["1"])
    assert boxed[30:80, 20].max() == 255 or boxed[30:80, 21].max() == 255
    assert np.array_equal(plain[:, 100:], boxed[:, 100:])


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (300, 7)])
def test_any_size_has_an_overlay(size: tuple[int, int]) -> None:
    picture = overlay(np.zeros((*size, 3), dtype=np.uint8), np.ones((1, 1), dtype=np.float32))
    assert picture.shape[1] == size[1]


def test_names_must_match_boxes() -> None:
    with pytest.raises(ValueError, match="a name for each box"):
        overlay(np.zeros((9, 9, 3), dtype=np.uint8), np.zeros((3, 3)), np.zeros((2, 4), int), names=["1"])


@pytest.mark.parametrize(("side", "box"), [(480, (0, 479, 480, 1)), (2400, (64, 2393, 64, 7))])
def test_a_region_narrower_than_its_border_is_outlined(side: int, box: tuple[int, int, int, int]) -> None:
    image = np.zeros((side, side, 3), dtype=np.uint8)
    picture = overlay(image, None, np.array([box]), names=None)
    x, y, w, h = box
    assert picture[y : y + h, x : x + w].any()
    outside = picture.copy()
    outside[y : y + h, x : x + w] = 0
    assert not outside.any()
