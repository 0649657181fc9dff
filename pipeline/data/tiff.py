"""The TIFF half of `images.py`: header and pixels of an open file, as tifffile reads it.

Legend: H height, W width, K channels; pixels are as stored, before EXIF orientation.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from pipeline.data.image_info import ORIENTATION_TAG, ImageInfo
from pipeline.data.image_limits import Damaged
from pipeline.data.remote import ImageFile
from pipeline.errors import DataError

_CHANNEL_AXES = frozenset("SC")
"""Samples of a pixel, and channels of a microscope. Any other axis is a stack."""
_YCBCR = tifffile.PHOTOMETRIC.YCBCR
_OTHER_COLORS = frozenset(
    {tifffile.PHOTOMETRIC.CIELAB, tifffile.PHOTOMETRIC.ICCLAB, tifffile.PHOTOMETRIC.ITULAB}
)
_JPEG = frozenset({6, 7, 33003, 33005, 34892, 50001})
"""TIFF's compressions whose decoders make RGB of YCbCr: JPEG, JPEG 2000 and WebP."""

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # its warnings become a DataError in `open_image`


def tiff_info(path: ImageFile, tiff: tifffile.TiffFile) -> ImageInfo:
    """Header of the first series: one plane, with its channels as samples or as pages."""
    series, page = tiff.series[0], first_page(tiff)
    axes = series.axes
    others = [axis for axis in axes if axis not in "YX"]
    if "Y" not in axes or "X" not in axes or len(others) > 1:
        raise DataError(
            f"{path} is a stack with the axes {axes}, not one image.", "Save each plane as a file of its own."
        )
    if series.dtype not in (np.uint8, np.uint16, np.bool_, np.float32, np.float64):
        raise DataError(
            f"{path} has pixels of type {series.dtype}.",
            "Convert it to 8 or 16 bits unsigned, or to 32-bit floats from 0 to 1.",
        )
    size = dict(zip(axes, series.shape, strict=True))
    _check_color_space(path, page)
    palette = page.photometric == tifffile.PHOTOMETRIC.PALETTE
    channels = 3 if palette else (size[others[0]] if others else 1)
    alpha = others == ["S"] and any(int(extra) in (1, 2) for extra in page.extrasamples)
    tag: Any = page.tags.get(ORIENTATION_TAG)
    orientation = int(tag.value) if tag is not None and int(tag.value) in range(1, 9) else 1
    width, height = (size["X"], size["Y"]) if orientation < 5 else (size["Y"], size["X"])
    bits = {"u2": 16, "f4": 32, "f8": 32}.get(series.dtype.str[1:], 8)
    return ImageInfo(
        width=width,
        height=height,
        channels=channels,
        bits=bits,
        alpha=alpha,
        orientation=orientation,
        stack=axes if others and others[0] not in _CHANNEL_AXES and channels > 1 else "",
    )


def tiff_pixels(tiff: tifffile.TiffFile, *, palette_indices: bool) -> npt.NDArray[Any]:
    """Pixels [H, W, K] of 8 or 16 bits, or float32; with `palette_indices`, those of a palette are its
    indices, and bilevel ones 0 and 1. Nothing inverts a file that counts from white to black.

    Raises:
        Damaged: the file is truncated, lacks a palette, or holds floats that are not finite.
    """
    series, page = tiff.series[0], first_page(tiff)
    _check_complete(tiff)
    pixels: npt.NDArray[Any] = series.asarray()
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * (1 if palette_indices else 255)
    if np.issubdtype(pixels.dtype, np.floating):
        pixels = pixels.astype(np.float32)
        if not np.isfinite(pixels).all():
            raise Damaged("it holds values that are no finite numbers")
    if pixels.ndim == 3:
        pixels = np.moveaxis(pixels, [series.axes.index("Y"), series.axes.index("X")], [0, 1])
    else:
        pixels = pixels[:, :, None]
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE and not palette_indices:
        if page.colormap is None:
            raise Damaged("its palette is missing")
        colors = (page.colormap >> 8).astype(np.uint8)  # TIFF palettes are 16 bits: [3, entries]
        pixels = np.moveaxis(colors[:, pixels[:, :, 0]], 0, -1)
    return pixels


def tiff_window(tiff: tifffile.TiffFile, rows: slice, columns: slice) -> npt.NDArray[Any] | None:
    """A window [h, w, K] of the pixels that `tiff_pixels` gives, of a file that keeps them in tiles: only the
    tiles that it meets are decoded. None for any other file.

    Raises:
        Damaged: a tile is truncated.
    """
    page = first_page(tiff)
    if not _in_tiles(tiff, page):
        return None
    found = np.zeros((rows.stop - rows.start, columns.stop - columns.start, page.samplesperpixel), page.dtype)
    high, wide = page.tilelength, page.tilewidth
    across = -(-page.imagewidth // wide)
    for row in range(rows.start // high, -(-rows.stop // high)):
        for column in range(columns.start // wide, -(-columns.stop // wide)):
            tile = _tile(tiff, page, row * across + column)
            if tile is None:  # stored nowhere: zeros
                continue
            top, left = row * high, column * wide
            inside = tile[
                max(0, rows.start - top) : rows.stop - top, max(0, columns.start - left) : columns.stop - left
            ]
            y, x = max(0, top - rows.start), max(0, left - columns.start)
            found[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return found


def first_page(tiff: tifffile.TiffFile) -> tifffile.TiffPage:
    """The page whose tags describe the picture."""
    page = tiff.pages.first
    if not isinstance(page, tifffile.TiffPage):
        raise Damaged("its first page has no tags")
    return page


def _in_tiles(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> bool:
    """Whether the pixels are one page of tiles, each with all channels, that need no more than decoding."""
    return (
        page.is_tiled
        and page.tiledepth == 1
        and len(tiff.series[0].pages) == 1
        and (page.samplesperpixel == 1 or page.planarconfig == tifffile.PLANARCONFIG.CONTIG)
        and page.dtype in (np.uint8, np.uint16)
        and page.photometric not in (tifffile.PHOTOMETRIC.PALETTE, tifffile.PHOTOMETRIC.MINISWHITE)
    )


def _tile(tiff: tifffile.TiffFile, page: tifffile.TiffPage, index: int) -> npt.NDArray[Any] | None:
    """The pixels [h, w, K] of a tile, cut at the border of the image; None for one without bytes."""
    offset, count = page.dataoffsets[index], page.databytecounts[index]
    if not count:
        return None
    if offset + count > tiff.filehandle.size:
        raise Damaged("the file is truncated")
    tiff.filehandle.seek(offset)
    data = tiff.filehandle.read(count)
    tile = page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)[0]
    return None if tile is None else tile[0]


def _check_color_space(path: ImageFile, page: tifffile.TiffPage) -> None:
    """Refuse colours that tifffile returns as they are stored. Those of a JPEG become RGB."""
    photometric = tifffile.PHOTOMETRIC(page.photometric)
    if photometric in _OTHER_COLORS or (photometric == _YCBCR and page.compression not in _JPEG):
        raise DataError(f"{path} has colours of the kind {photometric.name}.", "Convert it to RGB.")


def _check_complete(tiff: tifffile.TiffFile) -> None:
    """tifffile fills missing strips with zeros; here they are an error."""
    length = tiff.filehandle.size
    for page in tiff.series[0].pages:
        if page is None:
            raise Damaged("a page is missing")
        segments = zip(page.dataoffsets, page.databytecounts, strict=False)
        if any(offset + count > length for offset, count in segments):
            raise Damaged("the file is truncated")
