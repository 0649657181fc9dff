"""A file is decoded: the row of a new image, and the mask that belongs to it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from db.tables import Image
from pipeline.data.images import OpenImage, open_image
from pipeline.data.masks import wrong_size
from pipeline.data.project import Project
from pipeline.data.remote import ImageFile, RemoteFile, opened
from pipeline.errors import DataError
from pipeline.steps.ingest.mask_census import FoundMask, changed_since
from pipeline.steps.ingest.pixel_range import PixelMoments, pixel_moments
from pipeline.steps.ingest.positions import Assigned


@dataclass(frozen=True)
class Examined:
    """A file after it was decoded: the row of a new image, or a known one, and the usable mask that was read.

    `verified` says that a known image was written again with the content that it had; `moments` are of a new
    image of more than 8 bits.
    """

    assigned: Assigned
    known: Image | None
    row: dict[str, Any] | None = None
    mask: FoundMask | None = None
    failures: tuple[tuple[str, str], ...] = ()
    verified: bool = False
    moments: PixelMoments | None = None

    @property
    def mask_columns(self) -> dict[str, Any]:
        """What the row of its image holds of the mask."""
        mask = self.mask
        return {
            "mask_uri": mask and mask.uri,
            "mask_classes": mask and list(mask.classes),
            "mask_sha256": mask and mask.sha256,
        }


def examine(
    project: Project, assigned: Assigned, known: Image | None, masks: Mapping[str, FoundMask]
) -> Examined:
    """Decode a new image; and take its mask, or the one that a known image lacks, if it fits."""
    found, config = assigned.found, project.config.data
    row: dict[str, Any] | None = None
    moments: PixelMoments | None = None
    verified = False
    try:
        if known is not None:
            verified = bool(_same_content(known, found.path))
        else:
            with open_image(found.path, max_pixels=config.max_pixels) as image:
                image.check_channels(config.channels)
                moments = pixel_moments(image.pixels(floats=True))  # a damaged file raises here
                row = _row(assigned, image)
    except DataError as error:
        return Examined(assigned, known, failures=((found.uri, str(error)),))
    except MemoryError:
        reason = f"{found.path} does not fit into memory. Lower `data.max_pixels`, or use a larger machine."
        return Examined(assigned, known, failures=((found.uri, reason),))
    mask = masks.get(found.uri)
    if mask is None:
        return Examined(assigned, known, row, verified=verified, moments=moments)
    size = (row["width"], row["height"]) if row else (known.width, known.height) if known else mask.size
    problem = mask.problem or (str(wrong_size(mask.uri, mask.size, size)) if mask.size != size else "")
    if not problem and not mask.classes and known is not None and known.mask_uri is not None:
        problem = (
            f"The mask {mask.uri} has no labeled pixel any more; what was read from it before stays. "
            "Paint it, or put the old file back."
        )
    if problem:
        return Examined(assigned, known, row, failures=((mask.uri, problem),), moments=moments)
    usable = mask if mask.classes else None
    return Examined(assigned, known, row, usable, verified=verified, moments=moments)


def _same_content(known: Image, path: ImageFile) -> bool | None:
    """Whether an image that was written since it was read has the content that it had; None for any other.

    Raises:
        DataError: it has another content.
    """
    if isinstance(path, RemoteFile) or not changed_since(path, known.ingested_at):
        return None
    try:
        with opened(path) as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None
    if digest != known.sha256:
        raise DataError(
            f"{path} has changed since it was ingested: its labels and scores are of the file before.",
            "Put the old file back, or give the new one another name.",
        )
    return True


def _row(assigned: Assigned, image: OpenImage) -> dict[str, Any]:
    return {
        "uri": assigned.found.uri,
        "sha256": image.sha256(),
        "width": image.info.width,
        "height": image.info.height,
        "channels": image.info.channels,
        "group_name": assigned.group,
        "position": assigned.position,
        "duplicate_of": None,
    }
