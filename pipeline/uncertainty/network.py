"""A segmenter on a device, whose logits come at the cells where measures are computed.

Legend: B batch, K image channels, C classes, H W size of the padded image, h w size of the maps.

A cell has a position in the image, on a pixel or between pixels. Maps of different views, heads or members
of an ensemble are resampled to the same positions before they are summed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config import Resolution
from pipeline.data.bands import bands
from pipeline.model.device import half_precision
from pipeline.model.encoder_cache import CachedEncoder
from pipeline.model.segmenter import Lattice, Segmenter, Trunk
from pipeline.regions.shapes import CellBounds

LEAST_LOGIT = -1e6
"""In place of −∞ and of less: interpolation multiplies logits by 0, and 0 · ∞ is not a number."""
QUARTER = 4
"""Image pixels a cell with `scoring.resolution: quarter`, along one side."""

TAP_PHASES = 5
"""Cells are told apart by their index modulo this: no pixel is interpolated from so many neighbours."""

Places = tuple[Tensor, Tensor]
"""Rows [h] and columns [w] of cells, float64, in pixels from the centre of the first pixel."""


@dataclass(frozen=True)
class Taps:
    """The cells that each of n pixels along one side is interpolated from.

    Attributes:
        cells: int64 [n, 2], the heavier one first.
        weights: float32 [n, 2], which sum to 1.
    """

    cells: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Pass:
    """The results of one deterministic pass.

    Attributes:
        image: [B, K, H, W], padded, on the device.
        trunk: of the image.
        logits: float32 [B, C, h, w] at the network's cells.
    """

    image: Tensor
    trunk: Trunk
    logits: Tensor


class ScoringNetwork:
    """A segmenter in eval mode whose logits come at the resolution of the scores.

    Attributes:
        segmenter: moved to `device`, channels last.
        full: logits at every pixel, by the network's own upsampling.
        lattice: the cells of the network's own logits that are computed.
        cell: pixels a cell, along one side.
    """

    def __init__(self, segmenter: Segmenter, *, resolution: Resolution, device: torch.device) -> None:
        self.segmenter = segmenter.to(device=device, memory_format=torch.channels_last).eval()  # pyright: ignore[reportCallIssue]
        self.device = device
        self.full = resolution == "full"
        every = 1
        if resolution == "quarter":
            every = max(1, min(QUARTER, segmenter.stride) // segmenter.logits_stride)
        centre = (every - 1) // 2
        self.lattice = Lattice(every, (centre, centre))
        self.cell = 1 if self.full else every * segmenter.logits_stride

    def run(
        self, image: Tensor, *, lattice: Lattice | None = None, cache: CachedEncoder | None = None
    ) -> Pass:
        """One pass over images [B, K, H, W], padded here where they need it.

        Args:
            cache: of this network's encoder, which then runs for images only whose maps are not kept.
        """
        encoded = None if cache is None else cache.maps(image)
        image = image.to(self.device, non_blocking=True)
        image = self.segmenter.pad(image).contiguous(memory_format=torch.channels_last)
        trunk = self._trunk(image, encoded)
        return Pass(image=image, trunk=trunk, logits=self.logits(trunk, lattice=lattice))

    def logits(self, trunk: Trunk, mask: Tensor | None = None, *, lattice: Lattice | None = None) -> Tensor:
        """The tail's logits at the network's cells: float32 [B, C, h, w], or [t·B, C, h, w] with a mask of t
        samples."""
        logits = self.segmenter.tail(trunk, mask, self.lattice if lattice is None else lattice)
        logits = logits.float().clamp(min=LEAST_LOGIT)
        return self.segmenter.upsample(logits) if self.full else logits

    @property
    def mirrored(self) -> Lattice:
        """The cells to compute of a mirrored image, so that they mirror the cells of the image itself."""
        row, column = self.lattice.offset
        return replace(self.lattice, offset=(row, self.lattice.every - 1 - column))

    def places(self, height: int, width: int, *, lattice: Lattice | None = None) -> Places:
        """The positions in a padded image of the cells of `lattice`, by default the network's own."""
        lattice = self.lattice if lattice is None else lattice
        rows, columns = (
            self._side(length, offset, lattice.every)
            for length, offset in zip((height, width), lattice.offset, strict=True)
        )
        return rows, columns

    def enlarge(
        self,
        maps: Tensor,
        *,
        network_size: tuple[int, int],
        size: tuple[int, int],
        places: Places | None = None,
    ) -> Tensor:
        """Maps [B, C, h, w] as [B, C, H, W], by the network's own upsampling.

        Args:
            network_size: height and width of the network's image, without padding.
            size: height and width to return; another one only where images were resized.
            places: of the cells, where these are not the network's own, such as those of blended tiles.
        """
        if places is not None:
            maps = resample(maps, places, _pixels(network_size))
        else:
            maps = self._upsampled(maps, network_size)
        if size != network_size:
            maps = functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)
        return maps

    def enlarged_bands(
        self,
        maps: Tensor,
        *,
        network_size: tuple[int, int],
        size: tuple[int, int],
        places: Places | None = None,
        among: Sequence[slice] | None = None,
    ) -> Iterator[tuple[slice, Tensor]]:
        """As `enlarge`, but in bands of rows [B, C, rows, W], each with its place: those of `among`, or as
        high as `bands` makes them."""
        upsampled = places is None  # no larger than a tile
        if places is None:
            maps, places = self._upsampled(maps, network_size), _pixels(network_size)
        batch, channels = maps.shape[:2]
        columns = _scaled(size[1], network_size[1])
        for rows in bands(size[0], batch * channels * size[1]) if among is None else among:
            target = _scaled(size[0], network_size[0])[rows]
            low = max(0, int(torch.searchsorted(places[0], target[0], right=True)) - 1)
            high = int(torch.searchsorted(places[0], target[-1])) + 1
            if size == network_size:
                yield (
                    rows,
                    resample(maps[..., low:high, :], (places[0][low:high], places[1]), (target, columns)),
                )
                continue
            pixels = torch.arange(int(target[0]), int(target[-1]) + 2, dtype=torch.float64)
            pixels = pixels[pixels < network_size[0]]
            between = (pixels, _pixels(network_size)[1])
            near = (
                maps[..., int(pixels[0]) : int(pixels[-1]) + 1, :]
                if upsampled
                else resample(maps, places, between)
            )
            yield rows, resample(near, between, (target, columns))

    def taps(self, axis: int, places: Tensor, *, blended: bool, network_length: int, length: int) -> Taps:
        """How `enlarge` makes the pixels of one side from the cells, which it interpolates linearly.

        A pixel of an image that was resized may have a third cell, of at most 1/16: it is left out.

        Args:
            axis: −2 for rows, −1 for columns.
            places: of the cells along the side.
            blended: whether the places are those of blended tiles, not the network's own.
            network_length: of the network's image, without padding.
            length: of the image.
        """
        cells = len(places)
        index = torch.arange(cells, dtype=torch.float64)
        phases = [(index % TAP_PHASES == phase).double() for phase in range(TAP_PHASES)]
        maps = torch.stack([index, *phases])[None]
        other = -1 if axis == -2 else -2  # one cell
        network_size, size = ((side, 1) if axis == -2 else (1, side) for side in (network_length, length))
        single = torch.zeros(1, dtype=torch.float64)
        both = (places, single) if axis == -2 else (single, places)
        found = self.enlarge(
            maps.unsqueeze(other), network_size=network_size, size=size, places=both if blended else None
        ).squeeze(other)[0]
        centre, of_phase = found[0], found[1:].T
        weights, phase = of_phase.topk(2, dim=1)
        nearest = centre[:, None] + (phase - centre[:, None] + TAP_PHASES / 2) % TAP_PHASES - TAP_PHASES / 2
        return Taps(
            cells=nearest.round().long().clamp(0, cells - 1),
            weights=(weights / weights.sum(dim=1, keepdim=True)).float(),
        )

    def _upsampled(self, maps: Tensor, network_size: tuple[int, int]) -> Tensor:
        """Maps at the network's own cells as maps at each pixel of its image."""
        if self.cell > 1:
            # The network aligns the corners of its padded image
            rows, columns = (side // self.cell for side in self.segmenter.padded_size(*network_size))
            missing = (0, columns - maps.shape[-1], 0, rows - maps.shape[-2])
            maps = functional.pad(maps, missing, mode="replicate")
            maps = self.segmenter.upsample(_fill(maps, self.lattice))
        return maps[..., : network_size[0], : network_size[1]]

    def _trunk(self, image: Tensor, encoded: list[Tensor] | None) -> Trunk:
        """The trunk in float32, computed with autocast on CUDA."""
        with torch.autocast(self.device.type, dtype=half_precision(), enabled=self.device.type == "cuda"):
            trunk = self.segmenter.trunk(image) if encoded is None else self.segmenter.trunk_of(encoded)
        return Trunk(
            features=trunk.features.float(),
            context=tuple(part.float() for part in trunk.context),
            pyramid=tuple(part.float() for part in trunk.pyramid),
        )

    def _side(self, length: int, offset: int, every: int) -> Tensor:
        if self.full:
            return torch.arange(length, dtype=torch.float64)
        corners = aligned_places(length // self.segmenter.logits_stride, length)
        return corners[offset::every].contiguous()


def aligned_places(cells: int, length: int) -> Tensor:
    """Positions [cells] along a side whose first and last cell are its first and last pixel."""
    return torch.linspace(0, length - 1, cells, dtype=torch.float64)


def cells_within(places: Tensor, length: int) -> Tensor:
    """The positions [n] up to the first cell on or beyond the last of `length` pixels: what lies further out
    has no part in an image of that length."""
    return places[: int(torch.searchsorted(places, length - 1)) + 1]


def cell_bounds(places: Places, size: tuple[int, int]) -> CellBounds:
    """The pixels that are nearest to each cell, the first of two where they are as near.

    Args:
        places: of the cells, ascending.
        size: height and width of the network's image, without padding.
    """

    def side(positions: Tensor, length: int) -> tuple[int, ...]:
        inner = ((positions[1:] + positions[:-1]) / 2).floor().long().add_(1).clamp_(max=length)
        return (0, *inner.tolist(), length)

    return CellBounds(side(places[0], size[0]), side(places[1], size[1]))


def resample(maps: Tensor, source: Places, target: Places) -> Tensor:
    """Maps [..., h, w] resampled from `source` to `target`: linear between neighbouring cells, the nearest
    cell's value beyond the outermost ones. Cells at the same positions keep their values exactly."""
    for axis, (old, new) in enumerate(zip(source, target, strict=True)):
        if _same(old, new):
            continue
        right = torch.searchsorted(old, new).clamp(min(1, len(old) - 1), len(old) - 1)
        left = (right - 1).clamp(min=0)
        share = ((new - old[left]) / (old[right] - old[left]).clamp(min=1e-9)).clamp(0, 1)
        before, after = (_taken(maps, axis - 2, side.to(maps.device)) for side in (left, right))
        maps = torch.lerp(before, after, share.to(maps)[:, None] if axis == 0 else share.to(maps))
    return maps


def _taken(maps: Tensor, axis: int, cells: Tensor) -> Tensor:
    """`maps.index_select(axis, cells)` of rows or columns, at a quarter of the time for columns."""
    if axis == -1:
        return maps.gather(-1, cells.expand(*maps.shape[:-1], -1))
    return maps.index_select(axis, cells)


def _pixels(size: tuple[int, int]) -> Places:
    """The positions of an image's own pixels."""
    rows, columns = (torch.arange(side, dtype=torch.float64) for side in size)
    return rows, columns


def _scaled(length: int, network_length: int) -> Tensor:
    """Where the pixels of a side lie in the network's image, which covers the same side."""
    places = (torch.arange(length, dtype=torch.float64) + 0.5) * (network_length / length) - 0.5
    return places.clamp_(0, network_length - 1)


def same_places(first: Places, second: Places) -> bool:
    """Whether cells lie at the same positions."""
    return all(_same(*sides) for sides in zip(first, second, strict=True))


def _same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.allclose(first, second, rtol=0, atol=1e-6)


def _fill(maps: Tensor, lattice: Lattice) -> Tensor:
    """Maps at the cells of a lattice as maps at all cells: linear in between, repeated at the border."""
    every, (row, column) = lattice.every, lattice.offset
    if every == 1:
        return maps
    size = [every * (side - 1) + 1 for side in maps.shape[-2:]]
    between = functional.interpolate(maps, size=size, mode="bilinear", align_corners=True)
    border = (column, every - 1 - column, row, every - 1 - row)
    return functional.pad(between, border, mode="replicate")
