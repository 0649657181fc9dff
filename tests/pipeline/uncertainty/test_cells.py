"""Cells lie where the network puts them: regions, heat maps and masks against single pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.calibration.calibrators import Calibrators
from pipeline.config import HeatmapConfig, RegionConfig, ScoringConfig
from pipeline.model.segmenter import Segmenter
from pipeline.regions.shapes import cell_shares, map_regions
from pipeline.uncertainty.predictor import Prediction, Predictor
from pipeline.uncertainty.reduction import reduce_regions, reduce_shapes, region_grid
from pipeline.uncertainty.scoring import make_heatmaps

CPU = torch.device("cpu")
STRIDES = [1, 4, 8]


class Corners(nn.Module):
    """Every `stride`-th pixel or so: the first and the last cell are the first and the last pixel."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, image: Tensor) -> Tensor:
        size = [side // self.stride for side in image.shape[-2:]]
        return nn.functional.interpolate(image, size=size, mode="bilinear", align_corners=True)


class Positions(nn.Module):
    """A network whose logits of class 0 and 1 are the first two channels of the image, at its cells."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.encoder = nn.Identity()
        self.encoder.output_stride = max(4, stride)  # pyright: ignore[reportArgumentType]
        self.decoder = Corners(stride)
        layer = nn.Conv2d(3, 3, 1)
        nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
        layer.weight.data = torch.eye(3)[..., None, None]
        upsampling = nn.Upsample(scale_factor=stride, mode="bilinear", align_corners=True)
        self.segmentation_head = nn.Sequential(layer, upsampling)


def predictor_of(stride: int, **changes: object) -> Predictor:
    segmenter = Segmenter(Positions(stride), num_classes=3, channels=3, dropout=0.5)
    segmenter.probe()
    scoring = ScoringConfig.model_validate({"sampler": "none"} | changes)
    return Predictor(segmenter.eval(), scoring=scoring, calibrators=Calibrators(), device=CPU)


def ramp(height: int, width: int) -> Tensor:
    """An image [1, 3, H, W] whose first two channels say where each pixel lies."""
    y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    return torch.stack([y, x, torch.zeros_like(x)])[None]


def of_pixels(prediction: Prediction, plane: Tensor, size: tuple[int, int]) -> np.ndarray:
    """The value [H, W] of the cell that is nearest to each pixel."""
    rows, columns = (
        [int(np.abs(side.numpy() - place).argmin()) for place in range(length)]
        for side, length in zip(prediction.places, size, strict=True)
    )
    return plane.numpy()[np.ix_(rows, columns)]


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("tile", [64, 512])
@pytest.mark.parametrize("size", [(128, 192), (90, 131), (1, 1)])
def test_a_region_is_the_mean_over_its_pixels_of_the_nearest_cell(
    size: tuple[int, int], stride: int, tile: int
) -> None:
    predictor = predictor_of(stride, tile=tile, overlap=16)
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(stride))
    prediction = predictor.predict(image)
    config = RegionConfig(cell=24)
    grid = region_grid(config, image_size=size, bounds=prediction.bounds, device=CPU)
    values = np.zeros(size, dtype=np.int64)
    for index, (x, y, w, h) in enumerate(grid.regions.boxes.tolist()):
        values[y : y + h, x : x + w] = index
    shapes = cell_shares(map_regions(values), predictor.bounds(*size))
    (boxes, _), *_ = reduce_regions(prediction, grid).columns()
    (drawn, _), *_ = reduce_shapes(prediction, [shapes]).columns()
    for name, plane in prediction.measures().items():
        pixels = of_pixels(prediction, plane[0], size)
        expected = [pixels[values == index].mean() for index in boxes.index]
        np.testing.assert_allclose(boxes.measures[name], expected, atol=2e-5)
        np.testing.assert_allclose(drawn.measures[name], expected, atol=2e-5)


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("tile", [64, 512])
@pytest.mark.parametrize("size", [(128, 192), (90, 131)])
def test_masks_heat_maps_and_regions_lie_where_the_image_lies(
    size: tuple[int, int], stride: int, tile: int
) -> None:
    prediction = predictor_of(stride, tile=tile, overlap=16).predict(ramp(*size))
    image = ramp(*size)[0, :2]
    away = max(stride, 4)  # from where cells of several tiles, and the padding's, are mixed
    inside = (..., slice(away, -away), slice(away, -away))
    enlarged = prediction.at(prediction.logits, size)[0, :2]
    torch.testing.assert_close(enlarged[inside], image[inside], atol=2e-3, rtol=0)

    config = HeatmapConfig.model_validate({"measures": ["expected_entropy"], "two_colour": False})
    grid = region_grid(RegionConfig(cell=32), image_size=size, bounds=prediction.bounds, device=CPU)
    for axis in (0, 1):
        located = replace(prediction, expected_entropy=prediction.logits[:, axis])
        heat = make_heatmaps(located, config, class_map="probability", image_size=size)
        drawn = heat["expected_entropy"][0]
        count = drawn.shape[axis]
        wanted = (torch.arange(count) + 0.5) * (size[axis] / count) - 0.5
        edge = 2 * away // 4 + 1
        across = drawn.mean(dim=1 - axis)[edge:-edge]
        torch.testing.assert_close(across, wanted[edge:-edge], atol=0.05, rtol=0)
        (regions, _), *_ = reduce_regions(located, grid).columns()
        centre = grid.regions.boxes[:, 1 - axis] + (grid.regions.boxes[:, 3 - axis] - 1) / 2
        found = regions.measures["expected_entropy"]
        inner = (grid.regions.boxes[:, :2] > 0).all(axis=1) & (
            (grid.regions.boxes[:, :2] + grid.regions.boxes[:, 2:]) < (size[1], size[0])
        ).all(axis=1)
        np.testing.assert_allclose(found[inner], centre[inner], atol=0.6)
