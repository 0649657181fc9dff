"""Reads the masks of a Pascal VOC folder, or of a zip archive with one: CVAT's "Segmentation mask 1.1".

The label map beside the masks gives the class of each colour. Object masks are not read.

Legend: H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from pipeline.config import ClassConfig
from pipeline.data.images import OpenImage
from pipeline.data.masks import check_mask, mask_colors
from pipeline.errors import DataError
from pipeline.labeling.cvat.labels import BACKGROUND
from pipeline.labeling.encoding import LabelMap
from pipeline.labeling.exchange import Annotation, DecodedMask, Rejected, classes_of, shown
from pipeline.labeling.unchanged import as_exported, unchanged_proposals
from pipeline.labeling.untrusted.archives import Files, is_zip, open_files, read_file
from pipeline.labeling.untrusted.png import open_png
from pipeline.labeling.voc.label_map import LABEL_MAP_FILE, LONGEST_LABEL_MAP, ColorMap, parse_label_map
from pipeline.labeling.voc.layout import CLASS_MASKS

LONGEST_MASK = 128 << 20
"""Bytes of a mask file."""


def recognises(source: Path) -> bool:
    """Whether a source is a folder with `SegmentationClass` in it, or an archive with one."""
    if source.is_dir():
        return (source / CLASS_MASKS).is_dir()
    with suppress(DataError):
        if is_zip(source):
            with open_files(source) as files:
                return any(map(_below, files.names))
    return False


def read_annotations(source: Path, labels: LabelMap) -> Iterator[Annotation | Rejected]:
    """One annotation for each mask; its archive stays open until the iterator moves to the next.

    Args:
        source: a folder or a zip archive; archives in a folder are read, too. Exported files are left
            out where they are unchanged.

    Raises:
        DataError: it cannot be read (after the readable part has been yielded), or holds no masks.
    """
    for path, files, masks in _opened(source):
        subject = "" if path.is_dir() else f"{shown(path.name)}, "
        for rejection in files.rejected:
            if _below(rejection.subject) is not None:
                yield Rejected(subject + rejection.subject, rejection.reason)
        colors: dict[str, ColorMap | DataError] = {}
        for name in masks:
            yield _annotation(files, name, subject, colors, labels)


def declared_classes(source: Path) -> list[ClassConfig]:
    """The labels of the first label map beside the masks, without the background.

    Raises:
        DataError: it cannot be read, holds no masks, or its label map is not valid.
    """
    for _, files, masks in _opened(source):
        for root in dict.fromkeys(_root(name) for name in masks):
            name = root + LABEL_MAP_FILE
            if name in files.names:
                named = parse_label_map(read_file(files, name, longest=LONGEST_LABEL_MAP))
                return classes_of({label: color for label, color in named if label != BACKGROUND})
    return []


def _root(name: str) -> str:
    """What stands before `SegmentationClass` in a file's path."""
    below = _below(name) or name
    return name[: len(name) - len(below) - len(CLASS_MASKS) - 1]


def _opened(source: Path) -> Iterator[tuple[Path, Files, list[str]]]:
    """The archive; or the folder, and the archives in it: each with its masks, without unchanged exported
    files.

    Raises:
        DataError: one of them is damaged; there are no masks; or all masks are unchanged.
    """
    proposed = unchanged_proposals(source if source.is_dir() else source.absolute().parent)
    paths = [source]
    if source.is_dir():
        paths += sorted(path for path in source.glob("*.zip") if is_zip(path) and not path.is_symlink())
    found = False
    for path in paths:
        if path.resolve() in proposed:
            continue
        with open_files(path) as files:
            masks = [name for name in files.names if _below(name) is not None]
            if path.is_dir() and proposed:
                masks = [name for name in masks if (path / name).resolve() not in proposed]
            if masks or any(_below(rejection.subject) is not None for rejection in files.rejected):
                found = True
                yield path, files, masks
    if not found and proposed:
        raise as_exported(source)
    if not found:
        raise DataError(
            f"{source} holds no masks in {CLASS_MASKS}.",
            "Name the folder above it, or a zip archive with it.",
        )


def _below(name: str) -> str | None:
    """A file's path below `SegmentationClass`; None where it is not below it."""
    parts = PurePosixPath(name).parts
    if CLASS_MASKS not in parts[:-1]:
        return None
    return "/".join(parts[parts.index(CLASS_MASKS) + 1 :])


def _annotation(
    files: Files, name: str, subject: str, colors: dict[str, ColorMap | DataError], labels: LabelMap
) -> Annotation | Rejected:
    below = _below(name) or name
    if PurePosixPath(name).suffix.lower() != ".png":
        return Rejected(subject + shown(name), "It is no PNG.")
    root = _root(name)
    if root not in colors:
        colors[root] = _colors(files, root + LABEL_MAP_FILE, labels)
    return Annotation(
        subject=subject + shown(name),
        image=below,
        read=partial(_read, files, name, colors[root]),
        labeled_at=files.changed(name),
    )


def _colors(files: Files, name: str, labels: LabelMap) -> ColorMap | DataError:
    """The meaning of the masks' colours, by the label map beside them; or the error in that."""
    try:
        if name not in files.names:
            return ColorMap.of(labels)
        return ColorMap.parse(read_file(files, name, longest=LONGEST_LABEL_MAP), labels)
    except DataError as error:
        return error


def _read(files: Files, name: str, colors: ColorMap | DataError, width: int, height: int) -> DecodedMask:
    """The mask [H, W], given the width and height of the image."""
    if isinstance(colors, DataError):
        raise colors
    content = read_file(files, name, longest=LONGEST_MASK)
    return DecodedMask(colors.read(_packed_colors(Path(shown(name)), content, width=width, height=height)))


def _packed_colors(file: Path, content: bytes, *, width: int, height: int) -> npt.NDArray[np.int32]:
    """The colours [H, W] of an untrusted PNG, as numbers; its size is checked before it is decoded."""
    with open_png(content, width=width, height=height) as (picture, stream):
        image = OpenImage(file, stream, stream, picture)
        check_mask(file, image, size=None)
        return mask_colors(file, image)
