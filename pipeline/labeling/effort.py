"""What a region costs to label, before anybody has: estimated from the predicted mask's contours.

Legend: H height, W width of the image; R regions.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.config import IGNORE
from pipeline.data.masks import Mask
from pipeline.uncertainty.outlines import decode_outline

TOLERANCE = 1.5
"""Pixels by which a drawn polygon may miss the contour."""


def estimated_clicks(
    mask: Mask, boxes: npt.NDArray[np.int32], outlines: Sequence[str | None]
) -> npt.NDArray[np.float64]:
    """Clicks that an annotator needs to draw each region's predicted content.

    The region is filled with its largest part at one click, and every other part is drawn over it as a
    polygon: a click a vertex of its outer contour, simplified to `TOLERANCE` (Douglas and Peucker 1973). A
    part is what hangs together of one class. Clicks on polygon vertices as the cost of a region are from
    Mackowiak et al. 2018 (CEREALS).

    Args:
        mask: uint8 [H, W], class index or 255, which costs nothing.
        boxes: [R, 4] as x, y, w, h.
        outlines: R of them; None where a region fills its box.

    Returns:
        float64 [R], at least 1 each.

    >>> mask = np.zeros((20, 20), np.uint8)
    >>> mask[5:15, 5:15] = 1
    >>> estimated_clicks(mask, np.array([[0, 0, 20, 20], [0, 0, 4, 4]], np.int32), [None, None]).tolist()
    [5.0, 1.0]
    """
    return np.array(
        [
            _clicks(mask[y : y + h, x : x + w], decode_outline(outline, width=w, height=h))
            for (x, y, w, h), outline in zip(boxes.tolist(), outlines, strict=True)
        ],
        dtype=np.float64,
    )


def _clicks(window: Mask, inside: npt.NDArray[np.bool_]) -> float:
    vertices: list[int] = []
    areas: list[float] = []
    shown = np.where(inside[: window.shape[0], : window.shape[1]], window, np.uint8(IGNORE))
    for value in np.unique(shown).tolist():
        if value == IGNORE:
            continue
        # Contours at the top of the two-level hierarchy are the parts; the others are their holes
        contours, hierarchy = cv2.findContours(
            (shown == value).view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
        )
        for contour, (_, _, _, parent) in zip(contours, hierarchy[0], strict=True):
            if parent < 0:
                vertices.append(len(cv2.approxPolyDP(contour, TOLERANCE, closed=True)))
                areas.append(cv2.contourArea(contour))
    if not vertices:
        return 1.0
    return 1.0 + sum(vertices) - vertices[int(np.argmax(areas))]
