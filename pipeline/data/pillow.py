"""The half of `images.py` for all formats but TIFF: header and pixels of an open file, as Pillow reads it.

Legend: H height, W width, K channels; pixels are as stored, before EXIF orientation.
"""

from __future__ import annotations

from typing import Any, BinaryIO

import imagecodecs
import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.data.bands import bands
from pipeline.data.image_info import ORIENTATION_TAG, ImageInfo
from pipeline.data.remote import ImageFile
from pipeline.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")

Image.MAX_IMAGE_PIXELS = None  # `open_image` checks `max_pixels` on the header, before anything is decoded


def pillow_info(path: ImageFile, image: Image.Image, stream: BinaryIO) -> ImageInfo:
    """Header of an opened file."""
    orientation = _orientation(image)
    width, height = image.size if orientation < 5 else image.size[::-1]
    bits, bands, alpha = _depth(path, image, stream)
    pictures = count_pictures(image)
    if pictures > 1 and image.format != "MPO":  # a photograph of a camera, with its preview behind it
        raise DataError(f"{path} is a film of {pictures} pictures.", "Save each as a file of its own.")
    return ImageInfo(
        width=width, height=height, channels=bands, bits=bits, alpha=alpha, orientation=orientation
    )


def pillow_pixels(
    image: Image.Image, info: ImageInfo, stream: BinaryIO, *, palette_indices: bool
) -> npt.NDArray[Any]:
    """Pixels [H, W, K] of 8 or 16 bits; with `palette_indices`, those of a palette are its indices."""
    if info.bits == 16:
        stream.seek(0)
        pixels = np.asarray(imagecodecs.png_decode(stream.read()))
    elif palette_indices and image.mode in ("P", "1"):
        pixels = np.asarray(image).astype(np.uint8)
    else:
        modes = {(1, False): "L", (2, True): "LA", (3, False): "RGB", (4, True): "RGBA"}
        pixels = _in_bands(image, modes[info.channels, info.alpha], info.channels)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _in_bands(image: Image.Image, mode: str, channels: int) -> npt.NDArray[np.uint8]:
    """The pixels [H, W, K] of an image in a mode. Pillow has four bytes a pixel, and would make two copies
    of the whole for an array."""
    image.load()
    width, height = image.size
    pixels = np.empty((height, width, channels), dtype=np.uint8)
    for rows in bands(height, width * channels):
        band = image.crop((0, rows.start, width, rows.stop))
        pixels[rows] = np.asarray(band if band.mode == mode else band.convert(mode)).reshape(
            -1, width, channels
        )
    return pixels


def count_pictures(image: Image.Image) -> int:
    """How many pictures the file holds."""
    return int(getattr(image, "n_frames", 1))


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation; 1, upright, where the metadata is damaged."""
    try:
        # The base class's getexif: PNG's own would decode the whole image to look behind its pixels.
        found = Image.Image.getexif(image).get(ORIENTATION_TAG, 1)
    except Exception:  # as for decoders: SyntaxError, struct.error, …
        return 1
    return found if found in range(1, 9) else 1


def _depth(path: ImageFile, image: Image.Image, stream: BinaryIO) -> tuple[int, int, bool]:
    """Bits, channels, and whether the last channel is alpha."""
    if image.format == "PNG":
        here = stream.tell()  # Pillow goes on from there
        stream.seek(0)
        header = stream.read(26)
        stream.seek(here)
        if header[24] == 16:
            channels = {0: 1, 2: 3, 4: 2, 6: 4}[header[25]]
            return 16, channels, channels in (2, 4)
    if image.mode in ("1", "L"):
        return 8, 1, False
    if image.mode in ("LA", "La"):
        return 8, 2, True
    if image.mode == "P":
        return (8, 4, True) if "transparency" in image.info else (8, 3, False)
    if image.mode in ("RGBA", "RGBa", "RGBX"):
        return 8, 4, True
    if image.mode in ("RGB", "CMYK", "YCbCr"):
        return 8, 3, False
    raise DataError(f"{path} has pixels of the kind {image.mode!r}.", "Convert it to 8 or 16 bits a channel.")
