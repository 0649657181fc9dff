"""Histogram bins of a measure: a fixed set, refined where the values of a few images lie.

Legend: N pixels, E = 512 bins.

Rank metrics (AUROC, AUPR, the false positive rate, AURC) depend on the order of the pixels only. A histogram
gives them up to the order within a bin, so no bin may hold many right and many wrong pixels. No fixed set of
bins ensures that: an untrained network, or one with two classes, can have all its values within a hundredth
of each other, near 0, near 1 or between. So edges are also put at quantiles of a sample, of right and of
wrong pixels apart. A value that many pixels share, as votes do, has a bin of its own: it is one threshold,
not an interval of thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

MEASURE_BINS = 512
UNBOUNDED = frozenset({"energy", "max_logit"})
"""Measures of logits, of either sign; all others lie in 0 to 1, except `max_logit_norm` (−1 to 0)."""
UNBOUNDED_LIMIT = 1e4
FIXED_EDGES = 248
SMALLEST = 1e-7
"""The smallest distance from 0 and from 1 that is resolved: float32 resolves no smaller one from 1."""
QUANTILES = 128
"""Edges at the values of each side of a sample."""
FEW = 8
"""Fewer equal values of a sample than this are no evidence of a tie."""
SAMPLE_IMAGES = 6
"""Images of a sample."""
SAMPLE_PIXELS = 2000
"""Pixels of each side that an image adds to a sample."""

LOOKED_UP = 2**15
"""Values from which on a table of buckets costs less than a search among the edges for each value."""
BUCKET_BITS = 12
"""Last bits of float32 that a bucket of the table leaves out: it spans 1/2048 of its values at most."""
BUCKETS = 2 ** (32 - BUCKET_BITS)
UNCLEAR = -1

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class MeasureBins:
    """The E bins of one measure: bin i holds the values from edge i − 1 up to, and without, edge i.

    Attributes:
        edges: float32 [E − 1], ascending; unused ones are infinite.
        tied: bool [E], whether the bin holds one value only.
    """

    edges: Tensor
    tied: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, name: str, *samples: Floats) -> Self:
        """The fixed bins of a measure, refined at the quantiles of one or two samples of its values.

        Fixed edges are even in log-odds for measures from 0 to 1, in the inverse hyperbolic sine for those of
        logits, and in the value for `max_logit_norm`.
        """
        filled = [sample for sample in samples if len(sample)]
        parts: list[Floats] = [_fixed_edges(name)]
        alone: list[Floats] = [np.array([0, 1], dtype=np.float32)]
        for sample in filled:
            levels = (np.arange(QUANTILES) + 0.5) / QUANTILES
            parts.append(np.quantile(sample, levels, method="inverted_cdf"))
            values, counts = np.unique(sample, return_counts=True)
            # A value of this share is at two quantiles at least, so its bin needs no edge beyond theirs
            alone.append(values[counts * QUANTILES >= 2 * max(len(sample), QUANTILES)])
        begin = np.unique(np.concatenate(alone))
        end = np.nextafter(begin, np.float32(np.inf))
        end[begin == 0] = np.finfo(np.float32).tiny  # denormal numbers may be read as 0
        chosen = np.unique(np.concatenate([*parts, begin, end]).astype(np.float32))
        edges = np.full(MEASURE_BINS - 1, np.inf, dtype=np.float32)
        edges[: len(chosen)] = chosen
        tied = np.concatenate([[False], np.isin(edges, begin)]) | _of_one_value(edges, filled)
        return cls(torch.from_numpy(edges), tied)

    def index(self, value: Tensor) -> Tensor:
        """int64, the bin of each value, monotone in it."""
        value = value.float().contiguous()
        if value.device.type != "cpu" or value.numel() < LOOKED_UP:
            return self._searched(value)
        found = self._table.index_select(0, _bucket(value.flatten()))
        unclear = (found == UNCLEAR).nonzero()[:, 0]
        index = found.long()
        index[unclear] = self._searched(value.flatten().index_select(0, unclear))
        return index.view(value.shape)

    def _searched(self, value: Tensor) -> Tensor:
        return torch.searchsorted(self.edges.to(value.device), value, right=True)

    @cached_property
    def _table(self) -> Tensor:
        """int16, the bin of every bucket of float32 numbers; `UNCLEAR` where an edge parts a bucket."""
        key = _ordered(self.edges)
        bucket = _bucket(self.edges)
        table = torch.bincount(bucket, minlength=BUCKETS).cumsum(dim=0).short()
        table[bucket[key & (2**BUCKET_BITS - 1) != 0]] = UNCLEAR
        return table


def _ordered(value: Tensor) -> Tensor:
    """int32 numbers in the order of float32 ones: their bits, those of negative numbers inverted."""
    bits = (value + 0.0).view(torch.int32)  # −0 becomes 0
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _bucket(value: Tensor) -> Tensor:
    return (_ordered(value) >> BUCKET_BITS) + BUCKETS // 2


class BinSample:
    """Values of a few images, right and wrong pixels apart (or known and novel ones), to choose bins by."""

    def __init__(self) -> None:
        self.values: dict[str, tuple[list[Floats], list[Floats]]] = {}
        self.generator = np.random.default_rng(0)

    def add(self, measures: Mapping[str, Tensor], positive_N: Tensor) -> None:
        """Add one image.

        Args:
            measures: [N] by name.
            positive_N: bool, whether a pixel is wrong (or novel).
        """
        for side, of_side in enumerate((~positive_N, positive_N)):
            index = of_side.nonzero()[:, 0]
            if len(index) > SAMPLE_PIXELS:
                drawn = self.generator.choice(len(index), SAMPLE_PIXELS, replace=False)
                index = index[torch.from_numpy(drawn).to(index.device)]
            for name, value_N in measures.items():
                sides = self.values.setdefault(name, ([], []))
                sides[side].append(value_N[index].float().cpu().numpy())

    def bins(self) -> dict[str, MeasureBins]:
        """The bins of every measure."""
        return {
            name: MeasureBins.of(name, *(np.concatenate(parts) for parts in sides))
            for name, sides in self.values.items()
        }


def _of_one_value(edges: Floats, samples: Sequence[Floats]) -> npt.NDArray[np.bool_]:
    """bool [E], whether a bin holds several values of the samples, and all of them are equal."""
    values, counts = np.unique(np.concatenate([*samples, np.zeros(0, np.float32)]), return_counts=True)
    index = np.searchsorted(edges, values, side="right")
    distinct = np.bincount(index, minlength=MEASURE_BINS)
    return (distinct == 1) & (np.bincount(index, weights=counts, minlength=MEASURE_BINS) >= FEW)


def _fixed_edges(name: str) -> Floats:
    if name == "max_logit_norm":
        edges = np.linspace(-1, 0, FIXED_EDGES)
    elif name in UNBOUNDED:
        limit = np.arcsinh(UNBOUNDED_LIMIT)
        edges = np.sinh(np.linspace(-limit, limit, FIXED_EDGES))
    else:
        limit = np.log(1 / SMALLEST - 1)
        edges = 1 / (1 + np.exp(-np.linspace(-limit, limit, FIXED_EDGES)))
    return edges.astype(np.float32)
