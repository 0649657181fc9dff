"""Pictures inside the page: crops of regions, in colours, as data URIs of bounded size."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from PIL import Image, ImageDraw

from pipeline.drawing.heatmaps import COLORMAP, EXPECTED_ENTROPY_SPAN, information_span, two_colour
from pipeline.regions.outlines import polygons
from pipeline.report.blocks import Layer, Scale, Tile
from pipeline.report.gallery import GalleryRow, Map, RgbImage, end_of_scale, painted

SIDE = 320
"""Pixels along the longer side of a picture, which stays sharp on a screen of twice the density."""
WHERE_SIDE = 200
CORNER_SHARE = 0.26
"""How far the small picture of the whole image reaches into its corner, with its margin: see `page.css`."""
QUALITY = 82
IMAGE, PREDICTION, ENTROPY, INFORMATION, BOTH, LABEL = (
    "image",
    "prediction",
    "entropy",
    "mutual information",
    "aleatoric and epistemic",
    "label",
)
LAYERS = (IMAGE, PREDICTION, ENTROPY, INFORMATION, BOTH, LABEL)


def draw_tiles(
    rows: Sequence[GalleryRow], *, tags: Sequence[Sequence[str]], colors: RgbImage
) -> tuple[list[Tile], list[Scale]]:
    """A tile for each region, and the scales of their measures, which all tiles share.

    Args:
        tags: short words for each row.
        colors: of the classes [C, 3].
    """
    entropy_end = end_of_scale([row.entropy for row in rows])
    sampled = [row.mutual_information for row in rows if row.mutual_information is not None]
    span = information_span(np.concatenate([part.ravel() for part in sampled])) if sampled else 1.0
    tiles = [
        _tile(row, words, colors=colors, entropy_end=entropy_end, span=span)
        for row, words in zip(rows, tags, strict=True)
    ]
    scales = [Scale(ENTROPY, "0", f"{entropy_end:.2g}", _ramp())]
    if sampled:
        scales += [
            Scale(INFORMATION, "0", f"{span:.2g}", _ramp()),
            Scale(BOTH, f"expected entropy 0 to {EXPECTED_ENTROPY_SPAN:g}", f"0 to {span:.2g}", _square()),
        ]
    return tiles, scales


def data_uri(pixels: RgbImage) -> str:
    """RGB uint8 [H, W, 3] as a JPEG data URI."""
    picture, stream = Image.fromarray(pixels), io.BytesIO()
    options: dict[str, Any] = {"format": "JPEG", "quality": QUALITY, "subsampling": 0}
    try:
        picture.save(stream, optimize=True, **options)
    except OSError:  # Pillow optimises in a buffer of one byte a pixel, and noise needs more
        stream = io.BytesIO()
        picture.save(stream, **options)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _tile(
    row: GalleryRow,
    tags: Sequence[str],
    *,
    colors: RgbImage,
    entropy_end: float,
    span: float,
) -> Tile:
    left, top, across, down = row.shown
    factor = SIDE / max(across, down)
    size = (max(1, round(across * factor)), max(1, round(down * factor)))

    def layer(name: str, pixels: RgbImage, *, smooth: bool = True) -> Layer:
        resampling = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
        picture = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, resampling)
        _outlined(picture, row, origin=(left, top), factor=factor)
        return Layer(name, data_uri(np.asarray(picture)), f"{row.heading}: {name}")

    palette = (colormaps[COLORMAP](np.arange(256))[:, :3] * 255).astype(np.uint8)
    layers = [
        layer(IMAGE, row.image),
        layer(PREDICTION, painted(row.image, row.prediction, colors), smooth=False),
        layer(ENTROPY, palette[_bytes(row.entropy, entropy_end)]),
    ]
    if row.mutual_information is not None:
        information = row.mutual_information
        layers.append(layer(INFORMATION, palette[_bytes(information, span)]))
        expected = np.clip(row.entropy - information, 0, None)
        both = two_colour(expected, information, mutual_information_span=span)
        layers.append(layer(BOTH, both))
    if row.label is not None:
        layers.append(layer(LABEL, painted(row.image, row.label, colors), smooth=False))
    return Tile(
        heading=row.heading,
        tags=tags,
        reason=row.reason,
        where=_where(row),
        layers=layers,
        width=size[0],
        height=size[1],
        corner=free_corner(row.box, row.shown),
    )


def free_corner(box: tuple[int, int, int, int], crop: tuple[int, int, int, int]) -> str:
    """The corner of a picture that a region leaves free, for a small picture; empty where it fills them all.

    Args:
        box: of the region.
        crop: the shown part of the image; both (x, y, w, h) in image pixels.

    >>> free_corner((30, 30, 50, 50), (0, 0, 110, 110)), free_corner((90, 80, 20, 30), (0, 0, 110, 110))
    ('right bottom', 'left bottom')
    >>> free_corner((0, 0, 110, 110), (0, 0, 110, 110))
    ''
    """
    (x, y, w, h), (left, top, across, down) = box, crop
    room = CORNER_SHARE
    free_x = {"right": x + w <= left + across * (1 - room), "left": x >= left + across * room}
    free_y = {"bottom": y + h <= top + down * (1 - room), "top": y >= top + down * room}
    corners = [f"{side} {end}" for end in free_y for side in free_x if free_x[side] or free_y[end]]
    return corners[0] if corners else ""


def _where(row: GalleryRow) -> Layer:
    width, height = row.size
    factor = WHERE_SIDE / max(width, height)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    picture = Image.fromarray(row.overview).resize(size, Image.Resampling.LANCZOS)
    _outlined(picture, row, origin=(0, 0), factor=factor)
    return Layer("where", data_uri(np.asarray(picture)), f"{row.heading}: the whole image")


def _outlined(picture: Image.Image, row: GalleryRow, *, origin: tuple[int, int], factor: float) -> None:
    """Draw the region's border in white on black; without an outline, the border of its box."""
    draw = ImageDraw.Draw(picture)
    x, y, w, h = row.box
    if row.outline is None:
        rings = [[(x, y), (x + w, y), (x + w, y + h), (x, y + h)]]
    else:
        rings = polygons(row.outline, row.box)
    for ring in rings:
        points = [((px - origin[0]) * factor, (py - origin[1]) * factor) for px, py in ring]
        for color, width in (((0, 0, 0), 4), ((255, 255, 255), 2)):
            draw.line([*points, points[0]], fill=color, width=width, joint="curve")


def _bytes(values: Map, end: float) -> npt.NDArray[np.uint8]:
    return np.rint(np.clip(values / end, 0, 1) * 255).astype(np.uint8)


def _ramp() -> str:
    palette = (colormaps[COLORMAP](np.linspace(0, 1, 128))[:, :3] * 255).astype(np.uint8)
    return data_uri(np.repeat(palette[None], 8, axis=0))


def _square() -> str:
    """The two-colour scale: expected entropy upwards, mutual information to the right."""
    unit = np.linspace(0, 1, 48, dtype=np.float32)
    expected, information = np.meshgrid(unit[::-1], unit, indexing="ij")
    square = two_colour(expected, information, mutual_information_span=1, expected_entropy_span=1)
    return data_uri(square)
