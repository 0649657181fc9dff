"""Regions of any shape: their maps, and their sums against sums over single pixels."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from scipy import ndimage
from skimage.measure import label

from pipeline.config import RegionConfig
from pipeline.data.images import ImageArray
from pipeline.errors import DataError
from pipeline.regions.outlines import decode_outline
from pipeline.regions.segments import segments
from pipeline.regions.shapes import NOWHERE, RegionMap, cell_shares, map_regions, region_boxes
from pipeline.regions.sources import read_region_map
from pipeline.regions.superpixels import SuperpixelCache, superpixels
from pipeline.uncertainty.measures import predicted_class
from pipeline.uncertainty.reduction import TOP_REGIONS, reduce_regions, reduce_shapes, region_grid
from tests.pipeline.uncertainty.test_reduction import (
    CLASSES,
    SHARES,
    even_bounds,
    pixels_of,
    prediction_of,
    top_mean,
)

CPU = torch.device("cpu")


def blobs(height: int, width: int, *, regions: int, seed: int = 0) -> np.ndarray:
    """Values 0 to `regions` − 1 in patches of any shape; a region may be in several parts."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random((height, width)), 4)
    ranks = noise.ravel().argsort().argsort().reshape(height, width)
    return ranks * regions // (height * width)


def picture(height: int, width: int, *, seed: int = 0) -> ImageArray:
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).random((height, width, 3)), (6, 6, 0))
    return ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)


def parts_of(mask: np.ndarray) -> np.ndarray:
    """The connected parts of a mask, 1 to their number; 0 outside."""
    parts = np.zeros(mask.shape, dtype=np.int32)
    ndimage.label(mask, output=parts)
    return parts


def as_grid(config: RegionConfig, height: int, width: int) -> RegionMap:
    values = np.zeros((height, width), dtype=np.int64)
    for index, (x, y, w, h) in enumerate(region_boxes(config, width, height).tolist()):
        values[y : y + h, x : x + w] = index
    return map_regions(values)


@pytest.mark.parametrize(
    ("image_size", "network_size", "cell", "side"),
    [
        ((64, 96), (64, 96), 4, 32),
        ((61, 83), (61, 83), 4, 16),
        ((64, 96), (32, 48), 4, 16),
        ((61, 83), (45, 62), 4, 16),
        ((30, 41), (60, 82), 1, 8),
        ((9, 7), (9, 7), 4, 8),
    ],
)
def test_a_map_that_is_a_grid_gives_the_numbers_of_the_grid(
    image_size: tuple[int, int], network_size: tuple[int, int], cell: int, side: int
) -> None:
    config = RegionConfig(cell=side)
    prediction = prediction_of(*network_size, cell)
    grid = region_grid(config, image_size=image_size, bounds=prediction.bounds, device=CPU)
    shares = cell_shares(as_grid(config, *image_size), prediction.bounds)
    known = torch.from_numpy(SHARES)
    expected = reduce_regions(prediction, grid, class_shares=known)
    found = reduce_shapes(prediction, [shares, shares], class_shares=known)
    assert found.measures == expected.measures
    np.testing.assert_array_equal(found.shapes[0].boxes, grid.regions.boxes)
    assert found.shapes[0].outlines is None
    torch.testing.assert_close(found.regions, expected.regions, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(found.images, expected.images, atol=2e-5, rtol=2e-5)


def test_every_column_of_a_shape_equals_a_sum_over_its_pixels() -> None:
    height, width, cell = 61, 83, 4
    prediction = prediction_of(height, width, cell)
    values = [blobs(height, width, regions=7), blobs(height, width, regions=12, seed=1)]
    values[1][5:20, 5:30] = 255
    maps = [map_regions(one, nowhere=255) for one in values]
    reduction = reduce_shapes(prediction, [cell_shares(one, prediction.bounds) for one in maps])
    pixels = {name: pixels_of(plane, cell, height, width) for name, plane in prediction.measures().items()}
    classes = pixels_of(predicted_class(prediction.probability), cell, height, width)
    for item, (regions, image) in enumerate(reduction.columns()):
        measures: dict[str, np.ndarray] = {str(name): found for name, found in regions.measures.items()}
        names = [value for value in np.unique(values[item]).tolist() if value != 255]
        assert regions.index.tolist() == names
        for row, name in enumerate(names):
            inside = values[item] == name
            assert regions.pixels[row] == inside.sum()
            for measure, plane in pixels.items():
                assert measures[measure][row] == pytest.approx(plane[item][inside].mean(), abs=1e-5)
            share = np.bincount(classes[item][inside], minlength=CLASSES) / inside.sum()
            assert share[regions.predicted_class[row]] == pytest.approx(share.max())
            assert regions.class_share[row] == pytest.approx(share.max(), abs=1e-6)
            impurity = -sum(s * math.log(s) for s in share if s > 0) / math.log(CLASSES)
            assert regions.impurity[row] == pytest.approx(impurity, abs=1e-5)
            top = top_mean(pixels["entropy"][item][inside])
            assert regions.entropy_top10[row] == pytest.approx(top, abs=1e-5)
        best = math.ceil(TOP_REGIONS * len(names))
        expected = np.sort(regions.measures["margin"])[-best:].mean()
        assert image.measures["margin"][0] == pytest.approx(expected, abs=1e-6)
        assert image.boxes.tolist() == [[0, 0, width, height]]


def test_shares_hold_the_whole_area_of_each_region_also_where_pixels_straddle_cells() -> None:
    found = map_regions(blobs(50, 70, regions=6))
    shares = cell_shares(found, even_bounds(33, 47, 4))
    held = np.bincount(shares.region, weights=shares.area)
    np.testing.assert_allclose(held, found.regions.pixels, rtol=1e-5)


def test_a_map_comes_back_from_boxes_and_outlines() -> None:
    values = blobs(40, 60, regions=9)
    values[0:6, 0:6] = 99
    found = map_regions(values, nowhere=99)
    painted = np.full(values.shape, 99)
    assert found.regions.outlines is not None
    for index, (x, y, w, h), outline in zip(
        found.regions.index, found.regions.boxes.tolist(), found.regions.outlines, strict=True
    ):
        painted[y : y + h, x : x + w][decode_outline(outline, width=w, height=h)] = index
    np.testing.assert_array_equal(painted, values)
    assert (found.row[0:6, 0:6] == NOWHERE).all()


def test_superpixels_are_connected_of_the_wanted_size_and_follow_borders_of_colour() -> None:
    image = np.zeros((120, 160, 3), dtype=np.uint8)
    image[:, :83] = (200, 30, 30)
    image[70:, 83:] = (30, 200, 30)
    found = superpixels(image, side=20, compactness=5)
    assert found.shape == (120, 160)
    assert 0.5 * 48 <= found.max() + 1 <= 1.5 * 48
    np.testing.assert_array_equal(found, superpixels(image, side=20, compactness=5))
    for value in range(found.max() + 1):
        assert parts_of(found == value).max() == 1
        colors = np.unique(image[found == value], axis=0, return_counts=True)[1]
        assert colors.max() / colors.sum() > 0.9


def test_superpixels_of_a_large_and_rough_image_keep_their_mean_size() -> None:
    image = picture(1200, 1700)
    found = superpixels(image, side=200, compactness=10)
    assert found.shape == image.shape[:2]
    assert 0.5 * 51 <= found.max() + 1 <= 1.5 * 51
    assert np.bincount(found.ravel()).max() < 6 * 200**2


def test_superpixels_are_kept_and_a_damaged_file_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = picture(64, 96)
    cache = SuperpixelCache(tmp_path, RegionConfig(kind="superpixel", cell=16))
    first = cache(image)
    path = cache.path(image)
    assert path.is_file()
    monkeypatch.setattr("pipeline.regions.superpixels.superpixels", lambda *_, **__: 1 / 0)
    np.testing.assert_array_equal(cache(image), first)
    monkeypatch.undo()
    for damage in (b"", path.read_bytes()[:-40], b"PK\x03\x04" + b"\0" * 60):
        path.write_bytes(damage)
        np.testing.assert_array_equal(cache(image), first)
        assert len(path.read_bytes()) > 100


def test_other_pixels_or_settings_are_other_superpixels(tmp_path: Path) -> None:
    one, other = picture(32, 48), picture(32, 48, seed=1)
    coarse = SuperpixelCache(tmp_path, RegionConfig(kind="superpixel", cell=16))
    fine = SuperpixelCache(tmp_path, RegionConfig(kind="superpixel", cell=8))
    square = SuperpixelCache(tmp_path, RegionConfig(kind="superpixel", cell=16, compactness=30))
    assert len({coarse.path(one), coarse.path(other), fine.path(one), square.path(one)}) == 4


@pytest.mark.parametrize("smallest", [0, 10, 60, 10_000])
def test_segments_cover_the_image_and_none_is_too_small(smallest: int) -> None:
    predicted = blobs(60, 80, regions=5)
    found = segments(predicted, smallest=smallest)
    sizes = np.bincount(found.ravel())
    assert len(sizes) == 1 or sizes.min() >= max(1, smallest)
    for value in range(len(sizes)):
        assert parts_of(found == value).max() == 1
    components = np.asarray(label(predicted, background=-1, connectivity=1))
    for value in np.unique(components).tolist():
        assert len(np.unique(found[components == value])) == 1
    if smallest == 0:
        assert len(sizes) == components.max()


def test_a_small_segment_joins_the_neighbour_with_the_longest_border() -> None:
    predicted = np.zeros((12, 12), dtype=np.uint8)
    predicted[:, 6:] = 1
    predicted[4:8, 6:8] = 2  # 4 edges to the left, 8 to the right
    found = segments(predicted, smallest=10)
    assert len(np.unique(found)) == 2
    assert found[5, 6] == found[0, 11]


def test_segments_are_those_of_scipy_where_none_is_small() -> None:
    predicted = blobs(50, 50, regions=4)
    found = segments(predicted, smallest=0)
    total = 0
    for value in range(4):
        parts = parts_of(predicted == value)
        total += parts.max()
        for part in range(1, parts.max() + 1):
            assert len(np.unique(found[parts == part])) == 1
    assert len(np.unique(found)) == total


@pytest.mark.parametrize(("bits", "ending"), [(8, "png"), (16, "png"), (16, "tif")])
def test_a_region_map_is_read_and_its_highest_value_is_no_region(
    tmp_path: Path, bits: int, ending: str
) -> None:
    values = np.array([[3, 3, 0], [200, 0, 2**bits - 1]], dtype=f"uint{bits}")
    path = tmp_path / f"map.{ending}"
    PillowImage.fromarray(values).save(path)
    found, _ = read_region_map(path, size=(3, 2), max_pixels=100)
    assert found.regions.index.tolist() == [0, 3, 200]
    assert found.regions.pixels.tolist() == [2, 2, 1]
    assert found.row.tolist() == [[1, 1, 0], [2, 0, NOWHERE]]


def test_a_region_map_that_cannot_be_used_says_which_file_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "map.png"
    with pytest.raises(
        DataError, match=r"no region map .*map\.png. Make it, or correct .scoring\.regions\.template"
    ):
        read_region_map(path, size=(4, 3), max_pixels=100)
    PillowImage.fromarray(np.zeros((4, 4), np.uint8)).save(path)
    with pytest.raises(DataError, match=r"map\.png has 4×4 pixels, its image 4×3.*size of its image"):
        read_region_map(path, size=(4, 3), max_pixels=100)
    PillowImage.fromarray(np.zeros((3, 4, 3), np.uint8)).save(path)
    with pytest.raises(DataError, match=r"map\.png has 3 channels.*one channel"):
        read_region_map(path, size=(4, 3), max_pixels=100)
    PillowImage.fromarray(np.full((3, 4), 255, np.uint8)).save(path)
    with pytest.raises(DataError, match="holds no region"):
        read_region_map(path, size=(4, 3), max_pixels=100)
