"""Masks: the files that annotators write, and the one form in which segcurate keeps them.

Legend: H height, W width, C classes. A mask is uint8 [H, W]: the class index, or 255 where there is none.
"""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from pipeline.config import IGNORE, DataConfig
from pipeline.data.images import OpenImage, encode_png, open_image
from pipeline.errors import DataError
from pipeline.files import atomic_write_bytes, sweep

Mask = npt.NDArray[np.uint8]

MASK_ENDINGS = frozenset({".png", ".tif", ".tiff", ".bmp"})
"""Lossless file formats."""

_KINDS = frozenset({"PNG", "TIFF", "BMP"})
_MOST_CHANNELS = 4
"""Red, green, blue and alpha. More are refused before they are decoded."""
_UNKNOWN = -1
_LISTED = 8

NEUTRAL = (72, 72, 72)
"""The first class, which is most often the background: an overlay darkens it, and colours the others."""
_DISTINCT = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
    (204, 121, 167),
)  # fmt: skip
"""Distinct for colour-blind people too (Okabe & Ito 2008, Color Universal Design)."""
_FORMER = (
    (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48), (145, 30, 180),
    (70, 240, 240), (240, 50, 230), (210, 245, 60), (250, 190, 212), (0, 128, 128), (220, 190, 255),
    (170, 110, 40), (255, 250, 200), (128, 0, 0), (170, 255, 195), (128, 128, 0), (255, 215, 180),
    (0, 0, 128), (128, 128, 128),
)  # fmt: skip


class UnknownValues(DataError):
    """A mask has values, or colours, that are no class and not ignored.

    Attributes:
        counts: the pixels of each such value.
        classes: the class indices that other pixels have.
    """

    counts: dict[str, int]
    classes: frozenset[int]


@dataclass(frozen=True)
class MaskCodec:
    """What the values or colours of a mask file mean.

    Args:
        encoding: as `data.mask_encoding`.
        index_of_id: int16 [65536], the class index of each pixel value, 255 for ignored, -1 for unknown.
        index_of_color: the same for packed colours (red · 65536 + green · 256 + blue).
        max_pixels: a larger file is refused before it is decoded.
        colors_decide: whether colours that are all known count where the indices of a palette mean other
            classes: they do where every class was given a colour.
        rendered: a folder whose files hold class indices, whatever the ids and colours are.
    """

    encoding: Literal["auto", "index", "palette", "rgb"]
    index_of_id: npt.NDArray[np.int16]
    index_of_color: dict[int, int]
    max_pixels: int
    colors_decide: bool
    rendered: Path | None = None

    @classmethod
    def from_config(cls, config: DataConfig) -> MaskCodec:
        """The codec of a project."""
        index_of_id = np.full(65536, _UNKNOWN, dtype=np.int16)
        index_of_id[config.ignore_index] = IGNORE
        colors = {pack(color): IGNORE for color in config.ignore_color}
        for index, item in enumerate(config.classes):
            index_of_id[index if item.id is None else item.id] = index
            if item.color is not None:
                colors[pack(item.color)] = index
        return cls(
            encoding=config.mask_encoding,
            index_of_id=index_of_id,
            index_of_color=colors,
            max_pixels=config.max_pixels,
            colors_decide=all(item.color is not None for item in config.classes),
        )

    def of_file(self, path: Path) -> MaskCodec:
        """The codec of a file: of class indices in the folder `rendered`."""
        if self.rendered is None or not path.is_relative_to(self.rendered):
            return self
        indices = np.where(np.arange(65536) <= IGNORE, np.arange(65536), _UNKNOWN).astype(np.int16)
        return replace(self, encoding="index", index_of_id=indices)


def read_mask(path: Path, codec: MaskCodec, *, size: tuple[int, int] | None) -> Mask:
    """Decode a mask file into class indices, upright.

    Args:
        size: width and height that it must have; None takes any up to `codec.max_pixels`.

    Returns:
        uint8 [H, W], class index or 255.

    Raises:
        DataError: the file is no readable image, cannot be a mask (`check_mask`), has an encoding that does
            not fit, or values that mean other classes than its colours.
        UnknownValues: it has a value or colour that no class has; the message lists these.
    """
    with open_image(path, max_pixels=codec.max_pixels) as image:
        return decode_mask(path, image, codec.of_file(path), size=size)


def decode_mask(path: Path, image: OpenImage, codec: MaskCodec, *, size: tuple[int, int] | None) -> Mask:
    """As `read_mask`, of a file that is open."""
    check_mask(path, image, size=size)
    if codec.encoding == "palette" and not image.is_palette:
        raise DataError(
            f"The mask {path} has no palette, but `data.mask_encoding` is `palette`.",
            "Set `data.mask_encoding: auto`, or export the mask with a palette.",
        )
    if codec.encoding == "rgb":
        return _from_colors(path, mask_colors(path, image), codec).known(path)
    values = mask_values(image)
    if values is None and codec.encoding != "auto":
        raise DataError(
            f"The mask {path} is coloured, but `data.mask_encoding` is `{codec.encoding}`.",
            "Set `data.mask_encoding: rgb` and give each class a `color`.",
        )
    by_value = None if values is None else _from_ids(path, values, codec)
    if by_value is not None and (codec.encoding != "auto" or image.info.channels - image.info.alpha < 3):
        return by_value.known(path)
    if not codec.index_of_color:
        if by_value is not None:
            return by_value.known(path)
        raise DataError(
            f"The mask {path} is coloured, but no class in `data.classes` has a `color`.",
            "Give each class its `color`, or export index masks.",
        )
    by_color = _from_colors(path, mask_colors(path, image), codec)
    return _agreed(path, by_value, by_color, codec, is_palette=image.is_palette)


def check_mask(path: Path, image: OpenImage, *, size: tuple[int, int] | None) -> None:
    """Refuse a file that cannot be a mask, whatever its values mean.

    Args:
        size: width and height that it must have; None takes any.

    Raises:
        DataError: it has another size; a lossy format, whose values are not those that were painted; several
            pictures; channels that are no colour; transparent pixels; or counts from white to black.
    """
    info = image.info
    if size is not None and (info.width, info.height) != size:
        raise wrong_size(path, (info.width, info.height), size)
    if image.kind not in _KINDS:
        raise DataError(
            f"The mask {path} is a {image.kind} file, which may be lossy: its values are perhaps not those "
            "that were painted.",
            "Export the mask as PNG, TIFF or BMP.",
        )
    if info.channels > _MOST_CHANNELS:
        raise DataError(
            f"The mask {path} has {info.channels} channels; a mask has at most {_MOST_CHANNELS}.",
            "Export it with one value or one colour for each pixel.",
        )
    if info.stack or image.pictures > 1:
        pages = info.channels if info.stack else image.pictures
        raise DataError(
            f"The mask {path} is a stack of {pages} pages, not one mask.",
            "Save one page whose values are the classes.",
        )
    if info.channels - info.alpha not in (1, 3):
        raise DataError(
            f"The mask {path} has {info.channels} channels, which are neither a value nor a colour.",
            "Export it with one value or one colour for each pixel.",
        )
    if image.white_is_zero:
        raise DataError(
            f"The mask {path} counts from white to black: its smallest value is white.",
            "Save it as a PNG, whose values mean the same everywhere.",
        )
    if image.is_transparent():
        raise DataError(
            f"The mask {path} has transparent pixels.", "Flatten it, then save it without transparency."
        )


def wrong_size(path: Path | str, mask: tuple[int, int], image: tuple[int, int]) -> DataError:
    """The error for a mask whose width and height are not those of its image."""
    return DataError(
        f"The mask {path} has {mask[0]}×{mask[1]} pixels, its image {image[0]}×{image[1]}.",
        "Export the mask at the size of its image (as displayed, after EXIF orientation).",
    )


def mask_values(image: OpenImage) -> npt.NDArray[np.integer[Any]] | None:
    """The values of a mask that is open, [H, W]; None where it has colours. Grey saved as RGB has values."""
    pixels = image.pixels(palette_indices=True)
    grey = pixels.shape[2] < 3 or bool((pixels[:, :, :1] == pixels[:, :, 1:3]).all())
    return cast("npt.NDArray[np.integer[Any]]", pixels[:, :, 0]) if grey else None


def mask_colors(path: Path, image: OpenImage) -> npt.NDArray[np.int32]:
    """The colours of a mask that is open, packed as `pack` does, int32 [H, W]. A grey value is a colour.

    Raises:
        DataError: its colours have 16 bits, or its palette lacks a colour.
    """
    pixels = image.pixels()
    if pixels.dtype != np.uint8:
        raise DataError(f"The mask {path} has 16-bit colours.", "Export the mask with 8 bits a channel.")
    if image.is_palette and int(image.pixels(palette_indices=True).max()) >= image.palette_size():
        raise DataError(f"The palette of the mask {path} lacks a colour.", "Export the mask again.")
    rgb = pixels[:, :, :3] if pixels.shape[2] >= 3 else np.repeat(pixels[:, :, :1], 3, axis=2)
    return (rgb.astype(np.int32) * np.array([65536, 256, 1], dtype=np.int32)).sum(axis=2, dtype=np.int32)


def write_mask(path: Path, mask: Mask) -> None:
    """Write a mask as an 8-bit index PNG, whole or not at all.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    atomic_write_bytes(path, encode_png(mask.astype(np.uint8, copy=False)))


def store_mask(folder: Path, mask: Mask) -> tuple[Path, str]:
    """Keep a mask under the hash of its content; the same mask twice is one file.

    Returns:
        The file `<folder>/<first two digits>/<sha256>.png`, and the SHA-256 (of size and pixels).

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    digest = mask_sha256(mask)
    path = folder / digest[:2] / f"{digest}.png"
    if not path.exists():
        sweep(path.parent)
        write_mask(path, mask)
    return path, digest


def mask_sha256(mask: Mask) -> str:
    """SHA-256 of a mask's size and pixels, as 64 hex digits: the same in whatever file it came."""
    digest = hashlib.sha256(f"{mask.shape[1]}x{mask.shape[0]}\n".encode())
    digest.update(np.ascontiguousarray(mask, dtype=np.uint8).data)
    return digest.hexdigest()


def pack(color: tuple[int, int, int]) -> int:
    """A colour as one number."""
    return color[0] << 16 | color[1] << 8 | color[2]


def unpack(packed: int) -> tuple[int, int, int]:
    """The colour of a number."""
    return packed >> 16, packed >> 8 & 255, packed & 255


def palette(config: DataConfig) -> npt.NDArray[np.uint8]:
    """The colour of each class, uint8 [C, 3]: the given one, else a fixed one that no other class has. It is
    grey for the first class, and distinct for colour-blind people for the next seven."""
    given = [item.color for item in config.classes]
    former = set(_filled(given, _endless(_FORMER, saturation=0.85)))
    new = _unlike({NEUTRAL, *former}, _endless(_DISTINCT, saturation=0.6))
    if given[0] is None and NEUTRAL not in given:
        given[0] = NEUTRAL
    return np.array(_filled(given, new), dtype=np.uint8)


def former_palette(config: DataConfig) -> list[tuple[int, int, int]]:
    """The colours of the classes in queues of earlier versions. A class that was given no colour has one
    there that no class has now."""
    return _filled([item.color for item in config.classes], _endless(_FORMER, saturation=0.85))


def _unlike(
    taken: set[tuple[int, int, int]], colors: Iterator[tuple[int, int, int]]
) -> Iterator[tuple[int, int, int]]:
    """Colours without those that are taken, each once."""
    for color in colors:
        if color not in taken:
            taken.add(color)
            yield color


def _filled(
    given: Sequence[tuple[int, int, int] | None], colors: Iterator[tuple[int, int, int]]
) -> list[tuple[int, int, int]]:
    free = (color for color in colors if color not in given)
    return [color if color is not None else next(free) for color in given]


def _endless(first: Sequence[tuple[int, int, int]], *, saturation: float) -> Iterator[tuple[int, int, int]]:
    yield from first
    step = 0
    while True:  # golden-ratio hues: no two of the first few hundred are alike
        step += 1
        value = (0.95, 0.7, 0.5)[step % 3]
        red, green, blue = colorsys.hsv_to_rgb(step * 0.618034 % 1, saturation - 0.1 * (step % 4), value)
        yield round(red * 255), round(green * 255), round(blue * 255)


@dataclass(frozen=True)
class _Reading:
    """One reading of a mask: int16 [H, W], class index, 255, or -1 where it means nothing; and why."""

    index: npt.NDArray[np.int16]
    unknown: UnknownValues | None

    def known(self, path: Path) -> Mask:
        """The mask; raises where it means nothing somewhere."""
        if self.unknown is not None:
            self.unknown.classes = frozenset(np.unique(self.index).tolist()) - {_UNKNOWN, IGNORE}
            raise self.unknown
        return self.index.astype(np.uint8)


def _agreed(
    path: Path, by_value: _Reading | None, by_color: _Reading, codec: MaskCodec, *, is_palette: bool
) -> Mask:
    """The mask of a file that has both values and colours.

    The colours count where every class was given one. Otherwise neither is more likely to be right.
    """
    if by_value is None or (by_color.unknown is None and is_palette and codec.colors_decide):
        return by_color.known(path)
    if by_value.unknown is not None:
        return (by_value if is_palette and by_color.unknown is not None else by_color).known(path)
    meant = by_color.index != _UNKNOWN if codec.colors_decide or by_color.unknown is None else False
    if np.any((by_value.index != by_color.index) & meant):
        raise DataError(
            f"The values of {path} mean other classes than its colours.",
            "Save it as an index mask without a palette, or say which of them count: `data.mask_encoding: "
            "index` or `rgb`.",
        )
    return by_value.known(path)


def _from_ids(path: Path, ids: npt.NDArray[np.integer[Any]], codec: MaskCodec) -> _Reading:
    index = codec.index_of_id[ids.astype(np.intp)]
    unknown = index == _UNKNOWN
    if not unknown.any():
        return _Reading(index, None)
    values, counts = np.unique(ids[unknown], return_counts=True)
    named = [str(value) for value in values.tolist()]
    error = UnknownValues(
        f"The mask {path} has values that are no class id: {_listed(named, counts.tolist())}.",
        "Add them to `data.classes` or `data.ignore_index`, or correct the mask.",
    )
    error.counts = dict(zip(named, counts.tolist(), strict=True))
    return _Reading(index, error)


def _from_colors(path: Path, packed: npt.NDArray[np.int32], codec: MaskCodec) -> _Reading:
    if not codec.index_of_color:
        raise DataError(
            f"The mask {path} is to be read by its colours, but no class in `data.classes` has a `color`.",
            "Give each class its `color`, or export index masks.",
        )
    keys = np.array(sorted(codec.index_of_color), dtype=np.int32)
    values = np.array([codec.index_of_color[key] for key in keys.tolist()], dtype=np.int16)
    place = np.searchsorted(keys, packed).clip(max=len(keys) - 1)
    unknown = keys[place] != packed
    if not unknown.any():
        return _Reading(values[place], None)
    colors, counts = np.unique(packed[unknown], return_counts=True)
    named = [str(unpack(color)) for color in colors.tolist()]
    error = UnknownValues(
        f"The mask {path} has colours that are no class: {_listed(named, counts.tolist())}.",
        "Add them to `data.classes` or `data.ignore_color`, or correct the mask.",
    )
    error.counts = dict(zip(named, counts.tolist(), strict=True))
    return _Reading(np.where(unknown, np.int16(_UNKNOWN), values[place]), error)


def _listed(values: list[str], counts: list[int]) -> str:
    """Values with their pixel counts, the most frequent first."""
    ranked = sorted(zip(counts, values, strict=True), key=lambda pair: -pair[0])
    shown = ", ".join(f"{value} ({count} px)" for count, value in ranked[:_LISTED])
    return shown + (f" and {len(ranked) - _LISTED} more" if len(ranked) > _LISTED else "")
