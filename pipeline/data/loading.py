"""From files to batches, ahead of the device: decoded in threads, equal shapes together, bounded memory.

Legend: B batch, K image channels, H W image size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.data.image_info import ImageRef
from pipeline.data.images import ImageArray, read_image
from pipeline.data.large_images import LARGE, Images, LargeImages, normalised, window
from pipeline.data.remote import ImageFile
from pipeline.errors import DataError

PIXELS_AHEAD = 64_000_000
"""Decoded pixels that may wait for the device, whatever the number of images."""

Item = TypeVar("Item")
Result = TypeVar("Result")
Derived = TypeVar("Derived")
Number = TypeVar("Number", np.uint8, np.uint16, np.float32, np.uint8 | np.uint16 | np.float32)


@dataclass(frozen=True)
class Batch(Generic[Derived]):
    """Images of one size.

    Attributes:
        ids: of the images.
        sizes: (height, width) of each image; all equal.
        images: resized; float32 [B, K, H, W], normalised, channels last in memory, or `LARGE` ones.
        derived: what `derive` returned for each image; empty without it.
    """

    ids: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    images: Images
    derived: tuple[Derived, ...] = ()

    @property
    def image_BKHW(self) -> Tensor:
        """All pixels, float32, normalised and resized, channels last in memory."""
        return window(self.images)

    @property
    def network_size(self) -> tuple[int, int]:
        """Height and width that the network sees."""
        return self.images.shape[-2], self.images.shape[-1]


@dataclass(frozen=True)
class Unreadable:
    """An image that could not be read, and why."""

    id: int
    path: ImageFile
    reason: str


@dataclass(frozen=True)
class _Decoded(Generic[Derived]):
    ref: ImageRef
    pixels: ImageArray
    derived: tuple[Derived, ...]


def load_batches(
    images: Iterable[ImageRef],
    *,
    channels: int,
    max_pixels: int,
    input_scale: float,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
    workers: int,
    pin_memory: bool = False,
    max_batch_pixels: int | None = None,
    derive: Callable[[ImageRef, ImageArray], Derived] | None = None,
) -> Generator[Batch[Derived] | Unreadable]:
    """Read images as they are asked for, a little ahead, and batch those of one size.

    The order is that of `images`, except that an image may wait for others of its size, but never for more
    than eight batches, nor beyond its shard. A file that cannot be used comes out as `Unreadable`, and the
    rest goes on.

    Args:
        images: consumed as far as needed, in this thread.
        channels: that the model sees.
        max_pixels: a larger image is not decoded.
        input_scale: factor between image and network pixels.
        mean, std: a value a channel, of pixels in 0 to 1.
        batch_size: at most so many images together.
        workers: decoding threads; 0 decodes in this one.
        pin_memory: for a fast copy to a CUDA device.
        max_batch_pixels: at most so many pixels together, but at least one image.
        derive: computes something from each decoded image at its own size, such as its regions, in the
            decoding threads; an image for which it raises a DataError comes out as `Unreadable`.
    """
    read = partial(_read, channels=channels, max_pixels=max_pixels, input_scale=input_scale, derive=derive)
    collate = partial(
        _collate,
        mean=np.asarray(mean, dtype=np.float32),
        std=np.asarray(std, dtype=np.float32),
        pin_memory=pin_memory,
    )
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode") if workers else None
    try:
        decoded = _ahead(pool, read, images, depth=batch_size + workers, cost=_pixels)
        groups = _group(decoded, batch_size=batch_size, max_batch_pixels=max_batch_pixels)
        yield from _ahead(pool, collate, groups, depth=1)
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def network_size(height: int, width: int, input_scale: float) -> tuple[int, int]:
    """Height and width that the network sees, at least 1.

    >>> network_size(720, 960, 0.5), network_size(1, 1, 0.25)
    ((360, 480), (1, 1))
    """
    return max(1, round(height * input_scale)), max(1, round(width * input_scale))


def resize_image(image: npt.NDArray[Number], input_scale: float) -> npt.NDArray[Number]:
    """An image [H, W, K] at the network's size, of the same type: averaged when smaller, else bilinear."""
    height, width = network_size(image.shape[0], image.shape[1], input_scale)
    if (height, width) == image.shape[:2]:
        return image
    method = cv2.INTER_AREA if input_scale < 1 else cv2.INTER_LINEAR
    parts = [  # OpenCV averages areas of at most four channels
        cv2.resize(np.ascontiguousarray(part), (width, height), interpolation=method).reshape(
            height, width, -1
        )
        for part in np.split(image, range(4, image.shape[2], 4), axis=2)
    ]
    return np.concatenate(parts, axis=2).astype(image.dtype, copy=False)


def _pixels(ref: ImageRef) -> int:
    return ref.width * ref.height


def _read(
    ref: ImageRef,
    *,
    channels: int,
    max_pixels: int,
    input_scale: float,
    derive: Callable[[ImageRef, ImageArray], Derived] | None,
) -> _Decoded[Derived] | Unreadable:
    size = ref.width, ref.height
    try:
        pixels = read_image(ref.path, channels=channels, max_pixels=max_pixels, size=size)
        derived = () if derive is None else (derive(ref, pixels),)
    except DataError as error:
        return Unreadable(id=ref.id, path=ref.path, reason=str(error))
    return _Decoded(ref=ref, pixels=resize_image(pixels, input_scale), derived=derived)


def _group(
    decoded: Iterable[_Decoded[Derived] | Unreadable], *, batch_size: int, max_batch_pixels: int | None
) -> Generator[list[_Decoded[Derived]] | Unreadable]:
    """Lists of one size and type, of one shard. A list goes out unfilled when its first image has waited long
    enough, and at the end of its shard."""
    waiting: dict[tuple[object, ...], list[_Decoded[Derived]]] = {}
    since: dict[tuple[object, ...], int] = {}
    held = 0
    shard: int | None = None
    for count, item in enumerate(decoded):
        if isinstance(item, Unreadable):
            yield item
            continue
        if item.ref.shard != shard:
            yield from waiting.values()
            waiting, since, held, shard = {}, {}, 0, item.ref.shard
        key = (item.ref.height, item.ref.width, item.pixels.dtype)
        members = waiting.setdefault(key, [])
        since.setdefault(key, count)
        members.append(item)
        pixels = item.pixels.shape[0] * item.pixels.shape[1]
        held += _pixels(item.ref)
        room = batch_size if max_batch_pixels is None else min(batch_size, max(1, max_batch_pixels // pixels))
        full = [key] if len(members) >= room else []
        oldest = next(iter(waiting))
        if not full and (count - since[oldest] >= 8 * batch_size or held > PIXELS_AHEAD):
            full = [oldest]
        for ready in full:
            del since[ready]
            group = waiting.pop(ready)
            held -= sum(_pixels(member.ref) for member in group)
            yield group
    yield from waiting.values()


def _collate(
    group: list[_Decoded[Derived]] | Unreadable,
    *,
    mean: npt.NDArray[np.float32],
    std: npt.NDArray[np.float32],
    pin_memory: bool,
) -> Batch[Derived] | Unreadable:
    if isinstance(group, Unreadable):
        return group
    first = group[0].pixels
    pixels = first[None] if len(group) == 1 else np.stack([item.pixels for item in group])
    images: Images = LargeImages(pixels, mean, std)
    if first.shape[0] * first.shape[1] < LARGE:
        image = torch.from_numpy(normalised(pixels, mean, std)).permute(0, 3, 1, 2)
        images = image.pin_memory() if pin_memory else image
    return Batch(
        ids=tuple(item.ref.id for item in group),
        sizes=tuple((item.ref.height, item.ref.width) for item in group),
        images=images,
        derived=tuple(derived for item in group for derived in item.derived),
    )


def _ahead(
    pool: Executor | None,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    depth: int,
    cost: Callable[[Item], int] = lambda _: 0,
) -> Generator[Result]:
    """`map` in order, with up to `depth` calls, or `PIXELS_AHEAD` of cost, under way."""
    if pool is None:
        yield from map(function, items)
        return
    pending: deque[tuple[Future[Result], int]] = deque()
    spent = 0
    for item in items:
        pending.append((pool.submit(function, item), cost(item)))
        spent += pending[-1][1]
        while len(pending) > depth or (spent > PIXELS_AHEAD and len(pending) > 1):
            future, price = pending.popleft()
            spent -= price
            yield future.result()
    while pending:
        yield pending.popleft()[0].result()
