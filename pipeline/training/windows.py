"""Training crops of a frozen encoder as windows of its maps, which are computed once an image.

Legend: H W size of a padded image, h w crop size, N annotators.

A window begins and ends at multiples of the encoder's stride, in the image and in each of its maps alike. The
maps are those of the whole image, so the border of a crop leaves no trace in them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config import IGNORE, TrainingConfig
from pipeline.data.large_images import normalised
from pipeline.data.loading import resize_image
from pipeline.errors import ConfigError
from pipeline.model.encoder_cache import CachedEncoder, Window
from pipeline.model.segmenter import Segmenter
from pipeline.training.dataset import Crops, TrainingSet

FLIP = "HorizontalFlip"
FLIP_P = 0.5
"""The probability of a flip whose `p` is not given."""


def check_windows(
    segmenter: Segmenter, config: TrainingConfig, sizes: Iterable[tuple[int, int]], *, tile: int
) -> None:
    """Find what stands in the way of training on windows.

    Args:
        sizes: height and width of the images, as the network sees them.
        tile: the longest side of an image that is encoded whole.

    Raises:
        ConfigError: there is something.
    """
    stride, least = segmenter.stride, segmenter.minimum
    if any(side % stride or side < least for side in config.crop):
        near = [max(least, round(side / stride) * stride) for side in config.crop]
        raise ConfigError(
            f"`training.crop: [{config.crop[0]}, {config.crop[1]}]` cannot be a window of the encoder's "
            f"maps: its sides must be multiples of {stride}, and at least {least}.",
            f"Write `crop: [{near[0]}, {near[1]}]`, or `model.cache_features: never`.",
        )
    for transform in config.transforms:
        if transform.name != FLIP or transform.model_dump().keys() - {"name", "p"}:
            raise ConfigError(
                f"`training.transforms` names `{transform.name}`, and with `model.cache_features` the "
                f"encoder sees each image as it is or mirrored: only `{FLIP}` with its `p` is possible.",
                "Remove it, or set `model.cache_features: never`.",
            )
    if config.mix != "none":
        raise ConfigError(
            f"`training.mix: {config.mix}` mixes images, and with `model.cache_features` the encoder sees "
            "each alone.",
            "Remove it, or set `model.cache_features: never`.",
        )
    largest = max((max(size) for size in sizes), default=0)
    if largest > tile:
        raise ConfigError(
            f"An image of {largest} pixels is larger than `scoring.tile: {tile}`: its maps are not "
            "computed whole.",
            "Raise `scoring.tile`, lower `model.input_scale`, or set `model.cache_features: never`.",
        )


class WindowSet(TrainingSet):
    """As `TrainingSet`, with windows of the encoder's maps instead of pixels.

    Args:
        cache: of the encoder; `check_windows` has passed.
    """

    def __init__(self, *args: Any, cache: CachedEncoder, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._encoder = cache
        self._flips = [float(item.model_dump().get("p", FLIP_P)) for item in self._config.transforms]
        self._names: dict[tuple[int, bool], str] = {}

    def encoded(self, batch: Crops) -> list[Tensor]:
        return self._encoder.windows(batch.windows, self._image)

    def _sample(self, which: int, rng: np.random.Generator, unreadable: tuple[tuple[str, str], ...]) -> Crops:
        flipped = sum(rng.random() < p for p in self._flips) % 2 == 1
        masks = self._masks_of(which)
        size = self._size(masks.shape[1:])
        masks = np.pad(
            masks[:, :, ::-1] if flipped else masks,
            [(0, 0), *((0, whole - side) for whole, side in zip(size, masks.shape[1:], strict=True))],
            constant_values=IGNORE,
        )
        rows, columns = (
            self._aligned(place, side, whole)
            for place, side, whole in zip(self._corner(masks, rng), self._config.crop, size, strict=True)
        )
        return Crops(
            image=torch.empty(0, 0, 0),
            label=self._label(np.ascontiguousarray(masks[:, rows, columns])),
            unreadable=unreadable,
            windows=(Window(self._name(which, flipped), size, rows, columns, (which, flipped)),),
        )

    def _aligned(self, place: int, side: int, whole: int) -> slice:
        """The window whose first pixel is nearest to `place`, inside the image."""
        stride = self._encoder.segmenter.stride
        start = min(round(place / stride), (whole - side) // stride) * stride
        return slice(start, start + side)

    def _size(self, size: tuple[int, ...]) -> tuple[int, int]:
        """Height and width that an image is padded to: as in scoring, but no smaller than a crop."""
        padded = self._encoder.segmenter.padded_size(*size)
        height, width = (max(sides) for sides in zip(padded, self._config.crop, strict=True))
        return height, width

    def _name(self, which: int, flipped: bool) -> str:
        """The entry of an image's maps; its pixels are read for that once."""
        if (which, flipped) not in self._names:
            pixels = self._pixels(which)
            for view in (False, True):
                self._names[which, view] = self._encoder.name(self._prepared(pixels, view)[0])
        return self._names[which, flipped]

    def _image(self, window: Window) -> Tensor:
        """The padded image [1, K, H, W] of a window."""
        which, flipped = window.source
        return self._prepared(self._pixels(which), flipped)

    def _pixels(self, which: int) -> npt.NDArray:
        return resize_image(self._decoded(self._images[which]), self._input_scale)

    def _prepared(self, pixels: npt.NDArray, flipped: bool) -> Tensor:
        """The image as the encoder sees it, to the last bit as in scoring."""
        view = np.ascontiguousarray(pixels[:, ::-1]) if flipped else pixels
        image = torch.from_numpy(normalised(view[None], self._mean, self._std)).permute(0, 3, 1, 2)
        return self._encoder.segmenter.pad_to(image, self._size(pixels.shape[:2]))
