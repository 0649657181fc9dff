"""The pixels of a batch whose labels are known: where few are, the loss looks at no others.

Legend: B batch, C classes, H W crop size, P the largest number of known pixels in a crop.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pipeline.config import IGNORE

MOST_KNOWN = 0.5
"""Share of a crop's pixels up to which single pixels cost less than all of them."""


def known_pixels(target: Tensor) -> tuple[Tensor, Tensor] | None:
    """The known pixels of each crop, and what is known there.

    Args:
        target: hard [B, H, W] or soft [B, C, H, W], as `losses` says.

    Returns:
        Places int64 [B, P], row · W + column, and the target [B, 1, P] or [B, C, 1, P]. A crop with fewer
        known pixels is filled up with the first pixel, where nothing is known then. None where a crop has
        more than the share `MOST_KNOWN`.
    """
    soft = target.is_floating_point()
    known = ((target > 0).any(dim=1) if soft else target != IGNORE).flatten(1)
    counts = known.sum(dim=1)
    if counts.max() > MOST_KNOWN * known.shape[1]:
        return None
    places = pad_sequence([crop.nonzero()[:, 0] for crop in known], batch_first=True)
    if not places.shape[1]:
        places = places.new_zeros(len(known), 1)
    beyond = torch.arange(places.shape[1], device=places.device) >= counts[:, None]
    if soft:
        values = target.flatten(2).gather(2, places[:, None].expand(-1, target.shape[1], -1))
        return places, values.masked_fill(beyond[:, None], 0)[:, :, None]
    return places, target.flatten(1).gather(1, places).masked_fill(beyond, IGNORE)[:, None]
