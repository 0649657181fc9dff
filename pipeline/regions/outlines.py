"""Outlines: which pixels of its box a region holds.

Legend: R regions; h w a box's height and width. An outline is the region's mask, cropped to its box, in
COCO's compressed run-length encoding (Lin et al. 2014; `counts` of pycocotools, column by column); None where
the region fills its box. A box is (x, y, w, h) in image pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

Polygon = list[tuple[int, int]]
"""Corners (x, y): the centres of a region's outermost pixels, in image pixels."""


def encode_outline(mask: npt.NDArray[np.bool_]) -> str | None:
    """The outline of a mask [h, w]; None where all of it is set.

    >>> encode_outline(np.ones((2, 3), dtype=bool)) is None
    True
    >>> encode_outline(np.array([[True, False], [True, True]]))
    '021O'
    """
    if mask.all():
        return None
    counts: bytes = coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]  # pyright: ignore[reportAssignmentType]
    return counts.decode("ascii")


def decode_outline(outline: str | None, *, width: int, height: int) -> npt.NDArray[np.bool_]:
    """The mask [h, w] of an outline.

    >>> decode_outline("021O", width=2, height=2).tolist()
    [[True, False], [True, True]]

    Raises:
        ValueError: the outline is longer than a box of this size, or is none.
    """
    if outline is None:
        return np.ones((height, width), dtype=bool)
    return coco.decode({"size": [height, width], "counts": outline.encode()}).view(np.bool_)


def paint_regions(
    canvas: npt.NDArray[np.bool_], boxes: npt.NDArray[np.integer], outlines: Sequence[str | None]
) -> None:
    """Set the pixels of regions in a mask [H, W], in place.

    Args:
        boxes: [R, 4]; what lies outside of the canvas is left out.
        outlines: R of them.

    >>> canvas = np.zeros((2, 4), dtype=bool)
    >>> paint_regions(canvas, np.array([[1, 0, 2, 2]]), ["021O"])
    >>> canvas.astype(int).tolist()
    [[0, 1, 0, 0], [0, 1, 1, 0]]
    """
    for (x, y, w, h), outline in zip(boxes.tolist(), outlines, strict=True):
        window = canvas[y : y + h, x : x + w]
        if outline is None:
            window[...] = True
        else:
            window |= decode_outline(outline, width=w, height=h)[: window.shape[0], : window.shape[1]]


def polygons(outline: str | None, box: tuple[int, int, int, int], *, holes: bool = False) -> list[Polygon]:
    """The borders of a region in the image, one a connected part, and one a hole where these are wanted
    (Suzuki and Abe 1985, as in OpenCV).

    >>> polygons(None, (10, 20, 3, 2))
    [[(10, 20), (10, 21), (12, 21), (12, 20)]]
    """
    x, y, w, h = box
    mask = decode_outline(outline, width=w, height=h)
    mode = cv2.RETR_CCOMP if holes else cv2.RETR_EXTERNAL
    found, _ = cv2.findContours(mask.view(np.uint8), mode, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y))
    return [[(px, py) for px, py in contour[:, 0].tolist()] for contour in found]
