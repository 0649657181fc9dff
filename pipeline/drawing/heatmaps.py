"""Heat maps: uint8 PNG files with their scale, and overlays of a map on its image.

Legend: H W image size, h w map size, R regions. A stored byte v means low + v / 255 · (high − low);
`measure`, `low` and `high` are text chunks of the file.

A two-colour map shows both halves of the uncertainty in one picture: expected entropy (aleatoric: every
sample is unsure) in orange, mutual information (epistemic: the samples disagree) in blue, both in near
white, neither in near black. Hue says which, lightness says how much; orange and blue stay apart in each
kind of colour blindness.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from pipeline.errors import DataError
from pipeline.files import atomic_write_bytes, open_plain
from pipeline.regions.outlines import decode_outline, polygons

FloatMap = npt.NDArray[np.float32]
RgbImage = npt.NDArray[np.uint8]

COLORMAP = "inferno"
"""Perceptually uniform, and its order survives grey print and colour-blind eyes."""
TWO_COLOUR = "two_colour"
"""The name of a heat map of both expected entropy and mutual information."""
TWO_COLOUR_CORNERS: RgbImage = np.array(
    [[[12, 12, 18], [40, 120, 245]], [[240, 138, 24], [252, 248, 240]]], dtype=np.uint8
)
"""Colours [2, 2, 3] of a two-colour map: no or full expected entropy, by no or full mutual information."""
EXPECTED_ENTROPY_SPAN = 0.5
"""Full orange by default. Of eleven classes, three that are equally likely have an entropy of 0.46 · ln C."""
SMALLEST_INFORMATION_SPAN = 0.02
"""Full blue is never less: samples that agree everywhere must not look as if they disagreed somewhere."""

_BAND_ROWS = 128
"""Rows of an overlay that are mixed at once: floats of a whole photograph would fill the memory."""

# OKLab (Ottosson 2020): linear sRGB to cone responses, and their cube roots to lightness and two hues
_LINEAR_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LMS_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


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
    pixels = np.rint(_unit(map, low=low, high=high) * 255).astype(np.uint8)
    _write_png(path, pixels, {"measure": measure, "low": repr(float(low)), "high": repr(float(high))})


def read_heatmap(path: Path) -> npt.NDArray[np.float32]:
    """The values [h, w] of a map that `write_heatmap` has written, to a 255th of its scale.

    Raises:
        DataError: it is no such file.
    """
    with open_plain(path) as stream:
        try:
            with Image.open(stream, formats=("PNG",)) as picture:
                texts: dict[str, str] = getattr(picture, "text", {})
                low, high = float(texts["low"]), float(texts["high"])
                pixels = np.asarray(picture, dtype=np.float32)
        except (OSError, KeyError, ValueError) as error:
            raise DataError(f"{path} is no heat map with a scale.", "Run `segcurate score` again.") from error
    return (low + pixels / 255 * (high - low)).astype(np.float32)


def two_colour(
    expected_entropy: npt.NDArray[np.floating],
    mutual_information: npt.NDArray[np.floating],
    *,
    mutual_information_span: float,
    expected_entropy_span: float = EXPECTED_ENTROPY_SPAN,
) -> RgbImage:
    """Expected entropy and mutual information of one image, in the colours of a two-colour map.

    The four corner colours are mixed in OKLab (Ottosson 2020), where equal steps look equal.

    Args:
        expected_entropy, mutual_information: [h, w] each, both over ln C.
        mutual_information_span, expected_entropy_span: the values of full blue and full orange; the same for
            all pictures that are compared.

    Returns:
        RGB uint8 [h, w, 3].

    Raises:
        ValueError: the maps differ in shape or are not two-dimensional.
    """
    if expected_entropy.ndim != 2 or expected_entropy.shape != mutual_information.shape:
        raise ValueError(
            "Expected two maps [h, w] of one shape, but got "
            f"{expected_entropy.shape} and {mutual_information.shape}."
        )
    aleatoric, epistemic = (
        np.rint(_unit(values, low=0, high=span) * 255).astype(np.uint8)
        for values, span in (
            (expected_entropy, expected_entropy_span),
            (mutual_information, mutual_information_span),
        )
    )
    return _two_colour_palette()[aleatoric, epistemic]


def information_span(mutual_information: npt.NDArray[np.floating]) -> float:
    """A span for mutual information: what nearly all of its values stay below.

    >>> information_span(np.linspace(0, 0.1, 1001)), information_span(np.zeros(4))
    (0.0998, 0.02)
    """
    return max(float(np.quantile(mutual_information, 0.998).round(4)), SMALLEST_INFORMATION_SPAN)


def write_two_colour(
    path: Path,
    expected_entropy: npt.NDArray[np.floating],
    mutual_information: npt.NDArray[np.floating],
    *,
    mutual_information_span: float,
) -> None:
    """Write a two-colour map as an RGB PNG with its spans as text chunks; to measure, read the two heat maps.

    Raises:
        ValueError: the maps differ in shape or are not two-dimensional.
        UserError: the folder cannot be written.
    """
    picture = two_colour(
        expected_entropy, mutual_information, mutual_information_span=mutual_information_span
    )
    texts = {
        "measure": TWO_COLOUR,
        "expected_entropy_span": repr(EXPECTED_ENTROPY_SPAN),
        "mutual_information_span": repr(float(mutual_information_span)),
    }
    _write_png(path, picture, texts)


def overlay(
    image: RgbImage,
    map: npt.NDArray[np.floating] | None,
    boxes: npt.NDArray[np.integer] | None = None,
    *,
    low: float = 0.0,
    high: float = 1.0,
    title: str = "entropy",
    names: Sequence[str] | None = None,
    outlines: Sequence[str | None] | None = None,
) -> RgbImage:
    """The image under its map, with a scale below: certain pixels look as they are, uncertain ones glow.

    Args:
        image: RGB uint8 [H, W, 3].
        map: [h, w] of any resolution, stretched over the image; None for the image as it is.
        boxes: regions to outline, [R, 4] as x, y, w, h in image pixels.
        low, high: the values at the ends of the scale.
        title: what the scale measures.
        names: a short text for each box, such as its rank.
        outlines: of the regions, where they do not fill their boxes.

    Returns:
        RGB uint8 [H + height of the scale, W, 3]; without a map there is no scale.

    Raises:
        ValueError: the image is not RGB uint8, or there are not as many names as boxes.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"Expected an RGB image uint8 [H, W, 3], but got {image.dtype} {image.shape}.")
    if names is not None and len(names) != (0 if boxes is None else len(boxes)):
        raise ValueError("Expected a name for each box.")
    return np.asarray(
        overlay_picture(image, map, boxes, low=low, high=high, title=title, names=names, outlines=outlines)
    )


def overlay_picture(
    image: RgbImage,
    map: npt.NDArray[np.floating] | None,
    boxes: npt.NDArray[np.integer] | None = None,
    *,
    low: float = 0.0,
    high: float = 1.0,
    title: str = "entropy",
    names: Sequence[str] | None = None,
    outlines: Sequence[str | None] | None = None,
) -> Image.Image:
    """As `overlay`, as a picture: of a large image, no second copy is made."""
    height, width = image.shape[:2]
    if map is None:
        plain = Image.fromarray(image)
        if boxes is not None:
            _outline(plain, (width, height), boxes, names, outlines)
        return plain
    if map.shape != (height, width):
        small = Image.fromarray(_unit(map, low=low, high=high))
        value = np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))
        ends = (0.0, 1.0)
    else:
        value, ends = map, (low, high)
    strip = Image.fromarray(_scale(width, height, low=low, high=high, title=title))
    picture = Image.new("RGB", (width, height + strip.height))
    for start in range(0, height, _BAND_ROWS):
        rows = slice(start, start + _BAND_ROWS)
        band = _blend(image[rows], _unit(value[rows], low=ends[0], high=ends[1]))
        picture.paste(Image.fromarray(band), (0, start))
    if boxes is not None:
        _outline(picture, (width, height), boxes, names, outlines)
    picture.paste(strip, (0, height))
    return picture


def _blend(image: RgbImage, value: FloatMap) -> RgbImage:
    """Some rows of an image under a map [h, w] of 0 to 1."""
    color = _palette()[np.rint(value * 255).astype(np.uint8)].astype(np.float32)
    muted = 0.65 * image + 0.35 * image.mean(axis=2, dtype=np.float32, keepdims=True)
    opacity = 0.78 * np.clip(value[:, :, None] / 0.6, 0, 1)
    return np.rint(muted * (1 - opacity) + color * opacity).clip(0, 255).astype(np.uint8)


def _write_png(path: Path, pixels: npt.NDArray[np.uint8], texts: Mapping[str, str]) -> None:
    info = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        info.add_text(key, value)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", pnginfo=info)
    atomic_write_bytes(path, buffer.getvalue())


@cache
def _palette() -> RgbImage:
    """Colours [256, 3] of the scale."""
    return (colormaps[COLORMAP](np.arange(256))[:, :3] * 255).astype(np.uint8)


@cache
def _two_colour_palette() -> RgbImage:
    """Colours [256, 256, 3]: expected entropy downwards, mutual information to the right."""
    encoded = TWO_COLOUR_CORNERS / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    corners = np.cbrt(linear @ _LINEAR_TO_LMS.T) @ _LMS_TO_OKLAB.T
    full = np.linspace(0, 1, 256)
    weight = np.stack([1 - full, full], axis=1)
    mixed = np.einsum("ai,bj,ijk->abk", weight, weight, corners)
    linear = (mixed @ np.linalg.inv(_LMS_TO_OKLAB).T) ** 3 @ np.linalg.inv(_LINEAR_TO_LMS).T
    linear = linear.clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(encoded * 255).astype(np.uint8)


def _unit(map: npt.NDArray[np.floating], *, low: float, high: float) -> FloatMap:
    """float32 in 0 to 1; a flat scale is all 0."""
    span = high - low
    if span <= 0:
        return np.zeros(map.shape, dtype=np.float32)
    return np.clip((map.astype(np.float32) - np.float32(low)) / np.float32(span), 0, 1)


def _outline(
    picture: Image.Image,
    size: tuple[int, int],
    boxes: npt.NDArray[np.integer],
    names: Sequence[str] | None,
    outlines: Sequence[str | None] | None,
) -> None:
    """Draw the borders of regions into a picture, whose image has this width and height."""
    draw = ImageDraw.Draw(picture)
    line = max(1, round(min(size) / 240))
    font = ImageFont.load_default(size=max(10, round(min(size) / 26)))
    for index, (x, y, w, h) in enumerate(boxes.tolist()):
        outline = None if outlines is None else outlines[index]
        if outline is None:
            right, bottom = x + w - 1, y + h - 1
            thin = max(1, min(line, min(w, h) // 4))  # of the narrow regions at an image's edges
            inset = thin // 2
            draw.rectangle((x, y, right, bottom), outline=(0, 0, 0), width=thin * 2)
            draw.rectangle(
                (x + inset, y + inset, right - inset, bottom - inset), outline=(255, 255, 255), width=thin
            )
            anchor, aligned = (x + 2 * line + 1, y + 2 * line), "la"
        else:
            borders = polygons(outline, (x, y, w, h), holes=True)
            for color, width in (((0, 0, 0), line * 2), ((255, 255, 255), line)):
                for border in borders:
                    draw.line([*border, border[0]], fill=color, width=width)
            inside = cv2.distanceTransform(
                np.pad(decode_outline(outline, width=w, height=h), 1).view(np.uint8), cv2.DIST_L2, 5
            )
            row, column = np.unravel_index(inside.argmax(), inside.shape)  # the middle of its widest part
            anchor, aligned = (x + int(column) - 1, y + int(row) - 1), "mm"
        if names is not None:
            draw.text(
                anchor,
                names[index],
                font=font,
                anchor=aligned,
                fill=(255, 255, 255),
                stroke_width=1,
                stroke_fill=(0, 0, 0),
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
