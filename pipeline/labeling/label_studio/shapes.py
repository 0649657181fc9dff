"""The mask of an annotation's result.

A result is untrusted: classes are looked up, and sizes are compared with the image's before decoding.

Legend: H height, W width.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import IGNORE
from pipeline.data.masks import Mask
from pipeline.errors import DataError
from pipeline.labeling.encoding import LabelMap
from pipeline.labeling.exchange import DecodedMask, check_size, class_named, shown
from pipeline.labeling.label_studio import bitmask, brush
from pipeline.labeling.label_studio.config import LOOK, MASK, label_values
from pipeline.labeling.untrusted.canvas import Canvas
from pipeline.labeling.untrusted.coco_shapes import read_shape

MOST_SHAPES = 2000
"""Shapes of an annotation."""
MOST_PIXELS = 1 << 33
"""Pixels of an annotation's shapes together: each is a mask of the whole image, even in a few bytes."""

_DRAWN = re.compile("(polygon|rectangle|ellipse|keypoint|vector|brush|bitmask)(labels)?|labels|magicwand")
_FAR = 10_000
"""Per cent of the image's size that a corner may lie outside."""
_AGAIN = "Export it from Label Studio again."


def paint(result: object, proposal: object, labels: LabelMap, width: int, height: int) -> DecodedMask:
    """The mask of an annotation.

    Where shapes of different classes overlap, the annotator's shapes are above the proposal: a correction
    need not be erased from the proposal. Among the annotator's shapes, the later one is above, and such
    pixels are counted as overlapping.

    Args:
        result: of the annotation; any JSON value.
        proposal: of the prediction that the annotator began with; an invalid result counts as none.
        width, height: of the image.

    Raises:
        DataError: a shape is of another kind, class or size, or is damaged.
    """
    values = {value: index for index, value in enumerate(label_values(labels.names))} | labels.aliases
    shapes = _shapes(result, width * height)
    proposed = _proposed(proposal, values, width=width, height=height)
    controls = None if labels.foreign else frozenset({MASK})
    kept, drawn = (np.full((height, width), IGNORE, dtype=np.uint8) for _ in range(2))
    contested = np.zeros((height, width), dtype=bool)
    for region in shapes:
        index, painted = _painted(region, values, width=width, height=height, controls=controls)
        as_proposed = proposed == index
        kept[painted & as_proposed] = index
        new = painted & ~as_proposed
        contested |= new & (drawn != IGNORE) & (drawn != index)
        drawn[new] = index
    mask = np.where(drawn == IGNORE, kept, drawn)
    return DecodedMask(mask=mask, overlapping=int(contested.sum()))


def _proposed(result: object, values: dict[str, int], *, width: int, height: int) -> Mask:
    """The proposed mask [H, W]; 255 where it has no class, or everywhere if it cannot be read."""
    mask = np.full((height, width), IGNORE, dtype=np.uint8)
    try:
        for region in _shapes(result, width * height):
            index, painted = _painted(region, values, width=width, height=height)
            mask[painted] = index
    except DataError:
        mask[:] = IGNORE
    return mask


def _shapes(result: object, pixels: int) -> list[dict[str, Any]]:
    """The shapes drawn on an image of so many pixels, without boxes that show where to look, relations, or
    answers to questions."""
    if not isinstance(result, list):
        raise DataError("Its result is no list.", _AGAIN)
    if not all(isinstance(region, dict) and isinstance(region.get("type"), str) for region in result):
        raise DataError("Its result has an item that is no region.", _AGAIN)
    shapes = [
        region
        for region in result
        if _DRAWN.fullmatch(region["type"].lower()) and region.get("from_name") != LOOK
    ]
    most = min(MOST_SHAPES, MOST_PIXELS // pixels)
    if len(shapes) > most:
        raise DataError(f"It has {len(shapes)} shapes, more than {most}.", "Merge shapes of a class.")
    return shapes


def drawn_labels(region: object) -> list[str]:
    """The labels of a shape of a result, which may be any JSON value."""
    if not isinstance(region, dict) or region.get("from_name") == LOOK:
        return []
    kind, value = region.get("type"), region.get("value")
    if not isinstance(kind, str) or not isinstance(value, dict) or not _DRAWN.fullmatch(kind.lower()):
        return []
    labels = value.get(kind.lower())
    return [label for label in labels if isinstance(label, str)] if isinstance(labels, list) else []


def _painted(
    region: dict[str, Any],
    values: dict[str, int],
    *,
    width: int,
    height: int,
    controls: frozenset[str] | None = frozenset({MASK}),
) -> tuple[int, npt.NDArray[np.bool_]]:
    """The class of a region, and its pixels [H, W].

    Args:
        controls: that draw masks in the labeling interface; None for any of a project that segcurate has not
            set up, which may also draw polygons.
    """
    kind, value = region["type"].lower(), region.get("value")
    kinds = ("brushlabels", "bitmasklabels", *(("polygonlabels",) if controls is None else ()))
    if (controls is not None and region.get("from_name") not in controls) or kind not in kinds:
        raise DataError(
            f"It has a shape of the kind {shown(kind)}.", "Paint masks with the interface that was exported."
        )
    if not isinstance(value, dict):
        raise DataError("It has a shape without a value.", _AGAIN)
    _check_sizes(region, width=width, height=height)
    index = _class(value.get(kind), values)
    if kind == "polygonlabels":
        return index, _polygon(value.get("points"), width=width, height=height)
    if kind == "brushlabels":
        return index, brush.decode(value.get("rle"), width=width, height=height)
    return index, bitmask.decode(value.get("imageDataURL"), width=width, height=height)


def _polygon(points: object, *, width: int, height: int) -> npt.NDArray[np.bool_]:
    """The pixels [H, W] of a polygon, whose corners are in per cent of the image."""
    pairs: list[Any] = points if isinstance(points, list) else []
    if not pairs or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise DataError("It has a polygon without corners.", _AGAIN)
    numbers: list[Any] = [number for pair in pairs for number in pair]
    if not all(type(number) in (int, float) and abs(number) < _FAR for number in numbers):
        raise DataError("It has a polygon whose corners are no numbers near the image.", _AGAIN)
    corners = [number * (height if at % 2 else width) / 100 for at, number in enumerate(numbers)]
    canvas = Canvas(width=width, height=height)
    canvas.paint(read_shape([corners], width=width, height=height), 0)
    return canvas.decoded().mask == 0


def _class(labels: object, values: dict[str, int]) -> int:
    if not isinstance(labels, list) or len(labels) != 1:
        raise DataError("It has a shape that has not exactly one class.", "Choose its class in Label Studio.")
    return class_named(labels[0], values)


def _check_sizes(region: dict[str, Any], *, width: int, height: int) -> None:
    if region.get("image_rotation") not in (0, None):
        raise DataError("It was drawn on a turned image.", "Turn the image back in Label Studio.")
    check_size((region.get("original_width"), region.get("original_height")), width, height)
