"""Images of more than 8 bits that the network would see nearly black, or far too bright, are named."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tifffile

from pipeline.config import ProjectConfig
from pipeline.steps.ingest.pixel_range import PixelRange, pixel_moments
from pipeline.steps.ingest.step import ingest
from tests.conftest import opened, write_config

RANDOM = np.random.default_rng(0)


def config(channels: int = 1, **model: object) -> ProjectConfig:
    data = {"images": ["images"], "classes": ["a", "b"], "channels": channels}
    return ProjectConfig.model_validate({"name": "a", "data": data, "model": model})


def warnings_of(*images: npt.NDArray, settings: ProjectConfig) -> list[str]:
    ranges = PixelRange(settings)
    for image in images:
        ranges.add(pixel_moments(image))
    return ranges.warnings()


def test_twelve_bits_in_a_file_of_sixteen_are_named_with_the_values_to_write() -> None:
    images = [RANDOM.integers(200, 4096, (30, 40, 1)).astype(np.uint16) for _ in range(3)]
    (warning,) = warnings_of(*images, settings=config())
    assert warning.startswith("3 images of more than 8 bits have pixels of 0.03")
    assert "nearly without contrast" in warning
    found = re.search(r"`mean: \[([\d.]+)\]` and `std: \[([\d.]+)\]`", warning)
    assert found is not None
    pixels = np.stack(images) / 65535
    assert float(found[1]) == pytest.approx(pixels.mean(), rel=0.01)
    assert float(found[2]) == pytest.approx(pixels.std(), rel=0.01)
    written = config(mean=[float(found[1])], std=[float(found[2])])
    assert warnings_of(*images, settings=written) == []


def test_floats_that_are_no_shares_are_far_beyond_the_range() -> None:
    scan = RANDOM.normal(40, 300, (30, 40, 1)).astype(np.float32)
    (warning,) = warnings_of(scan, settings=config(channels=3))
    assert warning.startswith("1 image of more than 8 bits has pixels of")
    assert "far beyond its range" in warning
    assert warning.count(",") >= 4  # three channels each


@pytest.mark.parametrize(
    "image",
    [
        RANDOM.integers(0, 65536, (30, 40, 3)).astype(np.uint16),
        RANDOM.random((30, 40, 3)).astype(np.float32),
        RANDOM.integers(0, 9, (30, 40, 3)).astype(np.uint8),
    ],
    ids=["16 bits", "shares", "8 bits"],
)
def test_what_fills_its_range_and_what_has_8_bits_is_not_named(image: npt.NDArray) -> None:
    assert warnings_of(image, settings=config(channels=3)) == []


def test_ingest_warns(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for index in range(4):
        pixels = RANDOM.integers(0, 4096, (48, 64)).astype(np.uint16)
        tifffile.imwrite(tmp_path / "images" / f"{index}.tif", pixels)
    write_config(tmp_path, data={"images": "images", "classes": ["a", "b"], "channels": 1})
    with opened(tmp_path) as (project, database):
        first = ingest(project, database)
        again = ingest(project, database)
    assert [text for text in first.warnings if "4 images of more than 8 bits" in text]
    assert not [text for text in again.warnings if "more than 8 bits" in text]
