"""Tiles of a large image, and the weights that blend them so that no seam shows.

Everything here is one-dimensional and in units the caller chooses; a plane's weight is the outer product of
its two sides'. A network that looks at its whole input (FPN's group norms, pooled context) sees the tile
instead of the image: its values then differ from an untiled pass, but they pass smoothly into each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TiledSide:
    """The tiles along one side of a padded image.

    Attributes:
        size: of each, in pixels.
        origins: the first pixel of each.
        weights: [tiles, size / cell] float32; see `blend_weights`.
    """

    size: int
    origins: list[int]
    weights: Tensor

    def blended_places(self, places: Tensor) -> Tensor:
        """Where the cells of the blended side lie, float64: the mean of their positions in all tiles, weighed
        as their values are.

        Args:
            places: of the cells in a tile, in pixels from the tile's first.
        """
        cells = len(places)
        cell = self.size // cells
        mean = torch.zeros(self.origins[-1] // cell + cells, dtype=torch.float64)
        total = torch.zeros_like(mean)
        for origin, weight in zip(self.origins, self.weights.double(), strict=True):
            window = slice(origin // cell, origin // cell + cells)
            mean[window] += weight * (origin + places)
            total[window] += weight
        return mean / total


def tiled_side(length: int, *, tile: int, overlap: int, stride: int, cell: int) -> TiledSide:
    """The tiles along a padded side. `length`, `tile` and `overlap` are multiples of `stride`, and that of
    `cell`."""
    origins = [
        origin * stride
        for origin in tile_origins(length // stride, tile=tile // stride, overlap=overlap // stride)
    ]
    weights = blend_weights(
        [origin // cell for origin in origins],
        tile=tile // cell,
        overlap=overlap // cell,
        length=length // cell,
    )
    return TiledSide(size=min(tile, length), origins=origins, weights=weights)


def tile_origins(length: int, *, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along one side. The last one ends with the side, so it may overlap more.

    >>> tile_origins(100, tile=40, overlap=10), tile_origins(30, tile=40, overlap=10)
    ([0, 30, 60], [0])

    Raises:
        ValueError: the overlap is not smaller than the tile.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"Expected an overlap from 0 to below the tile {tile}, but got {overlap}.")
    if length <= tile:
        return [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    return [min(index * (tile - overlap), length - tile) for index in range(count)]


def blend_weights(origins: list[int], *, tile: int, overlap: int, length: int) -> Tensor:
    """Weights [tiles, min(tile, length)] float32 that sum to 1 at every point of the side.

    A tile's weight falls linearly over the overlap, and is 0 in its outermost quarter where another tile
    covers it: near its edges, a tile shows the network less of the surroundings.

    >>> blend_weights([0, 2], tile=4, overlap=2, length=6).sum(dim=1).tolist()
    [3.0, 3.0]
    """
    tile = min(tile, length)
    position = torch.arange(tile, dtype=torch.float64) + 0.5
    blind, ramp = overlap / 4, overlap / 2
    weights = torch.ones(len(origins), tile, dtype=torch.float64)
    if overlap:
        rise = ((position - blind) / ramp).clamp(min=1e-6, max=1)
        for index in range(len(origins)):
            if index > 0:
                weights[index] = torch.minimum(weights[index], rise)
            if index < len(origins) - 1:
                weights[index] = torch.minimum(weights[index], rise.flip(0))
    total = torch.zeros(length, dtype=torch.float64)
    for origin, weight in zip(origins, weights, strict=True):
        total[origin : origin + tile] += weight
    for origin, weight in zip(origins, weights, strict=True):
        weight /= total[origin : origin + tile]
    return weights.float()
