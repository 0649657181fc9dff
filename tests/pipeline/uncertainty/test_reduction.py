"""Regions against sums over single pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pipeline.config import SAMPLED_MEASURES, RegionConfig
from pipeline.regions.shapes import CellBounds, region_boxes
from pipeline.uncertainty.measures import MEASURES, predicted_class
from pipeline.uncertainty.predictor import Prediction
from pipeline.uncertainty.reduction import (
    LEAST_SHARE,
    TOP_CELLS,
    TOP_REGIONS,
    keep_regions,
    reduce_regions,
    region_grid,
    salient_class,
)

CPU = torch.device("cpu")
CLASSES = 3
SHARES = np.array([0.9, 0.08, 0.02])


def even_bounds(height: int, width: int, cell: int) -> CellBounds:
    """Of cells of `cell` pixels; the last ones end with the image."""
    rows, columns = ((*range(0, side, cell), side) for side in (height, width))
    return CellBounds(rows, columns)


def prediction_of(height: int, width: int, cell: int, *, batch: int = 2, samples: bool = True) -> Prediction:
    """Random maps for images of this size, each value the same over its cell."""
    generator = torch.Generator().manual_seed(height * width)
    size = (batch, CLASSES, -(-height // cell), -(-width // cell))
    logits = 2 * torch.randn(size, generator=generator)
    probability = (2 * torch.randn(size, generator=generator)).softmax(dim=1)
    return Prediction(
        logits=logits,
        probability=probability,
        expected_entropy=torch.rand(batch, *size[2:], generator=generator) if samples else None,
        votes=torch.rand(size, generator=generator) if samples else None,
        places=(torch.arange(size[2]).double() * cell, torch.arange(size[3]).double() * cell),
        bounds=even_bounds(height, width, cell),
        enlarge=lambda maps, **_: maps,
        enlarged_bands=lambda maps, **_: iter([(slice(None), maps)]),
        calibrate=lambda maps: maps,
    )


def pixels_of(plane: torch.Tensor, cell: int, height: int, width: int) -> np.ndarray:
    return plane.repeat_interleave(cell, -2).repeat_interleave(cell, -1)[..., :height, :width].numpy()


@pytest.mark.parametrize(
    ("height", "width", "cell", "side"),
    [(64, 96, 4, 32), (61, 83, 4, 16), (50, 70, 8, 11), (9, 7, 1, 8), (1, 1, 4, 64), (45, 45, 4, 64)],
)
def test_every_column_equals_a_sum_over_pixels(height: int, width: int, cell: int, side: int) -> None:
    config = RegionConfig(cell=side)
    prediction = prediction_of(height, width, cell)
    grid = region_grid(config, image_size=(height, width), bounds=prediction.bounds, device=CPU)
    reduction = reduce_regions(prediction, grid, class_shares=torch.from_numpy(SHARES))
    maps = prediction.measures()
    pixels = {name: pixels_of(plane, cell, height, width) for name, plane in maps.items()}
    classes = pixels_of(predicted_class(prediction.probability), cell, height, width)

    boxes = region_boxes(config, width, height)
    for item, (regions, _) in enumerate(reduction.columns()):
        measures: dict[str, np.ndarray] = {str(name): values for name, values in regions.measures.items()}
        np.testing.assert_array_equal(regions.boxes, boxes)
        np.testing.assert_array_equal(regions.index, np.arange(len(boxes)))
        for row, (x, y, w, h) in enumerate(boxes.tolist()):
            inside = (item, slice(y, y + h), slice(x, x + w))
            for name, plane in pixels.items():
                assert measures[name][row] == pytest.approx(plane[inside].mean(), abs=2e-5)
            share = np.bincount(classes[inside].ravel(), minlength=CLASSES) / (w * h)
            assert regions.pixels[row] == w * h
            assert regions.class_share[row] == pytest.approx(share.max(), abs=1e-5)
            assert share[regions.predicted_class[row]] == pytest.approx(share.max())
            assert regions.stratum is not None
            assert regions.stratum_share is not None
            ratio = np.where(share >= LEAST_SHARE, share / SHARES, 0)
            assert ratio[regions.stratum[row]] == pytest.approx(ratio.max(), rel=1e-4)
            assert regions.stratum_share[row] == pytest.approx(share[regions.stratum[row]], abs=1e-5)
            impurity = -sum(s * math.log(s) for s in share if s > 0) / math.log(CLASSES)
            assert regions.impurity[row] == pytest.approx(impurity, abs=1e-5)
            assert regions.entropy_top10[row] == pytest.approx(
                top_mean(pixels["entropy"][inside].ravel()), abs=2e-5
            )


@pytest.mark.parametrize(
    ("height", "width", "cell", "side"), [(64, 96, 4, 32), (61, 83, 4, 16), (9, 7, 1, 8)]
)
def test_the_length_of_borders_is_the_number_of_sides_between_pixels_of_two_classes(
    height: int, width: int, cell: int, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    prediction = prediction_of(height, width, cell)
    grid = region_grid(
        RegionConfig(cell=side), image_size=(height, width), bounds=prediction.bounds, device=CPU
    )
    classes = pixels_of(predicted_class(prediction.probability), cell, height, width)
    whole = reduce_regions(prediction, grid)
    monkeypatch.setattr("pipeline.data.bands.BAND_VALUES", 1)
    for reduction in (whole, reduce_regions(prediction, grid)):
        for item, (regions, image) in enumerate(reduction.columns()):
            sides = np.zeros((height, width))
            sides[:, 1:] += classes[item][:, 1:] != classes[item][:, :-1]
            sides[1:] += classes[item][1:] != classes[item][:-1]
            expected = [sides[y : y + h, x : x + w].sum() for x, y, w, h in regions.boxes.tolist()]
            assert regions.border is not None
            assert image.border is not None
            np.testing.assert_allclose(regions.border, expected, rtol=1e-4)
            assert image.border == pytest.approx([sides.sum()], rel=1e-4)


def test_a_thin_class_is_salient_where_a_region_has_more_of_it_than_the_labels() -> None:
    shares = torch.tensor([[0.94, 0.06], [0.982, 0.018], [0.99, 0.01], [0.995, 0.005], [1.0, 0.0]])
    thin = torch.tensor([0.983, 0.017])
    assert salient_class(shares, thin).tolist() == [1, 1, 0, 0, 0]
    assert salient_class(shares, torch.tensor([0.9999, 0.0001])).tolist() == [1, 1, 1, 0, 0]
    assert salient_class(shares, torch.tensor([1.0, 0.0])).tolist() == [1, 1, 1, 0, 0]


def test_of_many_classes_the_largest_is_salient_where_none_reaches_the_least_share() -> None:
    shares = torch.full((1, 200), 0.0049)
    shares[0, 150] = 1 - 0.0049 * 199
    assert salient_class(shares, torch.full((200,), 1 / 200)).tolist() == [150]


def test_kept_regions_are_those_of_each_stratum() -> None:
    prediction = prediction_of(96, 96, 4)
    grid = region_grid(RegionConfig(cell=16), image_size=(96, 96), bounds=prediction.bounds, device=CPU)
    (regions, _), _ = reduce_regions(prediction, grid, class_shares=torch.from_numpy(SHARES)).columns()
    kept = keep_regions(regions, 2)
    assert regions.stratum is not None
    assert kept.stratum is not None
    for stratum in np.unique(regions.stratum):
        of_stratum = regions.measures["entropy"][regions.stratum == stratum]
        found = kept.measures["entropy"][kept.stratum == stratum]
        assert sorted(found) == sorted(np.sort(of_stratum)[-2:])


def test_without_shares_of_classes_no_stratum_is_named() -> None:
    prediction = prediction_of(32, 32, 4)
    grid = region_grid(RegionConfig(cell=16), image_size=(32, 32), bounds=prediction.bounds, device=CPU)
    (regions, image), _ = reduce_regions(prediction, grid).columns()
    assert (regions.stratum, regions.stratum_share, image.stratum) == (None, None, None)


def top_mean(values: np.ndarray) -> float:
    """The mean of the highest tenth; a part of a pixel counts in part."""
    ordered = np.sort(values)[::-1].astype(np.float64)
    wanted = TOP_CELLS * len(ordered)
    taken = np.clip(wanted - np.arange(len(ordered)), 0, 1)
    return float((ordered * taken).sum() / taken.sum())


def test_an_image_scores_the_mean_of_its_top_quarter_of_regions() -> None:
    prediction = prediction_of(96, 96, 4)
    grid = region_grid(RegionConfig(cell=16), image_size=(96, 96), bounds=prediction.bounds, device=CPU)
    for regions, image in reduce_regions(prediction, grid).columns():
        assert len(image.index) == 1
        assert image.boxes.tolist() == [[0, 0, 96, 96]]
        best = math.ceil(TOP_REGIONS * len(regions.index))
        for name, values in regions.measures.items():
            assert image.measures[name][0] == pytest.approx(np.sort(values)[-best:].mean(), abs=1e-5)
        assert image.impurity[0] == pytest.approx(np.sort(regions.impurity)[-best:].mean(), abs=1e-5)
        assert image.pixels[0] == 96 * 96


def test_regions_of_a_resized_image_are_in_pixels_of_the_file() -> None:
    prediction = prediction_of(32, 48, 4)
    half = region_grid(RegionConfig(cell=16), image_size=(64, 96), bounds=prediction.bounds, device=CPU)
    same = region_grid(RegionConfig(cell=8), image_size=(32, 48), bounds=prediction.bounds, device=CPU)
    assert half.regions.boxes.tolist() == (2 * same.regions.boxes).tolist()
    found, expected = reduce_regions(prediction, half), reduce_regions(prediction, same)
    torch.testing.assert_close(found.regions[..., :-1], expected.regions[..., :-1])
    torch.testing.assert_close(found.regions[..., -1], 2 * expected.regions[..., -1])  # a length of borders


def test_the_whole_image_as_one_region_scores_its_plain_mean() -> None:
    prediction = prediction_of(40, 56, 4, samples=False)
    grid = region_grid(RegionConfig(kind="image"), image_size=(40, 56), bounds=prediction.bounds, device=CPU)
    (regions, image), _ = reduce_regions(prediction, grid).columns()
    assert regions.boxes.tolist() == [[0, 0, 56, 40]]
    assert set(regions.measures) == set(MEASURES) - SAMPLED_MEASURES
    expected = -prediction.logits[0].amax(dim=0).mean().item()
    assert regions.measures["max_logit"][0] == pytest.approx(expected, abs=1e-5)
    assert image.measures["max_logit"][0] == pytest.approx(expected, abs=1e-5)
