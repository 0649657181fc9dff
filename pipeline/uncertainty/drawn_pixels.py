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
from pipeline.uncertainty.predictor import Predictor


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

    Of an image larger than the tile, one window of the tile's size is drawn first.

    Args:
        predictor: with any sampler.
        image: float32 [1, K, h, w], normalised.
        label: uint8 [H, W], class index or 255.
        pixels: their number.
        weights: [H, W], how much of the population each pixel represents. The drawn pixels then also
            represent those that were not drawn. By default each weighs 1, so that all images weigh the same.
    """
    network = predictor.network
    origins = [
        int(generator.integers(max(0, side - predictor.scoring.tile) + 1)) for side in image.shape[-2:]
    ]
    window = image[..., origins[0] :, origins[1] :][..., : predictor.scoring.tile, : predictor.scoring.tile]
    forward = network.run(window.to(predictor.device))
    places = network.places(forward.image.shape[-2], forward.image.shape[-1])
    rows, columns = (
        _pixel_of_cell(
            places[axis].numpy(),
            window=window.shape[axis],
            origin=origin,
            network=image.shape[axis],
            mask=label.shape[axis],
        )
        for axis, origin in zip((-2, -1), origins, strict=True)
    )
    labels = label.cpu().numpy()[np.ix_(rows, columns)]
    labeled = np.flatnonzero(labels != IGNORE)
    chosen = generator.permutation(labeled)[:pixels]
    weighed = np.ones(len(chosen), dtype=np.float32)
    if weights is not None:
        weighed = weights[np.ix_(rows, columns)].ravel()[chosen] * np.float32(
            len(labeled) / max(1, len(chosen))
        )
    cell_row, cell_column = np.divmod(chosen, len(columns))
    cells = torch.from_numpy(cell_row * forward.logits.shape[-1] + cell_column).to(predictor.device)
    sampled = None
    if predictor.sampler is not None:
        sampled = torch.cat([_at(chunk[:, 0], cells) for chunk in predictor.sampler.stream(network, forward)])
    return DrawnPixels(
        deterministic=_at(forward.logits, cells),
        sampled=sampled,
        labels=torch.from_numpy(labels.ravel()[chosen].astype(np.int64)),
        weights=torch.from_numpy(weighed),
    )


def _pixel_of_cell(
    places: npt.NDArray[np.float64], *, window: int, origin: int, network: int, mask: int
) -> npt.NDArray[np.intp]:
    """The mask's row (or column) on each cell that lies inside the window, from the first cell on."""
    in_window = np.rint(places).astype(np.intp)
    in_network = in_window[in_window < window] + origin
    return ((in_network + 0.5) * mask / network).astype(np.intp)


def _at(logits: Tensor, cells: Tensor) -> Tensor:
    """[t, C, N] on the CPU from logits [t, C, h', w'] and flat cell indices [N]."""
    return logits.flatten(2)[:, :, cells].float().cpu()
