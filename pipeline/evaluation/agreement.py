"""How annotators of the same pixels agree.

Legend: N annotators, H height, W width, R regions, C classes, P pixels that at least two annotators labeled.
Votes are uint8 [N, H, W]: the class index, or 255 where an annotator has not labeled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.config import IGNORE
from pipeline.regions.outlines import decode_outline

Votes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Agreement:
    """How annotators agree on a region, over the pixels that at least two of them have labeled.

    Attributes:
        annotators: number of annotators that have labeled any of these pixels.
        pixels: number of these pixels.
        disagreement: the mean over pixels of the probability that two annotators, drawn at random without
            replacement, chose different classes: 1 − Σ_c n_c (n_c − 1) / (N (N − 1)).
        vote_entropy: the mean over pixels of H(n_c / N) / ln C, on the scale of the model's expected entropy
            (vote entropy: Dagan and Engelson 1995).
    """

    annotators: int
    pixels: int
    disagreement: float
    vote_entropy: float


def region_agreement(
    votes: Votes, boxes: npt.NDArray[np.int32], outlines: Sequence[str | None], *, num_classes: int
) -> list[Agreement | None]:
    """The agreement on each region; None where no pixel of it has two votes.

    Args:
        votes: [N, H, W].
        boxes: [R, 4] as x, y, w, h; what lies outside of the image is left out.
        outlines: R of them; None where a region fills its box.
        num_classes: C.

    Raises:
        ValueError: there are fewer than two classes, or `votes` has no three axes.

    >>> votes = np.array([[[0, 0]], [[0, 1]]], np.uint8)
    >>> region_agreement(votes, np.array([[0, 0, 2, 1]], np.int32), [None], num_classes=2)
    [Agreement(annotators=2, pixels=2, disagreement=0.5, vote_entropy=0.5)]
    """
    if num_classes < 2:
        raise ValueError(f"Expected argument `num_classes` to be at least 2, but got {num_classes}.")
    _check(votes)
    found: list[Agreement | None] = []
    for (x, y, w, h), outline in zip(boxes.tolist(), outlines, strict=True):
        window = votes[:, y : y + h, x : x + w]
        inside = decode_outline(outline, width=w, height=h)[: window.shape[1], : window.shape[2]]
        found.append(_agreement(window[:, inside], num_classes))
    return found


def pair_counts(votes: Votes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pixels that each pair of annotators has both labeled, and those among them with the same class.

    Returns:
        Two int64 [N, N], symmetric; sums over images are again counts.

    Raises:
        ValueError: `votes` has no three axes.

    >>> shared, same = pair_counts(np.array([[[0, 0, 255]], [[0, 1, 1]]], np.uint8))
    >>> shared.tolist(), same.tolist()
    ([[2, 2], [2, 3]], [[2, 1], [1, 3]])
    """
    _check(votes)
    count = len(votes)
    shared, same = np.zeros((count, count), np.int64), np.zeros((count, count), np.int64)
    known = votes != IGNORE
    for first in range(count):
        for second in range(first, count):
            both = known[first] & known[second]
            shared[first, second] = shared[second, first] = np.count_nonzero(both)
            equal = np.count_nonzero(both & (votes[first] == votes[second]))
            same[first, second] = same[second, first] = equal
    return shared, same


def _agreement(votes: Votes, num_classes: int) -> Agreement | None:
    """The agreement on pixels, votes [N, pixels]."""
    shared = votes[:, (votes != IGNORE).sum(axis=0) >= 2]
    if shared.shape[1] == 0:
        return None
    known = shared != IGNORE
    total = known.sum(axis=0)
    # The sum over classes is a sum over voters: each of the n_c votes for c adds 1 / n_c of the term of c
    others = np.zeros(shared.shape[1])
    entropy = np.zeros(shared.shape[1])
    for vote, labeled in zip(shared, known, strict=True):
        alike = (shared == vote).sum(axis=0)
        others += np.where(labeled, alike - 1, 0)
        entropy -= np.where(labeled, np.log(alike / total), 0.0)
    return Agreement(
        annotators=int(known.any(axis=1).sum()),
        pixels=shared.shape[1],
        disagreement=float((1 - others / (total * (total - 1))).mean()),
        vote_entropy=float((entropy / total).mean() / math.log(num_classes)),
    )


def _check(votes: Votes) -> None:
    if votes.ndim != 3:
        raise ValueError(f"Expected argument `votes` to be [N, H, W], but got the shape {votes.shape}.")
