"""Outlines say exactly which pixels a region holds."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipeline.regions.outlines import decode_outline, encode_outline, paint_regions, polygons


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (9, 1), (40, 61), (300, 200)])
def test_an_outline_gives_the_mask_back(height: int, width: int) -> None:
    generator = np.random.default_rng(0)
    for share in (0.05, 0.5, 0.95):
        mask = generator.random((height, width)) < share
        outline = encode_outline(mask)
        assert (outline is None) == mask.all()
        np.testing.assert_array_equal(decode_outline(outline, width=width, height=height), mask)


def test_what_is_no_outline_of_the_box_is_refused() -> None:
    outline = encode_outline(np.eye(30, dtype=bool))
    with pytest.raises(ValueError, match="RLE"):
        decode_outline(outline, width=5, height=5)


def test_painted_regions_are_the_union_of_their_masks() -> None:
    generator = np.random.default_rng(1)
    expected = np.zeros((30, 40), dtype=bool)
    boxes, outlines = [], []
    for _ in range(5):
        x, y = generator.integers(0, 20, 2).tolist()
        mask = generator.random((10, 12)) < 0.5
        expected[y : y + 10, x : x + 12] |= mask
        boxes.append((x, y, 12, 10))
        outlines.append(encode_outline(mask))
    canvas = np.zeros_like(expected)
    paint_regions(canvas, np.array(boxes), outlines)
    np.testing.assert_array_equal(canvas, expected)


def test_the_polygons_of_a_region_enclose_its_pixels_and_its_holes() -> None:
    mask = np.zeros((20, 30), dtype=bool)
    mask[:18, :12] = True
    mask[5:9, 4:8] = False
    mask[10:, 20:] = True
    outline = encode_outline(mask)
    outer = polygons(outline, (100, 50, 30, 20))
    canvas = np.zeros((80, 140), dtype=np.uint8)
    cv2.fillPoly(canvas, [np.array(points) for points in outer], (1,))
    filled = mask.copy()
    filled[5:9, 4:8] = True
    assert len(outer) == 2
    np.testing.assert_array_equal(canvas[50:70, 100:130], filled)
    assert len(polygons(outline, (100, 50, 30, 20), holes=True)) == 3
