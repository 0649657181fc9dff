"""Parts of an image's labeled pixels with numbers of their own: the boundary band, the interior, each class.

Legend: H W image size, N labeled pixels, C classes, P = 2 + C stored parts, K columns of a histogram.

Sums are stored for the boundary band, the interior and each class; the first two add up to the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config import IGNORE

Array = npt.NDArray[np.float64]


def part_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """The parts in the order of `with_whole`.

    >>> part_names(["sky", "road"])
    ('all', 'boundary', 'interior', 'class:sky', 'class:road')
    """
    return ("all", "boundary", "interior", *(f"class:{name}" for name in class_names))


def boundary_band(label_HW: Tensor, *, width: int) -> Tensor:
    """Whether a pixel lies within `width` pixels of one with another label: bool [H, W].

    The distance is the larger one of both axes. Pixels without a label are no part of a boundary.

    >>> boundary_band(torch.tensor([[0, 0, 0, 1, 1, 255, 2]]), width=1).int().tolist()
    [[0, 0, 1, 1, 0, 0, 0]]
    """
    valid = label_HW != IGNORE
    label = label_HW.float()
    window, around = 2 * width + 1, (width,) * 4

    def largest(values: Tensor) -> Tensor:
        padded = F.pad(values[None, None], around, value=-float("inf"))
        return F.max_pool2d(padded, window, stride=1)[0, 0]

    most = largest(label.masked_fill(~valid, -1))
    least = -largest((-label).masked_fill(~valid, -float(IGNORE)))
    return valid & ((most != label) | (least != label))


@dataclass(frozen=True)
class Parts:
    """The parts that N pixels belong to.

    Attributes:
        classes: int64 [N].
        boundary: bool [N].
        num_classes: C.
    """

    classes: Tensor
    boundary: Tensor
    num_classes: int

    def count(self, column_N: Tensor, columns: int, *weights_N: Tensor) -> Array:
        """Pixels, and the sum of each weight, by part and column: [P, K, 1 + len(weights)]."""
        index = ((self.classes * 2 + self.boundary) * columns + column_N).flatten()
        size = 2 * columns * self.num_classes
        sums = [torch.bincount(index, minlength=size).double()]
        sums += [torch.bincount(index, weights=weight.double(), minlength=size) for weight in weights_N]
        table = torch.stack(sums, dim=-1).reshape(self.num_classes, 2, columns, -1)
        return torch.cat([table.sum(dim=0).flip(0), table.sum(dim=1)]).cpu().numpy()


def with_whole(sums: Array, *, axis: int) -> Array:
    """The stored parts with the whole, boundary band and interior together, put before them.

    >>> with_whole(np.array([1.0, 2.0, 3.0, 0.0]), axis=0).tolist()
    [3.0, 1.0, 2.0, 3.0, 0.0]
    """
    whole = sums.take([0, 1], axis=axis).sum(axis=axis, keepdims=True)
    return np.concatenate([whole, sums], axis=axis)
