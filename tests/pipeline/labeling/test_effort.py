"""Clicks that a region costs: shapes whose answer is known, and what must not change it."""

from __future__ import annotations

import time

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from pipeline.config import IGNORE
from pipeline.labeling.effort import TOLERANCE, correcting_clicks, estimated_clicks
from pipeline.regions.outlines import encode_outline
from tests.pipeline.labeling.small_queue import shapes

Mask = npt.NDArray[np.uint8]


def clicks(mask: Mask, outline: str | None = None) -> float:
    """Of the whole mask as one region."""
    height, width = mask.shape
    (found,) = estimated_clicks(mask, np.array([[0, 0, width, height]], np.int32), [outline])
    return float(found)


def corrected(mask: Mask, proposal: Mask, outline: str | None = None) -> float:
    height, width = mask.shape
    whole = np.array([[0, 0, width, height]], np.int32)
    return float(correcting_clicks(mask, proposal, whole, [outline])[0])


def plain(size: int = 20) -> Mask:
    return np.zeros((size, size), np.uint8)


def disc(radius: float, *, size: int = 120) -> npt.NDArray[np.bool_]:
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    return np.hypot(rows, columns) < radius


def test_a_region_of_one_class_costs_one_click_whatever_its_size_and_class() -> None:
    assert clicks(plain(1)) == 1
    assert clicks(plain(200)) == 1
    assert clicks(plain(20) + np.uint8(3)) == 1
    assert clicks(np.full((20, 20), IGNORE, np.uint8)) == 1


def test_a_square_inside_costs_its_corners() -> None:
    mask = plain()
    mask[5:15, 4:16] = 1
    assert clicks(mask) == 1 + 4


def test_a_hole_costs_its_own_corners() -> None:
    mask = plain(40)
    mask[5:35, 5:35] = 1
    mask[15:25, 15:25] = 0
    assert clicks(mask) == 1 + 4 + 4
    mask[15:25, 15:25] = 2
    assert clicks(mask) == 1 + 4 + 4


@pytest.mark.parametrize("stripes", [2, 3, 7])
def test_stripes_cost_the_two_ends_of_each_border_and_nothing_along_the_region(stripes: int) -> None:
    mask = (np.arange(10 * stripes) // 10)[:, None].repeat(50, axis=1).astype(np.uint8)
    assert clicks(mask) == 1 + 2 * (stripes - 1)
    assert clicks(np.ascontiguousarray(mask.T)) == 1 + 2 * (stripes - 1)


def test_a_straight_slope_costs_its_two_ends() -> None:
    assert clicks(np.tril(np.ones((64, 64), np.uint8))) == 1 + 2


def test_a_place_where_three_parts_meet_is_clicked_once() -> None:
    mask = plain()
    mask[:, 10:] = 1
    mask[10:, 10:] = 2
    assert clicks(mask) == 1 + 4  # the middle and three ends
    mask[10:, :10] = 3
    assert clicks(mask) == 1 + 5


def test_a_border_that_two_parts_share_is_clicked_once() -> None:
    """Two squares side by side: six corners, of which both squares have two."""
    mask = plain(40)
    mask[10:30, 5:20] = 1
    mask[10:30, 20:35] = 2
    assert clicks(mask) == 1 + 6


def test_an_object_of_one_pixel_costs_one_click_and_a_thin_line_two() -> None:
    speck, line, diagonal = plain(), plain(), plain()
    speck[7, 7] = 1
    line[7, 3:17] = 1
    diagonal[np.arange(3, 17), np.arange(3, 17)] = 1
    assert clicks(speck) == 1 + 1
    assert clicks(line) == 1 + 2
    assert clicks(diagonal) == 1 + 2


def test_objects_add_up() -> None:
    mask = plain(60)
    mask[2:12, 2:12] = 1
    mask[20:30, 20:30] = 1
    mask[40, 40] = 2
    assert clicks(mask) == 1 + 4 + 4 + 1


@pytest.mark.parametrize("radius", [12, 25, 50])
def test_a_disc_costs_about_what_a_polygon_within_the_tolerance_needs(radius: int) -> None:
    """A chord misses a circle by r (1 − cos(π / n)); Douglas and Peucker halve, so up to twice the fewest."""
    fewest = np.pi / np.arccos(1 - TOLERANCE / radius)
    found = clicks(disc(radius).astype(np.uint8)) - 1
    assert fewest * 0.7 <= found <= 2 * fewest


def test_the_simplified_border_stays_within_the_tolerance_of_the_shape() -> None:
    """The same disc with fewer corners than were counted would miss it by more."""
    radius = 50
    corners = clicks(disc(radius).astype(np.uint8)) - 1
    assert radius * (1 - np.cos(np.pi / corners)) < TOLERANCE


def test_an_object_that_reaches_the_regions_border_costs_only_what_lies_inside() -> None:
    mask = plain()
    mask[:10, :10] = 1
    assert clicks(mask) == 1 + 3  # two ends and the corner between them
    mask = plain()
    mask[:, 5:15] = 1
    assert clicks(mask) == 1 + 4


def test_pixels_outside_of_the_outline_cost_nothing() -> None:
    mask = disc(30).astype(np.uint8)
    mask[50:70, 50:70] = 2
    inside = encode_outline(disc(30))
    assert clicks(mask) > 1 + 4
    assert clicks(mask, inside) == 1 + 4
    assert clicks(disc(30).astype(np.uint8), inside) == 1
    half = mask.copy()
    half[:, :60] = 5
    outside = half.copy()
    outside[~disc(30)] = np.random.default_rng(0).integers(0, 5, size=int((~disc(30)).sum()))
    assert clicks(outside, inside) == clicks(half, inside)


def test_pixels_without_a_class_are_as_if_they_were_outside() -> None:
    mask = disc(30).astype(np.uint8)
    mask[50:70, 50:70] = 2
    blank = np.where(disc(30), mask, IGNORE).astype(np.uint8)
    assert clicks(blank) == clicks(mask, encode_outline(disc(30)))


@pytest.mark.parametrize("seed", range(8))
def test_where_the_region_lies_and_what_the_classes_are_called_changes_nothing(seed: int) -> None:
    generator = np.random.default_rng(seed)
    mask = shapes(generator, height=60, width=80)
    found = clicks(mask)
    names = np.append(generator.permutation(255), IGNORE).astype(np.uint8)
    assert clicks(names[mask]) == found
    canvas = generator.integers(0, 7, size=(200, 300), dtype=np.uint8)
    canvas[111:171, 37:117] = mask
    moved = estimated_clicks(canvas, np.array([[37, 111, 80, 60], [0, 0, 5, 5]], np.int32), [None, None])
    assert moved[0] == found


def test_in_noise_the_places_where_parts_meet_are_each_counted_once() -> None:
    """Counted from windows of two by two pixels; of eight classes, hardly a border is as long as a corner."""
    mask = np.random.default_rng(0).integers(0, 8, size=(40, 50), dtype=np.uint8)
    top, bottom = mask[:-1], mask[1:]
    a, b, c, d = top[:, :-1], top[:, 1:], bottom[:, :-1], bottom[:, 1:]
    changes = np.stack([a != b, a != c, b != d, c != d]).sum(axis=0)
    met = int(((changes > 2) & ~((a == d) & (b == c))).sum())
    rim = [mask[0], mask[-1], mask[:, 0], mask[:, -1]]
    ends = sum(int((side[1:] != side[:-1]).sum()) for side in rim)
    assert met + ends <= clicks(mask) - 1 <= (met + ends) * 1.05


def test_a_shape_is_worth_more_clicks_the_rougher_it_is() -> None:
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(200, 200)).astype(np.float32)
    counted = [
        clicks((cv2.GaussianBlur(noise, (0, 0), width) > 0).astype(np.uint8)) for width in (3, 6, 12, 24)
    ]
    assert counted == sorted(counted, reverse=True)
    assert counted[0] > 4 * counted[-1]


def test_a_right_proposal_is_confirmed_with_one_click() -> None:
    mask = (disc(30) + 2 * disc(10)).astype(np.uint8)
    assert clicks(mask) > 10
    assert corrected(mask, mask) == 1
    assert corrected(np.full((20, 20), IGNORE, np.uint8), plain()) == 1


def test_only_the_wrong_parts_are_drawn() -> None:
    mask = plain(60)
    mask[5:15, 5:15] = 1
    mask[30:50, 30:50] = 2
    half = mask.copy()
    half[5:15, 5:15] = 0
    assert corrected(mask, half) == 1 + 4
    half[30:50, 30:40] = 1
    assert corrected(mask, half) == 1 + 4 + 4


def test_neighbouring_wrong_parts_share_the_border_between_them() -> None:
    mask = plain()
    mask[:, 10:] = 1
    assert corrected(mask, plain() + np.uint8(2)) == 1 + 1 + 2
    assert corrected(mask, mask[:, ::-1].copy()) == 1 + 1 + 2
    assert corrected(mask, plain()) == 1 + 2


def test_each_wrong_part_is_a_click_at_least() -> None:
    mask = plain()
    mask[:, 9:11] = IGNORE
    assert corrected(mask, mask) == 1
    assert corrected(mask, np.full((20, 20), 3, np.uint8)) == 1 + 2
    left = mask.copy()
    left[:, :9] = 3
    assert corrected(mask, left) == 1 + 1


def test_a_proposal_that_misses_every_border_costs_more_than_drawing() -> None:
    mask, late = plain(), plain()
    mask[:, 10:], late[:, 13:] = 1, 1
    assert clicks(mask) == 1 + 2
    assert corrected(mask, late) == 1 + 4


def test_what_is_wrong_outside_of_the_outline_is_not_corrected() -> None:
    mask = plain(120)
    elsewhere = (~disc(50)).astype(np.uint8)
    assert corrected(mask, elsewhere) > 1
    assert corrected(mask, elsewhere, encode_outline(disc(40))) == 1


def test_regions_without_a_row_are_none() -> None:
    assert estimated_clicks(plain(), np.zeros((0, 4), np.int32), []).shape == (0,)


def test_a_large_mask_of_eight_classes_takes_tens_of_milliseconds() -> None:
    generator = np.random.default_rng(0)
    layers = generator.normal(size=(8, 32, 32)).astype(np.float32)
    mask = np.stack([cv2.resize(layer, (1024, 1024), interpolation=cv2.INTER_CUBIC) for layer in layers])
    classes = mask.argmax(axis=0).astype(np.uint8)
    took: list[float] = []
    for _ in range(3):
        begun = time.process_time()
        assert clicks(classes) > 100
        took.append(time.process_time() - begun)
    assert min(took) < 0.5  # about 0.06 s; the rest is for a busy machine
