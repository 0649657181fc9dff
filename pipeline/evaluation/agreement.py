"""How annotators of the same pixels agree.

Legend: N annotators, H height, W width, R regions, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.config import IGNORE
from pipeline.uncertainty.outlines import decode_outline


@dataclass(frozen=True)
class Agreement:
    """How annotators agree on a region, over the pixels that at least two of them have labeled.

    Attributes:
        annotators: who have labeled any of these pixels.
        pixels: how many of these there are.
        disagreement: the mean over them of the probability that two annotators, drawn at random without
            replacement, say different classes: 1 − Σ_c n_c (n_c − 1) / (N (N − 1)).
        vote_entropy: the mean over them of H(n_c / N) / ln C: on the scale of the model's expected entropy.
    """

    annotators: int
    pixels: int
    disagreement: float
    vote_entropy: float


def region_agreement(
    votes: npt.NDArray[np.uint8],
    boxes: npt.NDArray[np.int32],
    outlines: Sequence[str | None],
    *,
    num_classes: int,
) -> list[Agreement | None]:
    """The agreement on each region; None where no pixel of it has two votes.

    Args:
        votes: [N, H, W], class index or 255 where an annotator says nothing.
        boxes: [R, 4] as x, y, w, h.
        outlines: R of them; None where a region fills its box.
        num_classes: C.

    >>> votes = np.array([[[0, 0]], [[0, 1]]], np.uint8)
    >>> region_agreement(votes, np.array([[0, 0, 2, 1]], np.int32), [None], num_classes=2)
    [Agreement(annotators=2, pixels=2, disagreement=0.5, vote_entropy=0.5)]
    """
    found: list[Agreement | None] = []
    for (x, y, w, h), outline in zip(boxes.tolist(), outlines, strict=True):
        inside = decode_outline(outline, width=w, height=h)
        found.append(_agreement(votes[:, y : y + h, x : x + w][:, inside], num_classes))
    return found


def _agreement(votes: npt.NDArray[np.uint8], num_classes: int) -> Agreement | None:
    """The agreement on pixels, votes [N, pixels]."""
    shared = votes[:, (votes != IGNORE).sum(axis=0) >= 2]
    if shared.shape[1] == 0:
        return None
    counts = np.stack([(shared == value).sum(axis=0) for value in range(num_classes)]).astype(np.float64)
    total = counts.sum(axis=0)
    same = (counts * (counts - 1)).sum(axis=0) / (total * (total - 1))
    share = counts / total
    entropy = -(share * np.log(share, where=share > 0, out=np.zeros_like(share))).sum(axis=0)
    return Agreement(
        annotators=int((shared != IGNORE).any(axis=1).sum()),
        pixels=shared.shape[1],
        disagreement=float((1 - same).mean()),
        vote_entropy=float((entropy / np.log(num_classes)).mean()),
    )
