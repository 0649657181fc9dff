"""Exclusion and redundancy of regions that do not fill their boxes, against sums over pixels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from pipeline.acquisition.candidates import Candidates
from pipeline.acquisition.exclusion import taken
from pipeline.acquisition.redundancy import Occupancy, touching_shapes
from pipeline.config import SelectionConfig
from pipeline.regions.outlines import encode_outline
from pipeline.regions.shapes import Regions, map_regions

SIDE = 60


def random_regions(count: int, *, seed: int) -> tuple[Regions, np.ndarray]:
    """`count` regions that tile an image, in patches of any shape, and each pixel's region."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random((SIDE, SIDE)), 5)
    ranks = noise.ravel().argsort().argsort().reshape(SIDE, SIDE)
    values = ranks * count // SIDE**2
    return map_regions(values).regions, values


def random_shapes(count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Boxes, outlines and whole masks of regions that may overlap; every third fills its box."""
    generator = np.random.default_rng(seed)
    boxes, outlines, masks = [], [], []
    for number in range(count):
        x, y = generator.integers(0, SIDE - 20, 2).tolist()
        w, h = generator.integers(4, 20, 2).tolist()
        inside = np.ones((h, w), dtype=bool) if number % 3 == 0 else generator.random((h, w)) < 0.6
        mask = np.zeros((SIDE, SIDE), dtype=bool)
        mask[y : y + h, x : x + w] = inside
        boxes.append((x, y, w, h))
        outlines.append(encode_outline(inside))
        masks.append(mask)
    return np.array(boxes), np.array(outlines, dtype=object), masks


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.3, 0.4, 0.5])
def test_a_region_is_taken_by_the_pixels_that_it_shares_with_taken_ones(share: float, seed: int) -> None:
    regions, values = random_regions(25, seed=seed)
    boxes, outlines, masks = random_shapes(30, seed=seed)
    under = np.any(masks, axis=0)
    expected = [under[values == index].mean() >= share for index in range(25)]
    assert regions.outlines is not None
    result = taken(
        np.zeros(25, np.int64),
        regions.boxes,
        np.zeros(30, np.int64),
        boxes,
        pixels=regions.pixels,
        outline=np.array(regions.outlines, dtype=object),
        taken_outline=outlines,
        share=share,
    )
    assert result.tolist() == expected
    assert 0 < sum(expected) < 25


def test_cells_know_the_outlines_of_old_labels_and_outlines_the_boxes_of_old_cells() -> None:
    corner = np.tri(10, dtype=bool)
    cells = np.array([[0, 0, 10, 10], [0, 0, 20, 20]], dtype=np.int32)
    label = np.array([[0, 0, 10, 10]])
    outline = np.array([encode_outline(corner)], dtype=object)
    zero = np.zeros(1, np.int64)
    assert taken(np.zeros(2, np.int64), cells, zero, label, taken_outline=outline, share=0.5).tolist() == [
        True,
        False,
    ]
    assert not taken(np.zeros(2, np.int64), cells, zero, label, taken_outline=outline, share=0.56).any()
    halves = np.array([encode_outline(corner), encode_outline(~corner)], dtype=object)
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10]], dtype=np.int32)
    under = taken(
        np.zeros(2, np.int64),
        boxes,
        zero,
        np.array([[0, 0, 10, 4]]),
        pixels=np.array([corner.sum(), (~corner).sum()]),
        outline=halves,
        share=0.5,
    )
    assert under.tolist() == [False, True]


def test_the_outlines_of_one_image_say_nothing_of_another() -> None:
    outline = np.array([encode_outline(np.eye(10, dtype=bool))] * 3, dtype=object)
    boxes = np.array([[0, 0, 10, 10]] * 3, dtype=np.int32)
    result = taken(
        np.arange(3),
        boxes,
        np.array([1]),
        boxes[:1].astype(np.int64),
        pixels=np.full(3, 10),
        outline=outline,
        taken_outline=outline[:1],
    )
    assert result.tolist() == [False, True, False]


def test_shapes_touch_where_pixels_share_an_edge() -> None:
    regions, values = random_regions(30, seed=1)
    assert regions.outlines is not None
    outlines = np.array(regions.outlines, dtype=object)
    for index in range(0, 30, 5):
        grown = ndimage.binary_dilation(values == index)
        expected = [bool((grown & (values == other)).any()) for other in range(30)]
        found = touching_shapes(regions.boxes[index], regions.outlines[index], regions.boxes, outlines)
        assert found.tolist() == expected


def test_a_region_that_surrounds_another_closes_it_and_one_across_a_gap_stays_open() -> None:
    values = np.zeros((40, 40), dtype=np.int64)
    values[10:20, 10:20] = 1
    values[:, 30:] = 2
    values[:, 36:] = 3
    regions = map_regions(values).regions
    candidates = Candidates(
        image_id=np.array([7]),
        group=np.zeros(1, np.int32),
        position=np.zeros(1, np.int64),
        regions=np.array([4], np.int32),
        image=np.zeros(4, np.int64),
        region_index=regions.index,
        box=regions.boxes,
        predicted_class=np.zeros(4, np.int16),
        class_share=np.ones(4, np.float32),
        stratum=np.zeros(4, np.int16),
        stratum_share=np.ones(4, np.float32),
        impurity=np.zeros(4, np.float32),
        score=None,
        pixels=regions.pixels,
        outline=np.array(regions.outlines, dtype=object),
    )
    config = SelectionConfig(no_touching=True, per_image_cap=None, min_gap=0)
    everything = np.arange(4)
    of_hole = Occupancy(candidates, config)
    of_hole.accept(1)
    assert list(of_hole.open_candidates(everything)) == [2, 3]
    of_ring = Occupancy(candidates, config)
    of_ring.accept(0)
    assert list(of_ring.open_candidates(everything)) == [3]
