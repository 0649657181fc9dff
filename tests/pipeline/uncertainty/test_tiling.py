"""Tiles that meet without a seam."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.calibration.calibrators import Calibrators, Temperature
from pipeline.config import RegionConfig, ScoringConfig
from pipeline.model.segmenter import Segmenter
from pipeline.uncertainty.predictor import Predictor
from pipeline.uncertainty.reduction import reduce_regions, region_grid
from pipeline.uncertainty.tiling import blend_weights, tile_origins
from tests.pipeline.model.test_segmenter import tiny

CPU = torch.device("cpu")
ROUGH = {"variation_ratio": 0.5, "max_logit_norm": 0.2, "margin": 0.2}
"""Measures that a small difference of logits may move far: a vote is counted whole, a small norm divides, and
the margin of samples that disagree is small everywhere."""


@given(length=st.integers(1, 400), tile=st.integers(2, 90), share=st.floats(0, 0.5))
def test_tiles_cover_the_side_and_their_weights_sum_to_one(length: int, tile: int, share: float) -> None:
    overlap = int(tile * share)
    origins = tile_origins(length, tile=tile, overlap=overlap)
    weights = blend_weights(origins, tile=tile, overlap=overlap, length=length)
    total = torch.zeros(length)
    for origin, weight in zip(origins, weights, strict=True):
        assert 0 <= origin <= max(0, length - tile)
        total[origin : origin + len(weight)] += weight
    torch.testing.assert_close(total, torch.ones(length), atol=1e-5, rtol=0)


def test_neighbouring_tiles_reach_into_each_other_by_the_overlap() -> None:
    origins = tile_origins(300, tile=100, overlap=20)
    assert origins == [0, 80, 160, 200]
    assert all(second - first <= 80 for first, second in pairwise(origins))


def test_an_overlap_as_large_as_the_tile_is_refused() -> None:
    with pytest.raises(ValueError, match="below the tile"):
        tile_origins(100, tile=10, overlap=10)


def scene(height: int, width: int) -> torch.Tensor:
    """Smooth structure with edges, as photographs have."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 3, height // 24, width // 24, generator=generator)
    image = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")
    return (image + (image[:, :1] > 0)).clamp(-1, 1)


def predictor_of(segmenter: Segmenter, tile: int, overlap: int, resolution: str = "logits") -> Predictor:
    scoring = ScoringConfig.model_validate(
        {"samples": 4, "tile": tile, "overlap": overlap, "resolution": resolution, "batch_size": 3}
    )
    sharp = Calibrators(deterministic=Temperature(0.05), sampled=Temperature(0.05))
    return Predictor(segmenter, scoring=scoring, calibrators=sharp, device=CPU)


@pytest.mark.parametrize("resolution", ["logits", "full"])
def test_regions_score_alike_with_and_without_tiles(resolution: str) -> None:
    segmenter = tiny("unet", encoder="tu-test_resnet").eval()
    image = scene(290, 420)
    whole = predictor_of(segmenter, 1024, 0, resolution).predict(image)
    parts = predictor_of(segmenter, 224, 96, resolution).predict(image)
    assert parts.logits.shape == whole.logits.shape
    torch.testing.assert_close(parts.probability.sum(dim=1), torch.ones_like(parts.probability[:, 0]))

    grid = region_grid(RegionConfig(cell=32), image_size=(290, 420), bounds=whole.bounds, device=CPU)
    expected, found = reduce_regions(whole, grid), reduce_regions(parts, grid)
    for column, name in enumerate(expected.measures, start=5):
        spread = expected.regions[0, :, column].std()
        error = (found.regions[0, :, column] - expected.regions[0, :, column]).abs().max()
        assert error < ROUGH.get(name, 0.1) * spread, name


def test_no_edge_shows_where_tiles_meet() -> None:
    """FPN normalises over its whole input, so a tile's values differ; its edges must not show."""
    segmenter = tiny("fpn", encoder="tu-test_resnet").eval()
    image = scene(290, 420)
    whole = predictor_of(segmenter, 1024, 0).predict(image).logits[0]

    def edge(overlap: int) -> float:
        """The steepest column of the difference to the untiled logits, in units of a usual column."""
        difference = predictor_of(segmenter, 224, overlap).predict(image).logits[0] - whole
        steps = (difference[..., 1:] - difference[..., :-1]).abs().mean(dim=(0, 1))
        return (steps.max() / steps.median()).item()

    assert edge(0) > 4
    assert edge(96) < 2.5
