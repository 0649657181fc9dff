"""Heat maps: uint8 PNG files that carry their own scale, and overlays that a person can look at.

Legend: H W image size, h w map size, R regions. A stored byte v means low + v / 255 · (high − low);
`measure`, `low` and `high` are text chunks of the file.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from pipeline.errors import DataError
from pipeline.files import atomic_write_bytes

FloatMap = npt.NDArray[np.float32]
RgbImage = npt.NDArray[np.uint8]

COLORMAP = "inferno"
"""Perceptually uniform, and its order survives grey print and colour-blind eyes."""


@dataclass(frozen=True)
class Heatmap:
    """A map as it was stored: values float32 [h, w], exact to (high − low) / 510."""

    values: FloatMap
    measure: str
    low: float
    high: float


def write_heatmap(
    path: Path, map: npt.NDArray[np.floating], *, measure: str, low: float, high: float
) -> None:
    """Write a map [h, w] as a uint8 PNG with its scale; values beyond `low` and `high` are cut.

    Raises:
        ValueError: the map is not two-dimensional, or `high` is below `low`.
        UserError: the folder cannot be written.
    """
    if map.ndim != 2:
        raise ValueError(f"Expected a map [h, w], but got {map.shape}.")
    if high < low:
        raise ValueError(f"Expected `high` of at least `low`, but got {high} and {low}.")
    text = PngImagePlugin.PngInfo()
    for key, value in (("measure", measure), ("low", repr(float(low))), ("high", repr(float(high)))):
        text.add_text(key, value)
    buffer = io.BytesIO()
    pixels = np.rint(_unit(map, low=low, high=high) * 255).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, format="PNG", pnginfo=text)
    atomic_write_bytes(path, buffer.getvalue())


def read_heatmap(path: Path) -> Heatmap:
    """Read what `write_heatmap` wrote.

    Raises:
        DataError: the file is missing, damaged, or no heat map of segcurate.
    """
    try:
        with Image.open(path, formats=["PNG"]) as file:
            file.load()
            text = {str(key): str(value) for key, value in file.info.items()}
            pixels = np.asarray(file)
        low, high = float(text["low"]), float(text["high"])
        measure = text["measure"]
    except (OSError, SyntaxError, KeyError, ValueError) as error:
        raise DataError(f"{path} is not a heat map of segcurate.", "Run `segcurate score` again.") from error
    values = low + pixels.astype(np.float32) / np.float32(255) * np.float32(high - low)
    return Heatmap(values=values.astype(np.float32), measure=measure, low=low, high=high)


def overlay(
    image: RgbImage,
    map: npt.NDArray[np.floating],
    boxes: npt.NDArray[np.integer] | None = None,
    *,
    low: float = 0.0,
    high: float = 1.0,
    title: str = "entropy",
    names: Sequence[str] | None = None,
) -> RgbImage:
    """The image under its map, with a scale below: certain pixels look as they are, uncertain ones glow.

    Args:
        image: RGB uint8 [H, W, 3].
        map: [h, w] of any resolution, stretched over the image.
        boxes: regions to outline, [R, 4] as x, y, w, h in image pixels.
        low, high: the values at the ends of the scale.
        title: what the scale measures.
        names: a short text for each box, such as its rank.

    Returns:
        RGB uint8 [H + height of the scale, W, 3].

    Raises:
        ValueError: the image is not RGB uint8, or there are not as many names as boxes.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"Expected an RGB image uint8 [H, W, 3], but got {image.dtype} {image.shape}.")
    if names is not None and len(names) != (0 if boxes is None else len(boxes)):
        raise ValueError("Expected a name for each box.")
    height, width = image.shape[:2]
    unit = Image.fromarray(_unit(map, low=low, high=high)).resize((width, height), Image.Resampling.BILINEAR)
    value = np.asarray(unit)[:, :, None]
    color = _palette()[np.rint(value[:, :, 0] * 255).astype(np.uint8)].astype(np.float32)
    grey = image.mean(axis=2, dtype=np.float32, keepdims=True)
    muted = 0.65 * image + 0.35 * grey
    opacity = 0.78 * np.clip(value / 0.6, 0, 1)
    blended = muted * (1 - opacity) + color * opacity
    picture = Image.fromarray(np.rint(blended).clip(0, 255).astype(np.uint8))
    if boxes is not None:
        _outline(picture, boxes, names)
    return np.concatenate([np.asarray(picture), _scale(width, height, low=low, high=high, title=title)])


@cache
def _palette() -> RgbImage:
    """Colours [256, 3] of the scale."""
    return (colormaps[COLORMAP](np.arange(256))[:, :3] * 255).astype(np.uint8)


def _unit(map: npt.NDArray[np.floating], *, low: float, high: float) -> FloatMap:
    """float32 in 0 to 1; a flat scale is all 0."""
    span = high - low
    if span <= 0:
        return np.zeros(map.shape, dtype=np.float32)
    return np.clip((map.astype(np.float32) - np.float32(low)) / np.float32(span), 0, 1)


def _outline(picture: Image.Image, boxes: npt.NDArray[np.integer], names: Sequence[str] | None) -> None:
    draw = ImageDraw.Draw(picture)
    line = max(1, round(min(picture.size) / 240))
    font = ImageFont.load_default(size=max(10, round(min(picture.size) / 26)))
    for index, (x, y, w, h) in enumerate(boxes.tolist()):
        right, bottom = x + w - 1, y + h - 1
        draw.rectangle((x, y, right, bottom), outline=(0, 0, 0), width=line * 2)
        draw.rectangle(
            (x + line // 2, y + line // 2, right - line // 2, bottom - line // 2),
            outline=(255, 255, 255),
            width=line,
        )
        if names is not None:
            anchor = (x + 2 * line + 1, y + 2 * line)
            draw.text(
                anchor, names[index], font=font, fill=(255, 255, 255), stroke_width=1, stroke_fill=(0, 0, 0)
            )


def _scale(width: int, height: int, *, low: float, high: float, title: str) -> RgbImage:
    """A strip [s, width, 3]: the title, the colours, and the values at both ends."""
    size = max(8, min(22, round(min(width / 24, height / 14))))
    strip = Image.new("RGB", (width, size * 2), (255, 255, 255))
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(size=size)
    left, right = f"{low:.3g}", f"{high:.3g}"
    y, gap = size // 3, size // 2
    x = gap
    for words in (title, left):
        draw.text((x, y), words, font=font, fill=(30, 30, 30))
        x += round(draw.textlength(words, font=font)) + gap
    end = width - 2 * gap - round(draw.textlength(right, font=font))
    if end - x >= 8:
        ramp = np.linspace(0, 255, end - x).astype(np.uint8)
        bar = np.repeat(_palette()[ramp][None], size, axis=0)
        strip.paste(Image.fromarray(bar), (x, y + size // 6))
        draw.text((end + gap, y), right, font=font, fill=(30, 30, 30))
    return np.asarray(strip)
