"""Training samples that can be drawn again: sample n depends on the seed and on n, and on nothing before it.

Legend: H W image size as the network sees it, h w crop size, K channels, N annotators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.config import IGNORE, TrainingConfig
from pipeline.data.images import ImageArray, read_image, read_window, unit_float
from pipeline.data.labels import compose_labels, compose_votes, majority, resize_mask
from pipeline.data.large_images import LARGE
from pipeline.data.loading import network_size, resize_image
from pipeline.data.remote import ImageFile
from pipeline.data.transforms import Transforms
from pipeline.errors import DataError
from pipeline.format import none_can
from pipeline.model.encoder_cache import Window
from pipeline.regions.outlines import paint_regions

CACHE_BYTES = 512 * 2**20
"""Decoded images and masks that stay in memory, over all loader workers."""


@dataclass(frozen=True)
class LabeledImage:
    """An image to train on and its stored masks, oldest first.

    `annotators` says who painted each mask; only `training.annotators` other than `latest` asks. `held_out`
    are regions, a box and an outline each, whose labels are not trained on.
    """

    path: ImageFile
    width: int
    height: int
    masks: tuple[Path, ...]
    annotators: tuple[str | None, ...] = ()
    held_out: tuple[tuple[tuple[int, int, int, int], str | None], ...] = ()


@dataclass(frozen=True)
class Crops:
    """A crop, or the crops of a batch.

    Attributes:
        image: float32 [K, h, w], normalised; of a batch [B, K, h, w].
        label: int64 [h, w] or [B, h, w], 255 where nothing is known; with `training.annotators: soft` uint8
            [N, h, w] or [B, N, h, w], the mask of each annotator.
        unreadable: images that were due and could not be read, with the reason.
        windows: what the encoder's maps of the crops are read from; `image` is then empty.
    """

    image: Tensor
    label: Tensor
    unreadable: tuple[tuple[str, str], ...] = ()
    windows: tuple[Window, ...] = ()


class TrainingSet(Dataset[Crops]):
    """Random crops of labeled images. Every image comes once an epoch, in an order of its own each epoch.

    Args:
        images: at least one.
        config: crop, transforms and seed.
        channels: K.
        mean, std: a value a channel.
        input_scale: factor between image and network pixels.
        max_pixels: a larger image is not decoded.

    Raises:
        ConfigError: the transforms do not exist, or do not fit the crop.
    """

    def __init__(
        self,
        images: Sequence[LabeledImage],
        *,
        config: TrainingConfig,
        channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        input_scale: float,
        max_pixels: int,
    ) -> None:
        self._images = list(images)
        self._config = config
        self._seed = config.seed % 2**32
        self._channels = channels
        self._mean = np.asarray(mean, dtype=np.float32)
        self._std = np.asarray(std, dtype=np.float32)
        self._input_scale = input_scale
        self._max_pixels = max_pixels
        self._shape = (*config.crop, channels)
        self._transforms = {np.uint8: Transforms(config.transforms, shape=self._shape, dtype=np.uint8)}
        self._kept_images: dict[int, npt.NDArray] = {}
        self._kept_masks: dict[int, npt.NDArray[np.uint8]] = {}
        self._room = CACHE_BYTES // max(1, config.workers)

    def __getitem__(self, index: int) -> Crops:
        """Sample `index`, from 0 on without end.

        Raises:
            DataError: not one of the images can be read.
        """
        rng = np.random.default_rng([self._seed, 1, index])
        unreadable: list[tuple[str, str]] = []
        count = len(self._images)
        for place in range(index, index + count):
            order = _order(count, self._seed, place // count)
            which = int(order[place % count])
            try:
                return self._sample(which, rng, tuple(unreadable))
            except DataError as error:
                unreadable.append((str(self._images[which].path), str(error)))
        raise DataError(
            f"{none_can(count, 'labeled image', 'be read')}. The first: {unreadable[0][1]}",
            "Put the files back, or import labels for others.",
        )

    def encoded(self, batch: Crops) -> list[Tensor] | None:
        """The encoder's maps of a batch; None where the encoder has to run."""
        return None

    def _sample(self, which: int, rng: np.random.Generator, unreadable: tuple[tuple[str, str], ...]) -> Crops:
        """A crop of one image.

        Raises:
            DataError: it cannot be read.
        """
        masks = self._masks_of(which)
        top, left = self._corner(masks, rng)
        image = self._crop(which, top, left)
        masks = np.stack([_cut(mask, top, left, self._config.crop, fill=IGNORE) for mask in masks])
        transforms = self._transforms_for(image.dtype)
        image, masks = transforms(image, masks, seed=int(rng.integers(2**31)))
        pixels = unit_float(image) if image.dtype != np.float32 else image
        normalised = (pixels - self._mean) / self._std
        return Crops(
            image=torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1), dtype=np.float32)),
            label=self._label(masks),
            unreadable=unreadable,
        )

    def _label(self, masks: npt.NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(masks if self._config.annotators == "soft" else masks[0].astype(np.int64))

    def _corner(self, masks: npt.NDArray[np.uint8], rng: np.random.Generator) -> tuple[int, int]:
        """Top and left of a crop: around a labeled pixel, or anywhere; inside the image where it fits."""
        size = masks.shape[1:]
        labeled = np.flatnonzero((masks != IGNORE).any(axis=0)) if self._config.centre_on_labels else ()
        if len(labeled):
            centre = divmod(int(labeled[rng.integers(len(labeled))]), size[1])
            corner = [place - side // 2 for place, side in zip(centre, self._config.crop, strict=True)]
        else:
            corner = [
                int(rng.integers(max(0, length - side) + 1))
                for length, side in zip(size, self._config.crop, strict=True)
            ]
        top, left = (
            min(max(place, 0), max(0, length - side))
            for place, length, side in zip(corner, size, self._config.crop, strict=True)
        )
        return top, left

    def _transforms_for(self, dtype: np.dtype) -> Transforms:
        if dtype.type not in self._transforms:
            self._transforms[dtype.type] = Transforms(self._config.transforms, shape=self._shape, dtype=dtype)
        return self._transforms[dtype.type]

    def _crop(self, which: int, top: int, left: int) -> npt.NDArray:
        """A crop [h, w, K] of an image, uint8 or (from 16 bits) float32 in 0 to 1."""
        image = self._kept_images.get(which)
        if image is None:
            image = self._window(self._images[which], top, left)
            if image is not None:
                return _cut(image, 0, 0, self._config.crop, fill=0)
            image = self._keep(
                self._kept_images, which, _scaled(self._decoded(self._images[which]), self._input_scale)
            )
        return _cut(image, top, left, self._config.crop, fill=0)

    def _window(self, item: LabeledImage, top: int, left: int) -> npt.NDArray | None:
        """A crop of a large image whose file can be read in parts; None for any other."""
        if item.width * item.height < LARGE or self._input_scale != 1:
            return None
        pixels = read_window(
            item.path,
            channels=self._channels,
            size=(item.width, item.height),
            rows=slice(top, min(top + self._config.crop[0], item.height)),
            columns=slice(left, min(left + self._config.crop[1], item.width)),
        )
        return None if pixels is None else _scaled(pixels, self._input_scale)

    def _masks_of(self, which: int) -> npt.NDArray[np.uint8]:
        """The masks [N, H, W] of an image at the network's size; only for soft labels more than one."""
        if which in self._kept_masks:
            return self._kept_masks[which]
        item = self._images[which]
        size = network_size(item.height, item.width, self._input_scale)
        masks = [resize_mask(mask, size) for mask in read_masks(item, self._config.annotators)]
        return self._keep(self._kept_masks, which, np.stack(masks))

    def _keep(self, kept: dict[int, npt.NDArray], which: int, array: npt.NDArray) -> npt.NDArray:
        """The array, which stays in memory where there is room."""
        if array.nbytes <= self._room:
            self._room -= array.nbytes
            kept[which] = array
        return array

    def _decoded(self, item: LabeledImage) -> ImageArray:
        """The pixels of an image at its own size."""
        return read_image(
            item.path,
            channels=self._channels,
            max_pixels=self._max_pixels,
            size=(item.width, item.height),
        )


def read_masks(
    image: LabeledImage, annotators: Literal["latest", "majority", "soft"]
) -> npt.NDArray[np.uint8]:
    """What an image's labels say, uint8 [N, H, W]: all that it takes for `soft`, else one mask.

    Raises:
        DataError: a mask is missing, damaged, or of another size than the image.
    """
    size = image.width, image.height
    if annotators == "latest":
        masks = compose_labels(image.masks, size)[None]
    else:
        votes = compose_votes(image.masks, image.annotators, size)
        masks = votes if annotators == "soft" else majority(votes)[None]
    if image.held_out:
        boxes, outlines = zip(*image.held_out, strict=True)
        held_out = np.zeros(masks.shape[1:], dtype=bool)
        paint_regions(held_out, np.array(boxes), outlines)
        masks[:, held_out] = IGNORE
    return masks


def _scaled(pixels: ImageArray, input_scale: float) -> npt.NDArray:
    """At the network's size. 8-bit images stay so, because many transforms take nothing else."""
    scaled = resize_image(pixels, input_scale)
    return scaled if scaled.dtype == np.uint8 else unit_float(scaled)


def _cut(array: npt.NDArray, top: int, left: int, size: tuple[int, int], *, fill: int) -> npt.NDArray:
    """A copy of a window; what lies outside below and to the right is filled."""
    part = array[top : top + size[0], left : left + size[1]]
    if part.shape[:2] == size:
        return part.copy()
    filled = np.full((*size, *array.shape[2:]), fill, dtype=array.dtype)
    filled[: part.shape[0], : part.shape[1]] = part
    return filled


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, 0, epoch]).permutation(count)
