"""What is known of an image without its pixels. No decoder is imported here: that takes a while.

All sizes are those after EXIF orientation.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.data.remote import ImageFile

ORIENTATION_TAG = 274
"""Of EXIF, and of TIFF."""


@dataclass(frozen=True)
class ImageRef:
    """An image of the store, as much of it as reading needs.

    Images of one `shard` are batched among themselves: the last bit of a score depends on the batch, and so
    it stays the same whoever scores the shard, and after whatever.
    """

    id: int
    path: ImageFile
    width: int
    height: int
    shard: int | None = None


@dataclass(frozen=True)
class ImageInfo:
    """What a file's header says. `channels` counts an alpha channel; `bits` is 8 or 16, or 32 for floats;
    `orientation` is EXIF's, 1 (upright as stored) to 8: `width` and `height` are of the upright image.

    `stack` has the axes of a TIFF whose channels are pages, and nothing says that these are colours."""

    width: int
    height: int
    channels: int
    bits: int
    alpha: bool = False
    orientation: int = 1
    stack: str = ""
