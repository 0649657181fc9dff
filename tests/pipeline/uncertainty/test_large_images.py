"""Large images: as decoded, in windows and in bands of rows, with the same numbers in little memory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config import RegionConfig
from pipeline.data import bands as row_bands
from pipeline.data.images import read_image
from pipeline.data.input_range import pixel_statistics
from pipeline.data.large_images import LargeImages
from pipeline.progress import TILES
from pipeline.regions.shapes import CellBounds, cell_shares, map_regions
from pipeline.uncertainty.predictor import Prediction, Predictor
from pipeline.uncertainty.reduction import reduce_regions, region_grid
from tests.memory import in_own_process, peak_above
from tests.pipeline.model.test_segmenter import tiny
from tests.pipeline.uncertainty.test_fast_path import CPU, predictor_of

MEAN, STD = np.array([0.4, 0.5, 0.6], np.float32), np.array([0.2, 0.25, 0.3], np.float32)


def photograph(height: int, width: int, *, kind: type = np.uint8) -> LargeImages:
    pixels: Any = np.random.default_rng(0).integers(0, np.iinfo(kind).max, (1, height, width, 3), kind)
    return LargeImages(pixels, MEAN, STD)


def tiled() -> Predictor:
    return predictor_of(tiny("fpn").eval(), resolution="logits", tile=64, overlap=16, samples=2)


def small_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_bands, "BAND_VALUES", 1200)


@pytest.mark.parametrize("kind", [np.uint16])
def test_an_image_as_decoded_is_predicted_as_its_normalised_pixels(kind: type) -> None:
    image, predictor = photograph(90, 121, kind=kind), tiled()
    found, expected = predictor.predict(image), predictor.predict(image.window())
    for name in ("logits", "probability", "expected_entropy", "votes"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=0)


def test_the_tiles_of_an_image_that_has_many_are_counted() -> None:
    seen: list[tuple[str, int, int | None]] = []

    def count(title: str, done: int, total: int | None, note: str = "") -> None:
        seen.append((title, done, total))

    tiled().predict(photograph(90, 121), count)
    assert seen == []  # of six tiles: the image is counted as a whole
    tiled().predict(photograph(200, 250), count)
    assert {title for title, _, _ in seen} == {TILES}
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    rows, columns = tiled().tiles(200, 250)
    assert seen[-1][1] == seen[-1][2] == len(rows.origins) * len(columns.origins)


def test_features_of_a_large_image_are_the_mean_over_its_tiles_and_of_a_small_one_the_networks_own() -> None:
    predictor, image = tiled(), photograph(64, 100)
    segmenter = predictor.segmenter
    whole = image.window()
    with torch.inference_mode():
        first, second, small = (
            segmenter.image_features(segmenter.pad(part))
            for part in (whole[..., :64], whole[..., 64:], whole[..., :50, :60])
        )
    expected = 0.64 * first + 0.36 * second
    torch.testing.assert_close(predictor.image_features(image), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(predictor.image_features(whole[..., :50, :60]), small, atol=0, rtol=0)


def test_statistics_of_an_image_as_decoded_are_those_of_its_normalised_pixels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_bands(monkeypatch)
    image = photograph(50, 70)
    np.testing.assert_allclose(pixel_statistics(image), pixel_statistics(image.window()), atol=1e-5)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (90, 121, (90, 121)),
        (90, 121, (181, 240)),
        (90, 121, (50, 70)),
        (60, 50, (60, 50)),
        (60, 50, (125, 99)),
    ],
)
def test_bands_hold_what_the_whole_map_holds(
    monkeypatch: pytest.MonkeyPatch, height: int, width: int, size: tuple[int, int]
) -> None:
    prediction = tiled().predict(photograph(height, width).window())
    small_bands(monkeypatch)
    parts = list(prediction.bands(prediction.probability, size))
    assert len(parts) > 3
    assert [rows.start for rows, _ in parts[1:]] == [rows.stop for rows, _ in parts[:-1]]
    whole = torch.cat([part for _, part in parts], dim=-2)
    torch.testing.assert_close(whole, prediction.at(prediction.probability, size), atol=2e-6, rtol=0)


@pytest.mark.parametrize("kind", ["grid", "image"])
def test_regions_that_are_summed_in_bands_have_the_same_columns(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    prediction = tiled().predict(photograph(90, 121).window())
    grid = region_grid(
        RegionConfig.model_validate({"kind": kind, "cell": 32}),
        image_size=(90, 121),
        bounds=prediction.bounds,
        device=CPU,
    )
    expected = reduce_regions(prediction, grid)
    small_bands(monkeypatch)
    assert next(row_bands.bands(prediction.logits.shape[2], prediction.logits[0, :, 0].numel())).stop < 20
    found = reduce_regions(prediction, grid)
    torch.testing.assert_close(found.regions, expected.regions, atol=2e-5, rtol=0)
    torch.testing.assert_close(found.images, expected.images, atol=2e-5, rtol=0)


def draw(prediction: Prediction, size: tuple[int, int]) -> int:
    """What an export does with a prediction: each pixel's class."""
    classes = [part.argmax(dim=1).byte() for _, part in prediction.bands(prediction.probability, size)]
    return int(torch.cat(classes, dim=-2).max())


def peaks_of_predictions() -> list[int]:
    """Peaks of two images of which the second has four times the pixels; each is predicted twice."""
    row_bands.BAND_VALUES = 100_000
    predictor = predictor_of(tiny("fpn").eval(), resolution="logits", tile=256, overlap=32, samples=2)
    sizes = [(700, 700), (1400, 1400)]
    images = [photograph(*size) for size in sizes]
    for image, size in zip(images, sizes, strict=True):  # libraries are loaded, and buffers made
        draw(predictor.predict(image), size)
    return [
        peak_above(lambda image=image, size=size: draw(predictor.predict(image), size))
        for image, size in zip(images, sizes, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_a_prediction_grows_by_few_bytes_a_pixel() -> None:
    """Of 4 classes a cell of 4 × 4 pixels has 13 floats, so 3.3 bytes a pixel, and each class drawn 1 byte.
    Whole maps at the image's size would be 16 bytes a pixel, and twice that while they are made."""
    peaks = in_own_process(peaks_of_predictions)
    assert (peaks[1] - peaks[0]) / (3 * 700 * 700) < 12


def peak_of_a_jpeg(path: Path) -> int:
    row_bands.BAND_VALUES = 400_000
    return peak_above(lambda: read_image(path, channels=3, max_pixels=12_000_000))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_jpeg_is_read_with_no_second_copy_of_its_pixels(tmp_path: Path) -> None:
    """Pillow holds 4 bytes a pixel, the array 3; one more copy has 3."""
    pixels = np.add.outer(np.arange(3000), np.arange(4000))[..., None] * [1, 2, 3] % 256
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "a.jpg")
    assert in_own_process(peak_of_a_jpeg, tmp_path / "a.jpg") / 12_000_000 < 8.5


def test_shares_of_cells_do_not_depend_on_the_bands_that_they_are_counted_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = np.random.default_rng(0).integers(0, 5, (90, 70))
    bounds = CellBounds(tuple(range(0, 91, 3)), (0, 10, 45, 60))  # the network's image is 60 wide
    whole = cell_shares(map_regions(values), bounds)
    small_bands(monkeypatch)
    found = cell_shares(map_regions(values), bounds)
    assert whole.area.sum() == pytest.approx(90 * 70)
    np.testing.assert_array_equal(found.cell, whole.cell)
    np.testing.assert_array_equal(found.region, whole.region)
    np.testing.assert_allclose(found.area, whole.area, rtol=1e-6)
