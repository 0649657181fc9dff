"""Drawing the pixels that a temperature is fitted on: as many from each image, at the logits' own cells.

Legend: K image channels, C classes, T samples, t samples of one chunk, N pixels, h w the network's image,
H W the image's mask.

Scores are computed at the cells of the logits, so that is where they are calibrated. A cell is compared
with the label of the pixel that the network's upsampling (corners aligned) puts exactly on it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config import IGNORE
from pipeline.uncertainty.predictor import Predictor
from pipeline.uncertainty.samplers import sample_logits


@dataclass(frozen=True)
class DrawnPixels:
    """Uncalibrated logits and labels of drawn pixels, on the CPU.

    Attributes:
        deterministic: float32 [1, N, C].
        sampled: float32 [T, N, C].
        labels: int64 [N].
    """

    deterministic: Tensor
    sampled: Tensor
    labels: Tensor


@torch.inference_mode()
def draw_pixels(
    predictor: Predictor, image: Tensor, label: Tensor, *, pixels: int, generator: np.random.Generator
) -> DrawnPixels:
    """Draw labeled pixels of one image, without replacement; all of them where there are fewer.

    Of an image larger than the tile, one window of the tile's size is drawn first.

    Args:
        predictor: with sampler `mc_dropout`.
        image: float32 [1, K, h, w], normalised.
        label: uint8 [H, W], class index or 255.
        pixels: how many.

    Raises:
        ValueError: the predictor draws no samples.
    """
    if predictor.masks is None:
        raise ValueError("Expected a predictor with sampler `mc_dropout`, but it draws no samples.")
    segmenter, full = predictor.segmenter, predictor.scoring.resolution == "full"
    origins = [
        int(generator.integers(max(0, side - predictor.scoring.tile) + 1)) for side in image.shape[-2:]
    ]
    window = image[..., origins[0] :, origins[1] :][..., : predictor.scoring.tile, : predictor.scoring.tile]
    padded = segmenter.pad(window.to(predictor.device))
    trunk = predictor.trunk(padded)
    logits = segmenter.tail(trunk).float()
    if full:
        logits = segmenter.upsample(logits)
    rows, columns = (
        _pixel_of_cell(
            cells=logits.shape[axis],
            padded=padded.shape[axis],
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
    cell_row, cell_column = np.divmod(chosen, len(columns))
    cells = torch.from_numpy(cell_row * logits.shape[-1] + cell_column).to(predictor.device)
    sampled = [
        _at(chunk[:, 0], cells) for chunk in sample_logits(segmenter, trunk, predictor.masks, upsample=full)
    ]
    return DrawnPixels(
        deterministic=_at(logits, cells),
        sampled=torch.cat(sampled),
        labels=torch.from_numpy(labels.ravel()[chosen].astype(np.int64)),
    )


def _pixel_of_cell(
    *, cells: int, padded: int, window: int, origin: int, network: int, mask: int
) -> npt.NDArray[np.intp]:
    """The mask's row (or column) on each cell that lies inside the window, from the first cell on."""
    in_window = np.rint(np.linspace(0, padded - 1, cells)).astype(np.intp)
    in_network = in_window[in_window < window] + origin
    return ((in_network + 0.5) * mask / network).astype(np.intp)


def _at(logits: Tensor, cells: Tensor) -> Tensor:
    """[t, N, C] on the CPU from logits [t, C, h', w'] and flat cell indices [N]."""
    return logits.flatten(2)[:, :, cells].transpose(1, 2).float().cpu()
