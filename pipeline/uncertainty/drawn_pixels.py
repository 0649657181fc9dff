"""Drawing the pixels that calibrators are fitted on: the same number from each image, as they are served.

Legend: K image channels, C classes, T samples, t samples of one chunk, N pixels, h w the network's image,
H W the image's mask.

Masks, evaluations, exports and maps of probabilities show pixels, each of which is interpolated from the
calibrated probabilities of four cells of the logits. A mean of neighbours is less sure than they are, so what
is calibrated at the cells is not calibrated at the pixels: the calibrators are fitted at the pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.calibration.fit import Pixels
from pipeline.config import IGNORE
from pipeline.data.large_images import Images, window
from pipeline.uncertainty.network import LEAST_LOGIT, ScoringNetwork, Taps
from pipeline.uncertainty.predictor import Predictor
from pipeline.uncertainty.tiling import TiledSide

CELLS = 4
"""Cells that a pixel is interpolated from."""


@dataclass(frozen=True)
class DrawnPixels:
    """Labeled pixels of one image, on the CPU, and the uncalibrated logits that their probabilities are made
    of: Σ_k shares_k · softmax(calibrator(logits_k)), and the mean of that over samples.

    Attributes:
        deterministic: float32 [4, C, N], of the four cells around each pixel.
        sampled: float32 [T, 4, C, N]; None with sampler `none`.
        shares: float32 [4, N], the weights of the four cells, which sum to 1.
        labels: int64 [N].
        weights: float32 [N], how much of the population each pixel represents.
    """

    deterministic: Tensor
    sampled: Tensor | None
    shares: Tensor
    labels: Tensor
    weights: Tensor


def pixels_of(drawn: Sequence[DrawnPixels], *, sampled: bool) -> Pixels:
    """The pixels of several images, for the fit of the deterministic or of the sampled calibrator.

    Raises:
        ValueError: there is no pixel, or an image has no samples.
    """
    shares = torch.cat([part.shares for part in drawn], dim=1)
    used = (shares > 0).any(dim=1)  # one cell is a pixel of its own where the logits have the image's size
    logits: list[Tensor] = []
    for part in drawn:
        found = part.sampled if sampled else part.deterministic[None]
        if found is None:
            raise ValueError("Expected pixels with samples.")
        logits.append(found[:, used].flatten(0, 1))
    shares = shares[used]
    samples = len(logits[0]) // len(shares)
    counts = torch.tensor([len(part.labels) for part in drawn])
    return Pixels(
        logits=torch.cat(logits, dim=2),
        labels=torch.cat([part.labels for part in drawn]),
        weights=torch.cat([part.weights for part in drawn]),
        images=torch.arange(len(drawn)).repeat_interleave(counts),
        shares=shares.repeat(samples, 1) / samples,
    )


@torch.inference_mode()
def draw_pixels(
    predictor: Predictor,
    image: Images,
    label: Tensor,
    *,
    pixels: int,
    generator: np.random.Generator,
    weights: npt.NDArray[np.float32] | None = None,
) -> DrawnPixels:
    """Draw labeled pixels of one image, without replacement; all of them where there are fewer.

    Of an image larger than the tile, one tile is predicted. Each pixel belongs to the tile that weighs most
    there when tiles are blended; a tile is drawn with a probability proportional to its labeled pixels, and
    pixels among these. So every labeled pixel of the image is drawn as often as any other.

    Args:
        predictor: with any sampler, at the resolution that is served.
        image: [1, K, h, w], normalised, or large.
        label: uint8 [H, W], class index or 255.
        pixels: their number.
        weights: [H, W], how much of the population each pixel represents. The drawn pixels then also
            represent those that were not drawn. By default each weighs 1, so that all images weigh the same.
    """
    network = predictor.network
    size = image.shape[-2], image.shape[-1]
    sides = predictor.tiles(*size)
    rows, columns = (
        _owned(side, places, network, axis, network_length=image.shape[axis], length=label.shape[axis])
        for axis, side, places in zip((-2, -1), sides, predictor.places(*size), strict=True)
    )
    mask = label.cpu().numpy()
    tiles = [(row, column) for row in rows for column in columns]
    counts = np.array([np.count_nonzero(mask[np.ix_(y.pixels, x.pixels)] != IGNORE) for y, x in tiles])
    share = counts / counts.sum() if counts.any() else None
    row, column = tiles[generator.choice(len(tiles), p=share)]
    tile = network.segmenter.pad_to(window(image, row.tile, column.tile), (sides[0].size, sides[1].size))
    forward = predictor.run(tile)
    owned = np.ix_(row.pixels, column.pixels)
    labels = mask[owned]
    chosen = generator.permutation(np.flatnonzero(labels != IGNORE))[:pixels]
    weighed = np.ones(len(chosen), dtype=np.float32)
    if weights is not None:
        weighed = weights[owned].ravel()[chosen] * np.float32(counts.sum() / max(1, len(chosen)))
    of_row, of_column = map(torch.from_numpy, np.divmod(chosen, len(column.pixels)))
    cells_N22 = (
        row.taps.cells[of_row][:, :, None] * forward.logits.shape[-1] + column.taps.cells[of_column][:, None]
    )
    shares_N22 = row.taps.weights[of_row][:, :, None] * column.taps.weights[of_column][:, None]
    cells_4N = cells_N22.flatten(1).T.to(predictor.device)
    sampled = None
    if predictor.sampler is not None:
        sampled = torch.cat(
            [_at(chunk[:, 0], cells_4N) for chunk in predictor.sampler.stream(network, forward)]
        )
    return DrawnPixels(
        deterministic=_at(forward.logits, cells_4N)[0],
        sampled=sampled,
        shares=shares_N22.flatten(1).T.contiguous(),
        labels=torch.from_numpy(labels.ravel()[chosen].astype(np.int64)),
        weights=torch.from_numpy(weighed),
    )


@dataclass(frozen=True)
class _Owned:
    """The pixels along one side that belong to a tile.

    Attributes:
        tile: the tile in the padded image.
        pixels: [n] rows (or columns) of the mask.
        taps: [n, 2] of these pixels; their cells are places in the tile's maps.
    """

    tile: slice
    pixels: npt.NDArray[np.intp]
    taps: Taps


def _owned(
    side: TiledSide,
    places: Tensor,
    network: ScoringNetwork,
    axis: int,
    *,
    network_length: int,
    length: int,
) -> list[_Owned]:
    """The pixels of each tile of a side, whose cells lie at `places`."""
    count = side.weights.shape[1]
    firsts = [origin // network.cell for origin in side.origins]
    weight = torch.zeros(len(firsts), firsts[-1] + count)
    for of_tile, first, values in zip(weight, firsts, side.weights, strict=True):
        of_tile[first : first + count] = values
    taps = network.taps(
        axis,
        places,
        blended=len(side.origins) > 1,
        network_length=network_length,
        length=length,
    )
    owner = weight.argmax(dim=0)[taps.cells[:, 0]]
    found: list[_Owned] = []
    for index, (origin, first) in enumerate(zip(side.origins, firsts, strict=True)):
        pixels = (owner == index).nonzero()[:, 0]
        cells = (taps.cells[pixels] - first).clamp(0, count - 1)
        found.append(
            _Owned(
                tile=slice(origin, origin + side.size),
                pixels=pixels.numpy(),
                taps=Taps(cells, taps.weights[pixels]),
            )
        )
    return found


def _at(logits: Tensor, cells_4N: Tensor) -> Tensor:
    """[t, 4, C, N] on the CPU from logits [t, C, h', w'] and flat cell indices."""
    return logits.flatten(2)[:, :, cells_4N].transpose(1, 2).float().clamp(min=LEAST_LOGIT).cpu()
