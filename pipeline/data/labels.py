"""The training mask of an image, from the labels that came back for it.

Legend: N annotators, C classes, H height, W width. A mask is uint8 [H, W]: the class index, or 255 where it
says nothing; votes are the masks of N annotators, uint8 [N, H, W].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.config import IGNORE
from pipeline.data.images import open_image
from pipeline.errors import DataError


def compose_labels(paths: Sequence[Path], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Paint stored masks over each other: a later one wins where it has a class.

    Args:
        paths: index PNGs as `pipeline.data.masks.store_mask` writes them, oldest first.
        size: width and height of the image.

    Returns:
        uint8 [H, W].

    Raises:
        DataError: a mask is missing, damaged, or of another size than the image.
    """
    width, height = size
    composed = np.full((height, width), IGNORE, dtype=np.uint8)
    for path in paths:
        with open_image(path, max_pixels=width * height) as image:
            info = image.info
            if (info.width, info.height, info.channels, info.bits) != (width, height, 1, 8):
                raise DataError(
                    f"The stored label {path} is not an 8-bit mask of {width}×{height} pixels.",
                    "Import the label again.",
                )
            mask = image.pixels()[:, :, 0]
        np.copyto(composed, mask, where=mask != IGNORE, casting="unsafe")
    return composed


def compose_votes(
    paths: Sequence[Path], annotators: Sequence[str | None], size: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """One mask an annotator: what each painted last. All labels without a name are one annotator's.

    Args:
        paths: as for `compose_labels`, oldest first.
        annotators: who painted each of them.
        size: width and height of the image.

    Returns:
        uint8 [N, H, W], in the order of each annotator's newest label, oldest first.

    Raises:
        DataError: a mask is missing, damaged, or of another size than the image.
    """
    of_annotator: dict[str | None, list[Path]] = {}
    for path, annotator in zip(paths, annotators, strict=True):
        of_annotator[annotator] = [*of_annotator.pop(annotator, []), path]
    return np.stack([compose_labels(masks, size) for masks in of_annotator.values()])


def majority(votes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The class that most annotators gave each pixel; of as many, the one that the later of them gave.

    Args:
        votes: [N, H, W], the newest last.

    Returns:
        uint8 [H, W], 255 where no annotator has a class.
    """
    winner = np.full(votes.shape[1:], IGNORE, dtype=np.uint8)
    most = np.zeros(votes.shape[1:], dtype=np.int64)
    for vote in votes[::-1]:
        agreeing = (votes == vote).sum(axis=0)
        better = (vote != IGNORE) & (agreeing > most)
        winner[better], most[better] = vote[better], agreeing[better]
    return winner


def count_votes(votes: npt.NDArray[np.uint8], num_classes: int) -> npt.NDArray[np.float64]:
    """Labeled pixels of each class, [C]; one that annotators disagree on counts in parts.

    Raises:
        DataError: a value is neither a class index nor 255.
    """
    known = (votes != IGNORE).sum(axis=0)
    counts = np.zeros(num_classes)
    for among in range(1, len(votes) + 1):
        counts += count_classes(votes[:, known == among], num_classes) / among
    return counts


def count_classes(mask: npt.NDArray[np.uint8], num_classes: int) -> npt.NDArray[np.int64]:
    """Labeled pixels of each class, int64 [C]; of masks of any shape.

    Raises:
        DataError: a value is neither a class index nor 255.
    """
    counts = np.bincount(mask.ravel(), minlength=256)
    unknown = np.flatnonzero(counts[num_classes:IGNORE]) + num_classes
    if unknown.size:
        raise DataError(
            f"A label holds the class index {unknown[0]}, but the project has {num_classes} classes.",
            "Import the label again.",
        )
    return counts[:num_classes]


def resize_mask(mask: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Class indices [H, W] at another height and width, by the pixel nearest to each centre."""
    if mask.shape == size:
        return mask
    resized = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return resized.astype(np.uint8, copy=False)
