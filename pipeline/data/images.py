"""Reading images: the one place where files become arrays, and where EXIF orientation is honoured.

Legend: H height, W width, K channels; all after EXIF orientation. An image is uint8 or uint16 [H, W, K].
PNG, JPEG, WebP and BMP are read with Pillow, TIFF with tifffile, and 16-bit colour PNG with imagecodecs,
because Pillow would cut it to 8 bits. A truncated file raises; none of the three fills it up.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import warnings
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image, UnidentifiedImageError

from pipeline.data.image_info import ImageInfo
from pipeline.data.image_limits import Damaged, NotAnImage, check_bytes, check_tiff
from pipeline.data.metadata import without_damaged_metadata
from pipeline.data.pillow import FORMATS, count_pictures, pillow_info, pillow_pixels
from pipeline.data.remote import ImageFile, opened
from pipeline.data.tiff import first_page, tiff_info, tiff_pixels, tiff_window
from pipeline.errors import DataError, UserError

IMAGE_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".webp", ".bmp"})
TIFF_ENDINGS = frozenset({".tif", ".tiff"})

ImageArray = npt.NDArray[np.uint8 | np.uint16 | np.float32]
"""Integers span 0 to the largest of their type; floats (of a TIFF) mean 0 to 1, and may lie outside of it."""

_REPLACE = "Replace the file, or remove it."


class OpenImage:
    """An image file that is open: its header, and its pixels and hash when they are asked for.

    All of them are of the same content, also where the file is replaced meanwhile.

    Attributes:
        info: what its header says.
        is_palette: whether its pixels are indices of a palette.
    """

    def __init__(
        self,
        path: ImageFile,
        stream: BufferedReader,
        content: BinaryIO,
        source: tifffile.TiffFile | Image.Image,
    ) -> None:
        self._path = path
        self._stream = stream
        self._content = content
        self._source = source
        if isinstance(source, tifffile.TiffFile):
            self.info = tiff_info(path, source)
            self.is_palette = first_page(source).photometric == tifffile.PHOTOMETRIC.PALETTE
        else:
            self.info = pillow_info(path, source, content)
            self.is_palette = source.mode in ("P", "PA")

    @property
    def kind(self) -> str:
        """`TIFF`, or Pillow's name of the format: `PNG`, `JPEG`, `MPO` (with previews), `WEBP`, `BMP`."""
        return "TIFF" if isinstance(self._source, tifffile.TiffFile) else str(self._source.format)

    @property
    def pictures(self) -> int:
        """How many pictures it holds, of which the first is read."""
        source = self._source
        return len(source.series) if isinstance(source, tifffile.TiffFile) else count_pictures(source)

    @property
    def white_is_zero(self) -> bool:
        """Whether its values count from white to black, as those of faxes."""
        source = self._source
        return (
            isinstance(source, tifffile.TiffFile)
            and first_page(source).photometric == tifffile.PHOTOMETRIC.MINISWHITE
        )

    @property
    def decoded_bytes(self) -> int:
        """Bytes of its pixels."""
        info = self.info
        stated = info.width * info.height * info.channels * info.bits // 8
        return (
            max(stated, self._source.series[0].nbytes)
            if isinstance(self._source, tifffile.TiffFile)
            else stated
        )

    def check_channels(self, channels: int) -> None:
        """Refuse a file that cannot be read with so many channels.

        Raises:
            DataError: its channels do not fit.
        """
        colors = self.info.channels - self.info.alpha
        if self.info.stack and channels == 3:
            raise DataError(
                f"{self._path} is a stack of {self.info.channels} pages with the axes {self.info.stack}, not "
                "a colour image.",
                "Save each page as a file of its own, or the three as one RGB image.",
            )
        if channels not in (self.info.channels, colors) and not (colors == 1 and channels == 3):
            raise DataError(
                f"{self._path} has {self.info.channels} channel{'s' * (self.info.channels != 1)}, "
                f"where the model sees {channels}.",
                "Convert the file, or set `data.channels`.",
            )

    def pixels(self, *, palette_indices: bool = False, floats: bool = False) -> ImageArray:
        """As `read_pixels`."""
        if isinstance(self._source, tifffile.TiffFile):
            if self.info.bits == 32 and not floats:
                raise DataError(
                    f"{self._path} has floating-point pixels.", "Convert it to 8 or 16 bits unsigned."
                )
            pixels = tiff_pixels(self._source, palette_indices=palette_indices)
            if self.white_is_zero and not palette_indices:
                pixels = (_white(pixels) - pixels).astype(pixels.dtype, copy=False)
        else:
            pixels = pillow_pixels(self._source, self.info, self._content, palette_indices=palette_indices)
        return _upright(pixels, self.info.orientation)

    def window(self, rows: slice, columns: slice) -> ImageArray | None:
        """A window of `pixels`; None where all of them would have to be decoded for it."""
        if not isinstance(self._source, tifffile.TiffFile) or self.info.orientation != 1:
            return None
        return tiff_window(self._source, rows, columns)

    def with_channels(self, pixels: ImageArray, channels: int) -> ImageArray:
        """Pixels of this image with the wanted number of channels: a grey image is repeated, an alpha channel
        dropped."""
        if channels != pixels.shape[2]:
            pixels = pixels[:, :, : self.info.channels - self.info.alpha]
        if channels != pixels.shape[2]:
            pixels = np.repeat(pixels, channels, axis=2)
        return np.ascontiguousarray(pixels)

    def palette_size(self) -> int:
        """The number of colours of its palette; 0 where it has none."""
        source = self._source
        if isinstance(source, tifffile.TiffFile):
            colors = first_page(source).colormap if self.is_palette else None
            return 0 if colors is None else int(colors.shape[1])
        return len(source.getpalette("RGB") or ()) // 3 if self.is_palette else 0

    def is_transparent(self) -> bool:
        """Whether any pixel is not opaque: by an alpha channel, a palette, or a colour that stands for it."""
        source = self._source
        if isinstance(source, Image.Image) and self.info.bits == 8:
            if not source.has_transparency_data:
                return False
            return bool(np.asarray(source.convert("RGBA").getchannel("A")).min() < 255)
        if isinstance(source, Image.Image) and "transparency" in source.info:
            return True
        return self.info.alpha and bool((unit_float(self.pixels()[:, :, -1]) != 1).any())

    def stat(self) -> os.stat_result:
        """Size and times of the file."""
        return os.fstat(self._stream.fileno())

    def sha256(self) -> str:
        """Of the file's bytes, 64 hex digits. The file is read in pieces and not held."""
        here = self._stream.tell()  # Pillow goes on from there
        self._stream.seek(0)
        digest = hashlib.file_digest(self._stream, "sha256").hexdigest()
        self._stream.seek(here)
        return digest


@contextmanager
def open_image(
    path: ImageFile, *, max_pixels: int | None = None, size: tuple[int, int] | None = None
) -> Generator[OpenImage]:
    """Open an image file once, for all that is wanted of it. An error of the block that is no `UserError`
    counts as damage of the file.

    Args:
        max_pixels: that it may have; None where `size` is given.
        size: width and height of the image when it was ingested, where it was.

    Raises:
        DataError: the file cannot be opened, is no image of a known kind, is damaged, is larger than
            `max_pixels`, has another size, or more pages, channels or bytes than `pipeline.data.image_limits`
            allows.
        UserError: a remote image does not fit on the disk.
    """
    if max_pixels is None:
        if size is None:
            raise ValueError("Expected `max_pixels` or `size`, but got neither.")
        max_pixels = size[0] * size[1]
    with ExitStack() as opened_files:
        stream = opened_files.enter_context(_decoding(path))
        length = os.fstat(stream.fileno()).st_size
        check_bytes(path, length, max_pixels=max_pixels, what="the file has")
        if not length:
            raise DataError(f"{path} is empty: the file has no content.", _REPLACE)
        if path.suffix.lower() in TIFF_ENDINGS:
            check_tiff(path, stream)
            content = stream
            source = opened_files.enter_context(tifffile.TiffFile(stream, _multifile=False))
        else:
            content = without_damaged_metadata(stream)
            source = opened_files.enter_context(Image.open(content, formats=FORMATS))
        image = OpenImage(path, stream, content, source)
        width, height = image.info.width, image.info.height
        if width < 1 or height < 1:
            raise DataError(f"{path} is empty: its size is {width}×{height} pixels.", _REPLACE)
        if size is not None and size != (width, height):
            raise DataError(
                f"{path} has {width}×{height} pixels, but had {size[0]}×{size[1]} when it was ingested.",
                "Put the old file back, or give the new one another name.",
            )
        if width * height > max_pixels:
            raise DataError(
                f"{path} has {width}×{height} pixels, more than `data.max_pixels` ({max_pixels}).",
                "Raise `data.max_pixels` if the file is yours and the memory suffices.",
            )
        check_bytes(path, image.decoded_bytes, max_pixels=max_pixels, what="its pixels take")
        yield image


def probe_image(
    path: ImageFile, *, max_pixels: int | None = None, size: tuple[int, int] | None = None
) -> ImageInfo:
    """Size, channels and depth from the header, without decoding; the size is the displayed one.

    Raises:
        DataError, UserError: as `open_image`.
    """
    with open_image(path, max_pixels=max_pixels, size=size) as image:
        return image.info


def read_image(
    path: ImageFile, *, channels: int, max_pixels: int, size: tuple[int, int] | None = None
) -> ImageArray:
    """Decode an image upright, with the wanted number of channels.

    A grey image is repeated for 3 channels; an alpha channel that is not wanted is dropped; every other
    difference is an error.

    Returns:
        uint8, uint16 or float32 [H, W, channels], contiguous.

    Raises:
        DataError: as `open_image`; or its channels do not fit.
    """
    with open_image(path, max_pixels=max_pixels, size=size) as image:
        image.check_channels(channels)
        return image.with_channels(image.pixels(floats=True), channels)


def read_window(
    path: ImageFile, *, channels: int, size: tuple[int, int], rows: slice, columns: slice
) -> ImageArray | None:
    """A window of what `read_image` gives, of a file that keeps its pixels in tiles: only those that it meets
    are decoded. None for any other file.

    Raises:
        DataError: as `read_image`.
    """
    with open_image(path, size=size) as image:
        image.check_channels(channels)
        pixels = image.window(rows, columns)
        return None if pixels is None else image.with_channels(pixels, channels)


def read_pixels(
    path: ImageFile, *, size: tuple[int, int], palette_indices: bool = False, floats: bool = False
) -> ImageArray:
    """Decode a file upright with the channels that it has.

    Args:
        size: width and height that it must have.
        palette_indices: keep the indices of a palette image ([H, W, 1]) instead of its colours, and 0 and 1
            of a bilevel one.
        floats: also take a TIFF of floating-point numbers, as float32.

    Raises:
        DataError: as `open_image`; or the file is truncated, damaged, of a pixel type that is not wanted, or
            holds floats that are not finite.
    """
    with open_image(path, size=size) as image:
        return image.pixels(palette_indices=palette_indices, floats=floats)


def as_rgb(image: ImageArray) -> npt.NDArray[np.uint8]:
    """An image [H, W, K] of any depth and number of channels as a person sees it, uint8 [H, W, 3].

    Pixels of other than 8 bits are stretched between their 0.5th and 99.5th percentile; of many channels the
    first three are shown, of two the first.

    >>> as_rgb(np.array([[[7]]], dtype=np.uint8)).tolist()
    [[[7, 7, 7]]]
    """
    shown = image[:, :, :3] if image.shape[2] >= 3 else np.repeat(image[:, :, :1], 3, axis=2)
    if shown.dtype == np.uint8:
        return np.ascontiguousarray(shown, dtype=np.uint8)
    low, high = np.percentile(shown, (0.5, 99.5))
    unit = (shown.astype(np.float32) - low) / max(high - low, 1 if shown.dtype == np.uint16 else 1e-6)
    return np.rint(unit.clip(0, 1) * 255).astype(np.uint8)


def encode_png(pixels: npt.NDArray[Any] | Image.Image, palette: Sequence[tuple[int, int, int]] = ()) -> bytes:
    """Pixels [H, W] or [H, W, K], or a picture, as a PNG; with a palette, [H, W] are indices of its
    colours."""
    stream = io.BytesIO()
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.ascontiguousarray(pixels))
    if palette:
        picture.putpalette([value for color in palette for value in color])
    picture.save(stream, format="PNG", compress_level=3)
    return stream.getvalue()


def unit_float(image: ImageArray) -> npt.NDArray[np.float32]:
    """The image as float32 in 0 to 1: 1 is the largest number of its type. Floats stay as they are.

    >>> unit_float(np.array([[[0, 255]]], dtype=np.uint8)).tolist()
    [[[0.0, 1.0]]]
    """
    return np.multiply(image, np.float32(1 / _white(image)), dtype=np.float32)


@contextmanager
def _decoding(path: ImageFile) -> Generator[BufferedReader]:
    """The content. Any error of a decoder becomes a DataError that names the file."""
    try:
        with warnings.catch_warnings(), opened(path) as stream:
            warnings.simplefilter("ignore")  # remarks on odd metadata, which does not matter here
            yield stream
    except (UserError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise DataError(
            f"There is no file {path}.", "Put it back, or run `segcurate ingest` again."
        ) from error
    except PermissionError as error:
        raise DataError(f"{path} may not be read.", "Give yourself read permission.") from error
    except Exception as error:  # decoders raise anything: SyntaxError, struct.error, IndexError, …
        raise DataError(f"{path} is not a readable image: {_reason(error)}.", _REPLACE) from error


def _white(pixels: npt.NDArray[Any]) -> float:
    """The value that means 1."""
    return 1 if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max


def _upright(pixels: ImageArray, orientation: int) -> ImageArray:
    """Turn [H, W, K] as EXIF orientation 1 to 8 says (EXIF 2.32, tag 0x0112)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _reason(error: Exception) -> str:
    """The kind of problem. A decoder's own message may quote the file."""
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return "it is a link that leads back to itself"
    if isinstance(error, UnidentifiedImageError | tifffile.TiffFileError | NotAnImage):
        return "its content is not what its ending says"
    if isinstance(error, Damaged):
        return str(error)
    return "it is truncated" if "truncated" in str(error).lower() else "its content is damaged"
