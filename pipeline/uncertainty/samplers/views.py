"""Test-time augmentation: the same network on flipped, scaled and darkened or brightened views.

Legend: B batch, K image channels, C classes, H W size of the padded image, h w size of the maps.

Each view's logits are mapped to the positions of the plain view's cells before they are summed: flips
exactly, other sizes by linear interpolation between all cells that the network has: between every fourth one
it would smooth the view, and the samples would differ by the smoothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.config import ViewsConfig
from pipeline.model.segmenter import ALL_CELLS
from pipeline.uncertainty.network import Pass, Places, ScoringNetwork, resample, same_places
from pipeline.uncertainty.samplers.base import Sampler


@dataclass(frozen=True)
class Normalisation:
    """The values that are subtracted from each channel of pixels in 0 to 1, and the divisors after that."""

    mean: Sequence[float]
    std: Sequence[float]

    def tensors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [K, 1, 1]."""
        mean, std = (torch.tensor(values).to(like)[:, None, None] for values in (self.mean, self.std))
        return mean, std

    def pixels(self, image: Tensor) -> Tensor:
        """The pixels in 0 to 1 of a normalised image [B, K, H, W]."""
        mean, std = self.tensors(image)
        return image * std + mean

    def normalise(self, pixels: Tensor) -> Tensor:
        """The normalised image of pixels in 0 to 1 [B, K, H, W]."""
        mean, std = self.tensors(pixels)
        return (pixels - mean) / std


class TestTimeAugmentation(Sampler):
    """The plain view, a mirrored one, one of each scale, and one of each gamma (Wang et al. 2019).

    Args:
        views: the configured flips, scales and gammas.
        normalisation: of the images.
    """

    __test__ = False  # pytest: not a test

    def __init__(self, views: ViewsConfig, normalisation: Normalisation) -> None:
        self.views = views
        self.normalisation = normalisation
        self.samples = 1 + views.flip + len(views.scales) + len(views.gamma)

    def stream(self, network: ScoringNetwork, forward: Pass) -> Iterator[Tensor]:
        yield forward.logits[None]
        if self.views.flip:
            mirrored = network.run(forward.image.flip(-1), lattice=network.mirrored)
            yield mirrored.logits.flip(-1)[None]
        for scale in self.views.scales:
            yield resized_logits(network, forward.image, scale, target=network)[None]
        for gamma in self.views.gamma:
            pixels = self.normalisation.pixels(forward.image).clamp_(0, 1).pow_(gamma)
            yield network.run(self.normalisation.normalise(pixels)).logits[None]


def resized_logits(network: ScoringNetwork, image: Tensor, scale: float, *, target: ScoringNetwork) -> Tensor:
    """A network's logits [B, C, h, w] of a resized image, at the cells of `target` on the original image.

    Args:
        image: [B, K, H, W], padded for `target`.
        scale: factor on its height and width.
    """
    height, width = image.shape[-2:]
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    cells = target.places(height, width)
    view = image
    if size != (height, width):
        # Antialiased where the image shrinks, as when images are read
        view = functional.interpolate(
            image, size=size, mode="bilinear", align_corners=False, antialias=scale < 1
        )
    elif same_places(network.places(*network.segmenter.padded_size(height, width)), cells):
        return network.run(view).logits
    forward = network.run(view, lattice=ALL_CELLS)
    rows, columns = network.places(*forward.image.shape[-2:], lattice=ALL_CELLS)
    places: Places = (
        (rows + 0.5) * (height / size[0]) - 0.5,
        (columns + 0.5) * (width / size[1]) - 0.5,
    )
    return resample(forward.logits, places, cells)
