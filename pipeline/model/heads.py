"""Slim heads: an ensemble on one encoder, trained beside the network in the same run.

Legend: K heads, B batch, C classes, S channels of a slim head, h w size of the finest map that they see.

Each head is a small decoder of its own: a 1×1 projection of every map of the encoder, summed at the finest
one, a 3×3 convolution, and a classifier (a deep ensemble, Lakshminarayanan et al. 2017, on shared features).
All K are computed together, as groups of the same convolutions. They see detached features, so the network
beside them learns what it would have learnt without them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

SLIM_CHANNELS = 32


class SlimHeads(nn.Module):
    """K heads on an encoder's maps.

    Args:
        channels: of each map, finest first.
        count: K.
        num_classes: C.
    """

    def __init__(self, channels: Sequence[int], *, count: int, num_classes: int) -> None:
        super().__init__()
        self.count = count
        width = count * SLIM_CHANNELS
        self.project = nn.ModuleList([nn.Conv2d(size, width, 1) for size in channels])
        self.mix = nn.Conv2d(width, width, 3, padding=1, groups=count, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.classify = nn.Conv2d(width, count * num_classes, 1, groups=count)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Logits [K, B, C, h, w] from the encoder's maps, finest first."""
        maps = [project(part.detach()) for project, part in zip(self.project, pyramid, strict=True)]
        size = maps[0].shape[-2:]
        total = maps[0]
        for coarse in maps[1:]:
            total = total + functional.interpolate(coarse, size=size, mode="bilinear", align_corners=True)
        logits = self.classify(functional.relu(self.norm(self.mix(total))))
        return logits.unflatten(1, (self.count, -1)).transpose(0, 1)


def heads_loss(
    head_logits: Tensor,
    target: Tensor,
    *,
    padded_size: tuple[int, int],
    loss: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """The sum of the heads' losses, each over crops that it draws with replacement (Breiman 1996), so that
    the heads differ in what they have seen. Drawn from torch's global generator.

    Args:
        head_logits: [K, B, C, h, w] of the padded crops.
        target: [B, H, W] class indices or [B, C, H, W] shares; compared at the heads' cells alone.
        padded_size: height and width of the padded crops.
        loss: of logits [B, C, h, w] and a target of their size.
    """
    rows, columns = (
        _pixels_on_cells(cells, padded=padded, within=within).to(target.device)
        for cells, padded, within in zip(head_logits.shape[-2:], padded_size, target.shape[-2:], strict=True)
    )
    small = target[..., rows[:, None], columns]
    batch = head_logits.shape[1]
    losses: list[Tensor] = []
    for logits in head_logits[..., : len(rows), : len(columns)].float():
        drawn = torch.randint(batch, (batch,)).to(target.device)
        losses.append(loss(logits[drawn], small[drawn]))
    return torch.stack(losses).sum()


def _pixels_on_cells(cells: int, *, padded: int, within: int) -> Tensor:
    """The pixels of a side on whose place a cell lies, corners aligned with the padded side."""
    pixels = torch.linspace(0, padded - 1, cells).round().long()
    return pixels[pixels < within]
