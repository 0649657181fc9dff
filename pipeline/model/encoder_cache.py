"""The maps of a frozen encoder, computed once an image and kept in files.

Legend: B batch, K image channels, H W size of padded images, C channels of a map, h w its size.

The name of an entry is a hash of all that its content depends on: the encoder's layers and weights, the maps
that are kept, the device's precision, and the padded, normalised image itself. So another input scale or
normalisation, a mirrored view, or a changed file is another entry, and none is ever out of date.

Maps pass through float16 whether they were read or just computed: no result depends on what the folder held.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.data.bounded_folder import BoundedFolder
from pipeline.errors import ConfigError, UserError
from pipeline.model.device import half_precision
from pipeline.model.segmenter import Segmenter

FORMAT = 1
"""Of the files: the maps that are read, [h, w, C] each, float16, and the CRC-32 of all of them."""
CHECKSUM_BYTES = 4
MOST_CHECKED = 100_000
"""Names of entries whose checksum is known to be right, in memory."""

Values = npt.NDArray[np.float16]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MapLayout:
    """One of the encoder's maps.

    Attributes:
        channels: C.
        stride: image pixels a cell, along one side.
        read: the decoder or a head looks at its values; else at its size at most.
    """

    channels: int
    stride: int
    read: bool


@dataclass(frozen=True)
class Window:
    """A part of an image, as the encoder's maps show it.

    Attributes:
        name: of the entry that holds the image's maps.
        size: height and width of the padded image.
        rows, columns: of the padded image; multiples of the network's stride.
        source: what the image can be read from again.
    """

    name: str
    size: tuple[int, int]
    rows: slice
    columns: slice
    source: tuple[int, bool]


@torch.no_grad()
def map_layouts(segmenter: Segmenter) -> tuple[MapLayout, ...]:
    """The encoder's maps, and which of them are read: a map is, if values that are not numbers reach the
    logits from it.

    Raises:
        ConfigError: the encoder gives something else than maps whose cells divide the image.
    """
    training = segmenter.training
    segmenter.eval()
    side = segmenter.minimum
    try:
        parameter = next(segmenter.parameters())
        encoded = segmenter.encode(torch.zeros(1, segmenter.channels, side, side, device=parameter.device))
        if not _are_maps(encoded, side):
            raise ConfigError(
                "This encoder gives more than maps of the image, which `model.cache_features` cannot keep.",
                "Set `model.cache_features: never`.",
            )
        return tuple(
            MapLayout(
                channels=one.shape[1],
                stride=side // one.shape[-1],
                read=_reaches_logits(segmenter, encoded, index, side),
            )
            for index, one in enumerate(encoded)
        )
    finally:
        segmenter.train(training)


class CachedEncoder:
    """A frozen encoder that looks its maps up before it computes them.

    Args:
        segmenter: on `device`, with its final encoder weights, which must not change any more.
        layouts: of its maps.
        files: where entries are kept. Where that is not possible, maps are computed each time.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        layouts: Sequence[MapLayout],
        files: BoundedFolder,
        *,
        device: torch.device,
    ) -> None:
        self.segmenter = segmenter
        self.layouts = layouts
        self.device = device
        self.computed = 0
        self._files = files
        self._identity = _identity(segmenter, layouts, device)
        self._checked: set[str] = set()
        self._writes = True

    def maps(self, image: Tensor) -> list[Tensor]:
        """What the encoder gives for images [B, K, H, W], padded here where they need it: float32 maps on the
        device.

        Raises:
            UserError: a map holds values that float16 does not.
        """
        padded = self.segmenter.pad(image).cpu()
        size = padded.shape[-2], padded.shape[-1]
        names = [self.name(one) for one in padded]
        known = {
            row: found for row, name in enumerate(names) if (found := self._read(name, size)) is not None
        }
        missing = [row for row in range(len(names)) if row not in known]
        if missing:
            for row, values in zip(missing, self._encode(padded[missing]), strict=True):
                self._write(names[row], values)
                known[row] = values
        return self._assembled([self._split(known[row], size) for row in range(len(names))], size)

    def windows(self, windows: Sequence[Window], image: Callable[[Window], Tensor]) -> list[Tensor]:
        """The maps of windows of one size, float32 on the device.

        Args:
            image: the padded image [1, K, H, W] of a window, for maps that are not kept.

        Raises:
            UserError: a map holds values that float16 does not.
        """
        parts: list[list[Values]] = []
        for window in windows:
            values = self._read(window.name, window.size)
            if values is None:
                (values,) = self._encode(image(window))
                self._write(window.name, values)
            whole = iter(self._split(values, window.size))
            parts.append(
                [
                    next(whole)[_cells(window.rows, layout.stride), _cells(window.columns, layout.stride)]
                    for layout in self.layouts
                    if layout.read
                ]
            )
        first = windows[0]
        size = first.rows.stop - first.rows.start, first.columns.stop - first.columns.start
        return self._assembled(parts, size)

    def name(self, image: Tensor) -> str:
        """The entry of a padded, normalised image [K, H, W] on the CPU."""
        digest = hashlib.sha256(f"{self._identity} {tuple(image.shape)}".encode())
        digest.update(image.permute(1, 2, 0).contiguous().numpy().data)
        return digest.hexdigest()

    def _encode(self, padded: Tensor) -> list[Values]:
        """The values of an entry for each image; one at a time on the CPU, so that its last bit does not
        depend on the other images of a batch."""
        found: list[Values] = []
        for part in padded.split(1 if self.device.type == "cpu" else len(padded)):
            moved = part.to(self.device).contiguous(memory_format=torch.channels_last)
            with (
                torch.no_grad(),
                torch.autocast(self.device.type, dtype=half_precision(), enabled=self.device.type == "cuda"),
            ):
                encoded = self.segmenter.encode(moved)
            read = [one for one, layout in zip(encoded, self.layouts, strict=True) if layout.read]
            flat = torch.cat([one.permute(0, 2, 3, 1).flatten(1).half() for one in read], dim=1).cpu()
            if not flat.isfinite().all():
                raise UserError(
                    "The encoder's maps of an image hold values that are too large for float16.",
                    "Set `model.cache_features: never`.",
                )
            found += list(flat.numpy())
        self.computed += len(found)
        return found

    def _read(self, name: str, size: tuple[int, int]) -> Values | None:
        """An entry, mapped into memory; None where it is missing or damaged."""
        stream = self._files.open(name)
        if stream is None:
            return None
        count = sum(h * w * c for h, w, c in self._shapes(size))
        with stream:
            if os.fstat(stream.fileno()).st_size == 2 * count + CHECKSUM_BYTES:
                values: Values = np.memmap(stream, dtype=np.float16, mode="r", shape=(count,))
                if name in self._checked:
                    return values
                stream.seek(2 * count)
                if stream.read() == _checksum(values):
                    if len(self._checked) < MOST_CHECKED:
                        self._checked.add(name)
                    return values
        self._files.forget(name)
        return None

    def _write(self, name: str, values: Values) -> None:
        """Keep an entry. What cannot be kept is computed again."""
        if not self._writes or values.nbytes > self._files.limit:
            return

        def fill(path: str) -> None:
            with open(path, "wb") as stream:
                stream.write(values.tobytes() + _checksum(values))

        try:
            self._files.put(name, fill).close()
        except UserError as error:
            self._writes = False
            log.warning("The encoder's maps are not kept: %s", error)

    def _shapes(self, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """h, w and C of each map that is read."""
        return [
            (size[0] // layout.stride, size[1] // layout.stride, layout.channels)
            for layout in self.layouts
            if layout.read
        ]

    def _split(self, values: Values, size: tuple[int, int]) -> list[Values]:
        """The maps [h, w, C] of an entry."""
        found: list[Values] = []
        start = 0
        for shape in self._shapes(size):
            end = start + shape[0] * shape[1] * shape[2]
            found.append(values[start:end].reshape(shape))
            start = end
        return found

    def _assembled(self, parts: Sequence[Sequence[Values]], size: tuple[int, int]) -> list[Tensor]:
        """The maps of B images or windows of one size. Those that are not read are zeros without memory."""
        maps: list[Tensor] = []
        read = iter(zip(*parts, strict=True))
        for layout in self.layouts:
            if layout.read:
                stacked = torch.from_numpy(np.stack(next(read))).to(self.device)
                maps.append(stacked.float().permute(0, 3, 1, 2))
            else:
                h, w = (side // layout.stride for side in size)
                maps.append(torch.zeros((), device=self.device).expand(len(parts), layout.channels, h, w))
        return maps


def _are_maps(encoded: Any, side: int) -> bool:
    return isinstance(encoded, list | tuple) and all(
        isinstance(one, Tensor)
        and one.ndim == 4
        and one.shape[-1] == one.shape[-2] > 0
        and side % one.shape[-1] == 0
        for one in encoded
    )


def _reaches_logits(segmenter: Segmenter, encoded: Sequence[Tensor], index: int, side: int) -> bool:
    changed = list(encoded)
    changed[index] = torch.full_like(encoded[index], torch.nan)
    logits, of_heads = segmenter.forward_encoded(changed, (side, side))
    return bool(logits.isnan().any()) or (of_heads is not None and bool(of_heads.isnan().any()))


def _identity(segmenter: Segmenter, layouts: Sequence[MapLayout], device: torch.device) -> str:
    """A hash of all but the image that an entry depends on."""
    encoder = segmenter.part("encoder")
    layers = re.sub(r"0x[0-9a-f]+", "", repr(encoder))  # addresses in memory
    precision = half_precision() if device.type == "cuda" else torch.float32
    digest = hashlib.sha256(f"{FORMAT} {layers} {layouts} {device.type} {precision}".encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _cells(pixels: slice, stride: int) -> slice:
    return slice(pixels.start // stride, pixels.stop // stride)


def _checksum(values: Values) -> bytes:
    return zlib.crc32(np.ascontiguousarray(values).data).to_bytes(CHECKSUM_BYTES, "big")
