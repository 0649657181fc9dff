from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.labeling.folder import FOLDER
from pipeline.labeling.pictures import write_map
from tests.pipeline.drawing.stored import read_heatmap
from tests.pipeline.labeling import small_queue


def test_a_map_is_a_quarter_of_its_image_or_as_large(tmp_path: Path) -> None:
    image = small_queue.outgoing_image(tmp_path, np.zeros((30, 41), np.uint8))
    values = np.random.default_rng(0).random((30, 41), np.float32)
    image = replace(image, map=values)
    write_map(tmp_path / "small.png", image)
    write_map(tmp_path / "full.png", image, size="full")
    assert read_heatmap(tmp_path / "small.png").values.shape == (8, 11)
    np.testing.assert_allclose(read_heatmap(tmp_path / "full.png").values, values, atol=0.002)


def test_a_queue_that_asks_for_them_has_heat_maps_of_full_size(tmp_path: Path) -> None:
    queue = replace(small_queue.outgoing_queue(), heatmaps="full")
    folder = small_queue.write_queue(FOLDER, tmp_path, [np.zeros((30, 41), np.uint8)], queue=queue)
    (path,) = (folder / "heatmaps").iterdir()
    assert read_heatmap(path).values.shape == (30, 41)
