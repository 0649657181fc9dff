"""What the masks hold: every mask is read before ingest stores anything, and counted by class.

A value that is read as another class than its annotator meant shows in these counts: a class that no pixel
has, values that are none, or a class that is taken for "not labeled".
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from db.tables import Image
from pipeline.config import IGNORE, DataConfig
from pipeline.data.images import IMAGE_ENDINGS
from pipeline.data.masks import MASK_ENDINGS, UnknownValues, mask_sha256, read_mask
from pipeline.data.project import Project
from pipeline.data.rendered_masks import RENDERED_FOLDER, mask_codec
from pipeline.data.sources import SYSTEM_FOLDERS, Found, as_text, mask_path
from pipeline.errors import DataError
from pipeline.format import agree, count, counted, out_of, percent
from pipeline.steps.ingest.label_files import FileLabel, LabelFiles

_EXAMPLES = 3
_LISTED = 8


@dataclass(frozen=True)
class FoundMask:
    """The mask file of an image.

    Attributes:
        uri: of the file.
        size: width and height of the mask.
        classes: the indices of the classes that it shows.
        sha256: of its size and pixels, as `mask_sha256`.
        problem: why it cannot be used; empty where it can.
    """

    uri: str
    size: tuple[int, int] = (0, 0)
    classes: tuple[int, ...] = ()
    sha256: str = ""
    problem: str = ""


@dataclass(frozen=True)
class _Counted:
    """A mask that was read: pixels by class index, int64 [256], or the values that are no class."""

    mask: FoundMask
    pixels: npt.NDArray[np.int64] | None = None
    unknown: UnknownValues | None = None


class MaskCensus:
    """The masks that lie beside images, and those that were made from label files, each read once.

    Args:
        files: what the label files say.
        again: read those, too, that the store knows as they are.

    Attributes:
        masks: by the image's URI; only those that were read.
        gone: the URIs of masks that the store knows and that are no longer there.
    """

    def __init__(self, project: Project, files: LabelFiles, *, again: bool = False) -> None:
        self._project = project
        self._files = files
        self._again = again
        self._codec = mask_codec(project)
        self._image_of: dict[str, str] = {}
        self._pixels = np.zeros(256, dtype=np.int64)
        self._images = np.zeros(256, dtype=np.int64)
        self._unknown: Counter[str] = Counter()
        self._known_beside: set[int] = set()
        self._unclear: list[str] = []
        self._read = 0
        self._lacking = 0
        self._mixed = False
        self.masks: dict[str, FoundMask] = {}
        self.gone: list[str] = []
        self._undrawn: list[str] = []

    def look(self, batch: Sequence[Found], known: Mapping[str, Image], threads: Executor) -> None:
        """Read the masks of some files that the store does not know as they are."""
        beside: list[tuple[Found, Path]] = []
        for found in batch:
            path, image = mask_path(self._project, found), known.get(found.uri)
            self._mixed = self._mixed or self._lies_among_masks(found)
            written = self._files.of(found.uri)
            if len(written) + (path is not None) > 1:
                self._refuse_two(found, path, written)
            elif written:
                self._look_at(written[0], found, image, beside)
            elif path is None:
                self._lacking += 1
                self._look_for(image)
            elif not self._is_shared(found, path) and self._is_to_read(path, image):
                beside.append((found, path))
        counts = threads.map(lambda pair: self._count(pair[1]), beside)
        for (found, _), result in zip(beside, counts, strict=True):
            self._add(found, result)

    def refuse_unclear(self) -> None:
        """Refuse masks whose values do not mean what the configuration says.

        Raises:
            DataError: there are values that are neither a class nor ignored; 255 is ignored, and the only
                other value beside 0; or a class that `data.absent_classes` does not list has no pixel.
        """
        config = self._project.config.data
        if self._files.unknown is not None:
            raise self._files.unknown
        if self._unknown:
            fitting = self._pixels[: config.num_classes].any()
            raise _unknown_values(
                config, self._unknown, self._known_beside, self._unclear, self._read, fitting=bool(fitting)
            )
        missing = [
            index
            for index, item in enumerate(config.classes)
            if not self._pixels[index] and item.name not in config.absent_classes
        ]
        if self._read and missing:
            raise self._absent(config, missing)

    def warnings(self) -> list[str]:
        """What became of masks that were read before, as text."""
        undrawn: list[str] = []
        if self._undrawn:
            have = agree(len(self._undrawn), "is", "are")
            undrawn.append(
                f"{counted(len(self._undrawn), 'image')} {have} no longer in `data.labels`, such as "
                f"{self._undrawn[0]}. What was read of {agree(len(self._undrawn), 'it', 'them')} stays."
            )
        if not self.gone:
            return undrawn
        several = len(self.gone) > 1
        subject = (
            f"{count(len(self.gone))} masks that were read are" if several else "A mask that was read is"
        )
        examples = ", ".join(self.gone[:_EXAMPLES])
        return [
            *undrawn,
            f"{subject} gone: {examples}{' and others' if len(self.gone) > _EXAMPLES else ''}. Labels that "
            "were read from masks stay, but no model is measured on a held-out image without its mask. Put "
            f"{'them' if several else 'it'} back.",
        ]

    def unclaimed(self) -> list[str]:
        """A line on the files of `data.masks` that are called after no image, where images lack a mask. None
        where images lie among them."""
        masks = self._project.config.data.masks
        if masks is None or not self._lacking or self._mixed:
            return []
        number, examples = 0, list[str]()
        for folder, folders, names in os.walk(os.path.normpath(self._project.path(masks))):
            folders[:] = sorted(set(folders) - SYSTEM_FOLDERS)
            for name in sorted(names):
                path = os.path.join(folder, name)
                is_picture = os.path.splitext(name)[1].lower() in IMAGE_ENDINGS | MASK_ENDINGS
                if is_picture and not name.startswith(".") and path not in self._image_of:
                    number += 1
                    examples += [as_text(self._project.uri(Path(path)))] if len(examples) < _EXAMPLES else []
        if not number:
            return []
        others = " and others" if number > len(examples) else ""
        named = (
            f"{counted(number, 'picture')} in `data.masks` {agree(number, 'is', 'are')} the mask of no image"
        )
        return [
            f"{named}: {', '.join(examples)}{others}. A mask is called "
            f"`{self._project.config.data.mask_template}` after its image, as `data.mask_template` says."
        ]

    def lines(self) -> list[str]:
        """A table: each class with its pixels, their share of all, and the images that have it."""
        if not self._read:
            return []
        config, total = self._project.config.data, max(1, int(self._pixels.sum()))
        names = [*config.class_names, "not labeled"]
        rows = [("class", "pixels", "share", "images")] + [
            (name, count(int(self._pixels[at])), percent(self._pixels[at] / total), str(self._images[at]))
            for name, at in zip(names, (*range(config.num_classes), IGNORE), strict=True)
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return [f"Masks read: {self._read}."] + [
            f"  {row[0]:<{widths[0]}}"
            + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
            for row in rows
        ]

    def _lies_among_masks(self, found: Found) -> bool:
        masks = self._project.config.data.masks
        return masks is not None and Path(str(found.path)).is_relative_to(self._project.path(masks))

    def _look_for(self, image: Image | None) -> None:
        if image is None or not image.mask_uri:
            return
        path = self._project.path(image.mask_uri)
        if not path.exists():
            self.gone.append(image.mask_uri)
        elif path.is_relative_to(self._project.workdir / RENDERED_FOLDER):
            self._undrawn.append(image.uri)

    def _look_at(
        self, written: FileLabel, found: Found, image: Image | None, beside: list[tuple[Found, Path]]
    ) -> None:
        """Have a mask that was made from a label file read, unless the store knows it: its name is a hash of
        its content."""
        if written.mask is None:
            self.masks[found.uri] = FoundMask(f"{written.file}: {found.uri}", problem=written.problem)
        elif self._again or image is None or image.mask_uri != self._project.uri(written.mask):
            beside.append((found, written.mask))

    def _refuse_two(self, found: Found, path: Path | None, written: Sequence[FileLabel]) -> None:
        """Refuse the masks of an image that has more than one."""
        if path is not None:
            self._image_of.setdefault(str(path), found.uri)
        places = [*([as_text(self._project.uri(path))] if path else []), *(one.file for one in written)]
        self.masks[found.uri] = FoundMask(
            places[0],
            problem=f"{as_text(found.uri)} has its mask in {' and in '.join(places)}. Leave one of them.",
        )

    def _is_to_read(self, path: Path, image: Image | None) -> bool:
        """Whether the store does not know this mask as it is, or all are read."""
        if self._again or image is None or image.mask_uri != as_text(self._project.uri(path)):
            return True
        return changed_since(path, image.ingested_at)

    def _is_shared(self, found: Found, path: Path) -> bool:
        """Whether another image has this mask, too: then it is neither's."""
        first = self._image_of.setdefault(str(path), found.uri)
        if first == found.uri:
            return False
        uri = as_text(self._project.uri(path))
        reason = (
            f"The mask {uri} belongs to two images, {as_text(first)} and {as_text(found.uri)}. "
            "Rename one of them and its mask, or remove one."
        )
        for image in (first, found.uri):
            self.masks[image] = FoundMask(uri, problem=reason)
        return True

    def _count(self, path: Path) -> _Counted:
        uri = as_text(self._project.uri(path))
        try:
            mask = read_mask(path, self._codec, size=None)
        except UnknownValues as error:
            return _Counted(FoundMask(uri, problem=str(error)), unknown=error)
        except DataError as error:
            return _Counted(FoundMask(uri, problem=str(error)))
        pixels = np.bincount(mask.ravel(), minlength=256)
        classes = tuple(np.flatnonzero(pixels[:IGNORE]).tolist())
        size = (mask.shape[1], mask.shape[0])
        return _Counted(FoundMask(uri, size, classes, mask_sha256(mask)), pixels)

    def _add(self, found: Found, read: _Counted) -> None:
        if found.uri in self.masks:  # shared with another image of this batch
            return
        self.masks[found.uri] = read.mask
        if read.unknown is not None:
            self._unknown.update(read.unknown.counts)
            self._known_beside |= read.unknown.classes
            self._unclear.append(read.mask.uri)
        if read.pixels is not None:
            self._pixels += read.pixels
            self._images += read.pixels > 0
        self._read += read.pixels is not None or read.unknown is not None

    def _absent(self, config: DataConfig, missing: Sequence[int]) -> DataError:
        table = "\n".join(self.lines())
        ids = [index if item.id is None else item.id for index, item in enumerate(config.classes)]
        names = [config.class_names[index] for index in missing]
        present = {ids[index] for index in range(config.num_classes) if self._pixels[index]}
        if present <= {0} and self._pixels[IGNORE] and IGNORE in config.ignore_index:
            rest = [value for value in config.ignore_index if value != IGNORE]
            return DataError(
                f"The masks hold only 0 and 255, and 255 means not labeled, so {_and(names)} has no pixel.\n"
                f"{table}",
                f"If 255 is a class, write `{{name: {names[-1]}, id: 255}}` into `data.classes` and "
                f"`ignore_index: {rest}`. If 255 is void and the class comes later, write "
                f"`absent_classes: [{', '.join(names)}]` into `data`.",
            )
        if config.labels and all(entry.unlabeled == "ignore" for entry in config.labels):
            return DataError(
                f"No mask has a pixel of {_and(names)}.\n{table}",
                f"If pixels where nothing is drawn are {names[0]}, write `unlabeled: {names[0]}` into the "
                "entry of `data.labels`. Else correct `data.classes`, or, if no image shows the class yet, "
                f"write `absent_classes: [{', '.join(names)}]` into `data`.",
            )
        return DataError(
            f"No mask has a pixel of {_and(names)}.\n{table}",
            "Correct `id` or `color` in `data.classes`, or `data.ignore_index`. If no image shows the class "
            f"yet, write `absent_classes: [{', '.join(names)}]` into `data`.",
        )


def changed_since(path: Path, at: datetime) -> bool:
    """Whether a file, or what it is called, has changed since a time; False where it is gone."""
    try:
        stat = path.stat()
    except OSError:
        return False
    return max(stat.st_mtime, stat.st_ctime) > at.timestamp()


def _unknown_values(
    config: DataConfig,
    unknown: Counter[str],
    beside: set[int],
    unclear: Sequence[str],
    read: int,
    *,
    fitting: bool,
) -> DataError:
    """The error for values or colours that are no class.

    Args:
        fitting: whether the other masks have values that are classes: then other ids would not fit these.
    """
    ranked = unknown.most_common()
    listed = ", ".join(f"{value} ({count(pixels)} px)" for value, pixels in ranked[:_LISTED])
    more = f" and {len(ranked) - _LISTED} more" if len(ranked) > _LISTED else ""
    problem = (
        f"{out_of(len(unclear), read, 'mask')} {agree(len(unclear), 'holds', 'hold')} values that are "
        f"neither a class nor ignored: {listed}{more}. "
        f"For example {', '.join(unclear[:_EXAMPLES])}."
    )
    colors = any(value.startswith("(") for value in unknown)
    if colors:
        return DataError(
            problem,
            "Give each class its `color` in `data.classes`, add the others to `data.ignore_color`, or "
            "correct the masks.",
        )
    ids = [index if item.id is None else item.id for index, item in enumerate(config.classes)]
    values = sorted({int(value) for value in unknown} | {ids[index] for index in beside})
    if len(values) == config.num_classes and values != sorted(ids) and not fitting:
        entries = ", ".join(
            f"{{name: {item.name}, id: {value}}}" for item, value in zip(config.classes, values, strict=True)
        )
        void = [value for value in config.ignore_index if value not in values]
        ignored = "" if void == config.ignore_index else f" and `ignore_index: {void}`"
        return DataError(
            problem, f"If these are the classes in their order, write `classes: [{entries}]`{ignored}."
        )
    ignored = sorted({*config.ignore_index, *map(int, unknown)})[:_LISTED]
    return DataError(
        problem,
        f"The ids of `data.classes` are {', '.join(map(str, ids))}. Correct them, or add values that mean "
        f"nothing to `data.ignore_index`, such as `ignore_index: {ignored}`; or correct the masks.",
    )


def _and(names: Sequence[str]) -> str:
    shown = [*names[:_LISTED], *([f"{len(names) - _LISTED} more"] if len(names) > _LISTED else [])]
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]
