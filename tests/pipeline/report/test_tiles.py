"""Pictures inside the page: read back from their data URIs."""

from __future__ import annotations

import base64
import io
from dataclasses import replace

import numpy as np
from PIL import Image

from pipeline.regions.outlines import encode_outline
from pipeline.report.gallery import GalleryRow
from pipeline.report.pictures import SIDE, data_uri, draw_tiles
from tests.pipeline.report.documents import shown_row

COLORS = np.array([[200, 0, 0], [0, 0, 200]], dtype=np.uint8)


def row() -> GalleryRow:
    shape = (80, 120)
    return shown_row(
        image=np.full((*shape, 3), 120, dtype=np.uint8),
        box=(40, 20, 40, 40),
        prediction=np.zeros(shape, dtype=np.uint8),
        entropy=np.full(shape, 0.5, dtype=np.float32),
        mutual_information=None,
        label=None,
        heading="1. a.png",
        reason="",
    )


def pixels(source: str) -> np.ndarray:
    kind, _, data = source.partition(",")
    assert kind == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)


def test_only_known_layers_are_drawn() -> None:
    tiles, scales = draw_tiles([row()], tags=[()], colors=COLORS)
    assert [layer.name for layer in tiles[0].layers] == ["image", "prediction", "entropy"]
    assert [scale.name for scale in scales] == ["entropy"]
    values = np.zeros_like(row().entropy)
    label = np.full_like(row().prediction, 1)
    tiles, scales = draw_tiles(
        [replace(row(), mutual_information=values, label=label)], tags=[()], colors=COLORS
    )
    assert [layer.name for layer in tiles[0].layers][3:] == [
        "mutual information",
        "aleatoric and epistemic",
        "label",
    ]


def test_a_picture_is_bounded_and_shows_the_predicted_class() -> None:
    tiles, _ = draw_tiles([row()], tags=[()], colors=COLORS)
    prediction = pixels(tiles[0].layers[1].source)
    assert max(prediction.shape) == SIDE
    assert (tiles[0].width, tiles[0].height) == (prediction.shape[1], prediction.shape[0])
    middle = prediction[prediction.shape[0] // 2, prediction.shape[1] // 2]
    assert middle[0] > 2 * middle[2]


def test_the_frame_follows_the_outline_of_the_region() -> None:
    mask = np.zeros((40, 40), dtype=bool)
    mask[:, :20] = True
    outlined = replace(row(), outline=encode_outline(mask))
    whole, half = (
        pixels(draw_tiles([one], tags=[()], colors=COLORS)[0][0].layers[0].source)
        for one in (row(), outlined)
    )
    white_whole, white_half = ((image.min(axis=2) > 225).any(axis=0) for image in (whole, half))
    assert white_whole[: SIDE // 2].any()
    assert white_half[: SIDE // 2].any()
    right = slice(round(0.62 * whole.shape[1]), None)
    assert white_whole[right].any()
    assert not white_half[right].any()


def test_a_picture_of_noise_is_written_too() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    written = pixels(data_uri(noise))
    assert written.shape == noise.shape
    assert np.abs(written - noise).mean() < 16
