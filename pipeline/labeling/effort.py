"""What a region costs to label: clicks, estimated from a mask, to draw it or to correct a proposal of it.

Legend: H W the image's height and width; h w those of a region's box; R regions; E edges.

An edge is the side that two neighbouring pixels of different classes share. A node is a corner of pixels,
numbered row by row on a lattice of h + 1 by w + 1. Consecutive edges make a border.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipeline.config import IGNORE
from pipeline.data.masks import Mask
from pipeline.regions.outlines import decode_outline

TOLERANCE = 1.5
"""Pixels by which a drawn polygon may miss the border."""
_RIGHT = -1
"""In place of the class where a proposal is right."""
_STRAIGHT = 3
"""Up to so many edges, a border between two fixed ends stays within the tolerance of a straight line."""

Indices = npt.NDArray[np.int64]
Classes = npt.NDArray[np.uint8] | npt.NDArray[np.int16]


def estimated_clicks(
    mask: Mask, boxes: npt.NDArray[np.int32], outlines: Sequence[str | None]
) -> npt.NDArray[np.float64]:
    """Clicks that an annotator needs to draw each region's predicted content.

    One click fills the region with a class. Every vertex of the borders between its parts is another click,
    after the borders are simplified to `TOLERANCE` (Douglas and Peucker 1973): the nodes where three parts
    meet, the nodes where a border reaches the region's own, and the corners between them. A border that two
    parts share is clicked once, the border of a hole like any other, and the region's own costs nothing. An
    object below the tolerance has one vertex, a line of one pixel's width two.

    Clicks on the vertices of polygons as the cost of a region: Mackowiak et al. 2018 (CEREALS).

    Args:
        mask: uint8 [H, W], class index or 255, which counts as outside of the region.
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
            1 + _vertices(mask[y : y + h, x : x + w], decode_outline(outline, width=w, height=h))
            for (x, y, w, h), outline in zip(boxes.tolist(), outlines, strict=True)
        ],
        dtype=np.float64,
    )


def correcting_clicks(
    mask: Mask, proposal: Mask, boxes: npt.NDArray[np.int32], outlines: Sequence[str | None]
) -> npt.NDArray[np.float64]:
    """Clicks that an annotator needs to correct the proposed content of each region.

    One click confirms the region. The parts where the proposal is wrong are drawn as `estimated_clicks` draws
    the parts of a region: a click on every vertex of their borders with what is right, and with wrong parts
    of another class. A wrong part without such a border, which fills what is known, is one click. A proposal
    that misses every border by a little costs more than drawing from nothing.

    Args:
        mask: uint8 [H, W], the true class index; 255 counts as outside of the region, and is not corrected.
        proposal: uint8 [H, W].
        boxes: [R, 4] as x, y, w, h.
        outlines: R of them; None where a region fills its box.

    Returns:
        float64 [R], at least 1 each.

    >>> mask = np.zeros((20, 20), np.uint8)
    >>> mask[5:15, 5:15] = 1
    >>> whole = np.array([[0, 0, 20, 20]], np.int32)
    >>> [correcting_clicks(mask, other, whole, [None]).item() for other in (mask, mask * 0, mask * 0 + 2)]
    [1.0, 5.0, 6.0]
    """
    found = np.empty(len(boxes))
    for row, ((x, y, w, h), outline) in enumerate(zip(boxes.tolist(), outlines, strict=True)):
        truth = mask[y : y + h, x : x + w]
        right = proposal[y : y + h, x : x + w] == truth
        inside = decode_outline(outline, width=w, height=h)[: truth.shape[0], : truth.shape[1]]
        inside = inside & (truth != IGNORE)
        _, island = cv2.connectedComponents(inside.astype(np.uint8), connectivity=4)
        all_wrong = len(np.setdiff1d(island[inside], island[inside & right]))
        window = np.where(right, _RIGHT, truth.astype(np.int16))
        found[row] = 1 + all_wrong + _vertices(window, inside)
    return found


class _Edges(NamedTuple):
    """Every edge as two half-edges, forward (even) and backward (odd): 2 E of them.

    Attributes:
        tail: the node that a half-edge leaves.
        partner: the half-edge that leaves the same node and continues the border; −1 where the border ends.
        ends: nodes at which borders end, each counted once.
    """

    tail: Indices
    partner: Indices
    ends: int


class _Border(NamedTuple):
    """The nodes along a border. A `free` border has no ends: it returns to its first node."""

    nodes: Indices
    free: bool


def _vertices(window: Classes, inside: npt.NDArray[np.bool_]) -> int:
    """Vertices of the simplified borders in a window [h, w]."""
    edges = _edges(window, inside[: window.shape[0], : window.shape[1]] & (window != IGNORE))
    count = edges.ends
    if len(edges.tail):
        count += sum(_corners(border, window.shape[1] + 1) for border in _borders(edges))
    return count


def _corners(border: _Border, columns: int) -> int:
    """Vertices of a simplified border besides its ends."""
    closed = bool(border.nodes[0] == border.nodes[-1])
    nodes = border.nodes[:-1] if closed else border.nodes
    points = np.stack([nodes % columns, nodes // columns], axis=1).astype(np.int32)
    kept = len(cv2.approxPolyDP(points[:, None], TOLERANCE, closed))
    return kept if border.free else kept - 1 if closed else kept - 2


def _edges(window: Classes, known: npt.NDArray[np.bool_]) -> _Edges:
    """The edges between known pixels of different classes [h, w], and how they continue.

    A border ends where three parts meet, and where it reaches unknown pixels. Where two pixels of a class
    touch at a corner between two pixels of another class, two borders cross, and each continues straight:
    neither class counts as connected.
    """
    columns = window.shape[1] + 1
    upright = known[:, 1:] & known[:, :-1] & (window[:, 1:] != window[:, :-1])
    level = known[1:] & known[:-1] & (window[1:] != window[:-1])
    row, column = np.nonzero(upright)
    above = row * columns + column + 1
    row, column = np.nonzero(level)
    left = (row + 1) * columns + column
    tail = np.concatenate([np.stack([above, above + columns], 1), np.stack([left, left + 1], 1)]).ravel()
    degree = np.bincount(tail, minlength=columns * (window.shape[0] + 1))
    goes_on = degree == 2
    row, column = np.divmod(np.flatnonzero(degree == 4), columns)
    crossing = (window[row, column] == window[row - 1, column - 1]) & (
        window[row, column - 1] == window[row - 1, column]
    )
    goes_on[(row * columns + column)[crossing]] = True
    # Sorted by node, vertical edges first: of two or four half-edges, neighbours form pairs
    order = np.argsort(tail, kind="stable")
    pairs = order[goes_on[tail[order]]].reshape(-1, 2)
    partner = np.full(len(tail), -1)
    partner[pairs[:, 0]], partner[pairs[:, 1]] = pairs[:, 1], pairs[:, 0]
    return _Edges(tail, partner, int(((degree > 0) & ~goes_on).sum()))


def _borders(edges: _Edges) -> Iterator[_Border]:
    """The borders that may have a corner, each in one of its two directions."""
    tail, partner = edges.tail, edges.partner.copy()
    half_edges = np.arange(len(tail))
    linked = np.flatnonzero(partner >= 0)
    graph = coo_array(
        (np.ones(len(linked)), (linked // 2, partner[linked] // 2)), shape=(len(tail) // 2,) * 2
    )
    count, border = connected_components(graph, directed=False)
    free = (
        np.bincount(border, weights=partner[0::2] < 0) + np.bincount(border, weights=partner[1::2] < 0) == 0
    )
    # A border without ends is cut at its first edge
    begin = 2 * np.unique(border, return_index=True)[1][free]
    partner[partner[begin]], partner[begin] = -1, -1
    last, steps = _last(np.where(partner[half_edges ^ 1] < 0, half_edges, partner[half_edges ^ 1]))
    # Of the two directions, the one that ends at the half-edge of the lower number is kept
    border = np.repeat(border, 2)
    end = np.full(count, len(tail))
    np.minimum.at(end, border, last)
    length = np.bincount(border, minlength=count) // 2
    kept = np.flatnonzero((last == end[border]) & (free | (length > _STRAIGHT))[border])
    kept = kept[np.lexsort([-steps[kept], border[kept]])]
    starts = np.flatnonzero(np.diff(border[kept], prepend=-1))
    for part in np.split(kept, starts[1:]) if len(kept) else ():
        yield _Border(np.append(tail[part], tail[part[-1] ^ 1]), bool(free[border[part[0]]]))


def _last(following: Indices) -> tuple[Indices, Indices]:
    """The last half-edge after each, and its distance in half-edges; the last is followed by itself.

    Doubles the distance in each turn, so that a long border needs few turns.
    """
    steps = (following != np.arange(len(following))).astype(np.int64)
    while True:
        further = following[following]
        if np.array_equal(further, following):
            return following, steps
        steps = steps + steps[following]
        following = further
