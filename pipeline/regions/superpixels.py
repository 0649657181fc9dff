"""Superpixels: parts of an image of about one size and colour, computed once and kept on disk.

Legend: H W image size; K channels.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from skimage.segmentation import slic

from pipeline.config import RegionConfig
from pipeline.data.images import ImageArray, as_rgb
from pipeline.files import atomic_write_bytes, open_plain

FULL_DETAIL = 1_000_000
"""Pixels up to which an image is clustered as it is; a larger one is shrunk to about this many."""
SMALLEST_SIDE = 16
"""Pixels of the shrunk image that a superpixel's side keeps at least."""

_ROUNDS = 10
_COMPACTEST = 1000.0
"""From here on clusters are squares, whatever the image."""


def superpixels(image: ImageArray, *, side: int, compactness: float) -> npt.NDArray[np.int32]:
    """Each pixel's superpixel, 0 to R − 1, by SLIC in CIELAB (Achanta et al. 2012), as in scikit-image.

    The clustering takes seconds on a large image, so that is shrunk first (see `FULL_DETAIL`): borders are
    then exact to a shrunk pixel. Rough texture tears clusters into crumbs, which SLIC then joins to a few
    large ones: where less than half of the superpixels are left, `compactness` is raised until they are not.
    Equal images give equal superpixels.

    Args:
        image: uint8 or uint16 [H, W, K].
        side: the mean side of a superpixel, in pixels.
        compactness: weight of nearness against colour.

    Returns:
        [H, W].
    """
    height, width = image.shape[:2]
    picture = as_rgb(image)
    factor = max(1, min(math.ceil(math.sqrt(height * width / FULL_DETAIL)), side // SMALLEST_SIDE))
    if factor > 1:
        small = (math.ceil(width / factor), math.ceil(height / factor))
        picture = np.asarray(cv2.resize(picture, small, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    target = max(1, round(height * width / side**2))
    found = _clustered(picture, target, compactness)
    while found.max() + 1 < target / 2 and compactness < _COMPACTEST:
        compactness *= 4
        found = _clustered(picture, target, compactness)
    rows = np.arange(height) * found.shape[0] // height
    columns = np.arange(width) * found.shape[1] // width
    return found.astype(np.int32)[rows[:, None], columns]


def _clustered(picture: npt.NDArray[np.uint8], target: int, compactness: float) -> npt.NDArray[np.int64]:
    return slic(
        picture,
        n_segments=target,
        compactness=compactness,
        max_num_iter=_ROUNDS,
        start_label=0,
        channel_axis=2,
    )


class SuperpixelCache:
    """Superpixels of images, kept below a folder under the hash of the image's pixels and of the settings.

    Several threads and processes may use one folder: a file appears whole or not at all, and one that cannot
    be read is made again.

    Args:
        folder: is made when the first file is written.
        config: `cell` and `compactness` are read.
    """

    def __init__(self, folder: Path, config: RegionConfig) -> None:
        self.config = config
        self.folder = folder
        self._settings = json.dumps(
            [config.cell, config.compactness, _ROUNDS, FULL_DETAIL, SMALLEST_SIDE]
        ).encode()

    def __call__(self, image: ImageArray) -> npt.NDArray[np.integer]:
        """The superpixels of an image [H, W, K], as of `superpixels`.

        Raises:
            UserError: the folder cannot be written, or the disk is full.
        """
        path = self.path(image)
        known = _load(path, size=image.shape[:2])
        if known is not None:
            return known
        found = superpixels(image, side=self.config.cell, compactness=self.config.compactness)
        smallest = found.astype(np.uint16 if found.max() < 65536 else np.uint32)
        stream = io.BytesIO()
        np.savez_compressed(stream, superpixel=smallest)
        atomic_write_bytes(path, stream.getvalue())
        return smallest

    def path(self, image: ImageArray) -> Path:
        """Where the superpixels of an image are kept."""
        digest = hashlib.sha256(self._settings + f"{image.shape}{image.dtype}".encode())
        digest.update(np.ascontiguousarray(image).data)
        name = digest.hexdigest()
        return self.folder / name[:2] / f"{name}.npz"


def _load(path: Path, *, size: tuple[int, ...]) -> npt.NDArray[np.integer] | None:
    """A kept map [H, W]; None where there is none, or what is there is damaged."""
    try:
        with open_plain(path) as stream, np.load(stream) as archive:
            with archive.zip.open("superpixel.npy") as member:
                np.lib.format.read_magic(member)
                if np.lib.format.read_array_header_1_0(member)[0] != size:
                    return None
            found = archive["superpixel"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return found if found.shape == size and found.dtype in (np.uint16, np.uint32) else None
