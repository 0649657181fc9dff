"""The interface of every sampler: a stream of logits, a few samples at a time.

Legend: B batch, T samples, t samples of one chunk, C classes, h and w the maps' height and width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.uncertainty.network import Pass, ScoringNetwork

CHUNK_BYTES = {"cpu": 3 << 20, "cuda": 256 << 20}
"""Logits that are summed at once: on the CPU as many as fit into a cache (four times the speed of whole
batches, whose logits would be read from memory repeatedly), on CUDA enough to fill the device."""


@dataclass(frozen=True)
class Band:
    """All samples of some images and some rows of their maps.

    Attributes:
        images, rows: slices of the batch and of the rows.
        chunks: uncalibrated logits [t, images, C, rows, w], float32.
    """

    images: slice
    rows: slice
    chunks: Iterator[Tensor]


class Sampler(ABC):
    """A source of T equally likely predictions. It makes no random draws when it is used, so an image's
    samples depend neither on its batch nor on earlier images.

    Attributes:
        samples: T.
    """

    samples: int

    @abstractmethod
    def stream(self, network: ScoringNetwork, forward: Pass) -> Iterator[Tensor]:
        """Uncalibrated logits in chunks [t, B, C, h, w], float32, T in all, at the network's cells."""

    def bands(self, network: ScoringNetwork, forward: Pass) -> Iterator[Band]:
        """The same samples in parts that are summed one after the other, each small enough for a cache."""
        yield Band(slice(None), slice(None), self.stream(network, forward))


def room(device: torch.device) -> int:
    """The number of float32 values that may be in memory at once."""
    return CHUNK_BYTES[device.type] // 4
