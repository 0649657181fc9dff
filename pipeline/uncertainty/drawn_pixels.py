"""Drawing the pixels that calibrators are fitted on: the same number from each image, at the logits' cells.

Legend: K image channels, C classes, T samples, t samples of one chunk, N pixels, h w the network's image,
H W the image's mask.

Scores are computed at the cells of the logits, so they are calibrated at these cells. Each cell is compared
with the label of the pixel at its position.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config import IGNORE
from pipeline.uncertainty.network import ScoringNetwork
from pipeline.uncertainty.predictor import Predictor
from pipeline.uncertainty.tiling import TiledSide


@dataclass(frozen=True)
class DrawnPixels:
    """Uncalibrated logits and labels of drawn pixels, on the CPU.

    Attributes:
        deterministic: float32 [1, C, N].
        sampled: float32 [T, C, N]; None with sampler `none`.
        labels: int64 [N].
        weights: float32 [N], how much of the population each pixel represents.
    """

    deterministic: Tensor
    sampled: Tensor | None
    labels: Tensor
    weights: Tensor


@torch.inference_mode()
def draw_pixels(
    predictor: Predictor,
    image: Tensor,
    label: Tensor,
    *,
    pixels: int,
    generator: np.random.Generator,
    weights: npt.NDArray[np.float32] | None = None,
) -> DrawnPixels:
    """Draw labeled pixels of one image, without replacement; all of them where there are fewer.

    Of an image larger than the tile, one tile is predicted. Each cell belongs to the tile that weighs most
    there when tiles are blended; a tile is drawn with a probability proportional to its labeled cells, and
    pixels among these. So every labeled cell of the image is drawn as often as any other.

    Args:
        predictor: with any sampler.
        image: float32 [1, K, h, w], normalised.
        label: uint8 [H, W], class index or 255.
        pixels: their number.
        weights: [H, W], how much of the population each pixel represents. The drawn pixels then also
            represent those that were not drawn. By default each weighs 1, so that all images weigh the same.
    """
    network = predictor.network
    rows, columns = (
        _owned_cells(side, network, axis, length=image.shape[axis], mask=label.shape[axis])
        for axis, side in zip((-2, -1), predictor.tiles(image.shape[-2], image.shape[-1]), strict=True)
    )
    mask = label.cpu().numpy()
    tiles = [(row, column) for row in rows for column in columns]
    counts = np.array([np.count_nonzero(mask[np.ix_(y.pixels, x.pixels)] != IGNORE) for y, x in tiles])
    share = counts / counts.sum() if counts.any() else None
    row, column = tiles[generator.choice(len(tiles), p=share)]
    tile = network.segmenter.pad(image)[..., row.tile, column.tile]
    forward = network.run(tile.to(predictor.device))
    owned = np.ix_(row.pixels, column.pixels)
    labels = mask[owned]
    chosen = generator.permutation(np.flatnonzero(labels != IGNORE))[:pixels]
    weighed = np.ones(len(chosen), dtype=np.float32)
    if weights is not None:
        weighed = weights[owned].ravel()[chosen] * np.float32(counts.sum() / max(1, len(chosen)))
    of_row, of_column = np.divmod(chosen, len(column.pixels))
    cells = torch.from_numpy(row.cells[of_row] * forward.logits.shape[-1] + column.cells[of_column])
    cells = cells.to(predictor.device)
    sampled = None
    if predictor.sampler is not None:
        sampled = torch.cat([_at(chunk[:, 0], cells) for chunk in predictor.sampler.stream(network, forward)])
    return DrawnPixels(
        deterministic=_at(forward.logits, cells),
        sampled=sampled,
        labels=torch.from_numpy(labels.ravel()[chosen].astype(np.int64)),
        weights=torch.from_numpy(weighed),
    )


@dataclass(frozen=True)
class _OwnedCells:
    """The cells along one side that belong to a tile.

    Attributes:
        tile: the tile in the padded image.
        cells: [n] their places in the tile's maps.
        pixels: [n] the mask's row (or column) on each of them.
    """

    tile: slice
    cells: npt.NDArray[np.intp]
    pixels: npt.NDArray[np.intp]


def _owned_cells(
    side: TiledSide, network: ScoringNetwork, axis: int, *, length: int, mask: int
) -> list[_OwnedCells]:
    """The cells of each tile of a side, of `length` pixels without padding."""
    count = side.weights.shape[1]
    size = count * network.cell
    places = network.places(size, size)[axis].numpy()
    firsts = [origin // network.cell for origin in side.origins]
    weight = np.zeros((len(firsts), firsts[-1] + count), dtype=np.float32)
    for of_tile, first, values in zip(weight, firsts, side.weights.numpy(), strict=True):
        of_tile[first : first + count] = values
    owner = weight.argmax(axis=0)
    found: list[_OwnedCells] = []
    for index, (origin, first) in enumerate(zip(side.origins, firsts, strict=True)):
        position = np.rint(places).astype(np.intp) + origin
        cells = np.flatnonzero((owner[first : first + count] == index) & (position < length))
        pixels = ((position[cells] + 0.5) * mask / length).astype(np.intp)
        found.append(_OwnedCells(slice(origin, origin + size), cells, pixels))
    return found


def _at(logits: Tensor, cells: Tensor) -> Tensor:
    """[t, C, N] on the CPU from logits [t, C, h', w'] and flat cell indices [N]."""
    return logits.flatten(2)[:, :, cells].float().cpu()
