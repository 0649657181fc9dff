"""The positions of images and their annotations in a COCO file of any size.

The file is read twice: once to index it, and once, image by image, for its content. The index takes a few
numbers for each image and annotation.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError
from pipeline.files import open_plain
from pipeline.labeling.exchange import Rejected, UnknownClass, shown
from pipeline.labeling.untrusted.json_items import Item, iter_items, load_item

MOST_IMAGES = 1_000_000
MOST_ANNOTATIONS = 5_000_000
MOST_CATEGORIES = 10_000

LONGEST_ITEM = 1 << 24
"""Bytes of an annotation."""

LONGEST_ENTRY = 1 << 16
"""Bytes of an image's or a category's entry."""

_LARGEST_ID = 1 << 53
_LONGEST_NAME = 1000

_SPLIT = "Split the file."
_AGAIN = "Export it again."


@dataclass(frozen=True)
class CocoImage:
    """An image's entry; `key` is the image's id in the database where the entry has it, else its name.
    `index` is its position in the file."""

    index: int
    key: int | str
    name: str
    width: int
    height: int
    queue: str | None
    sha256: str | None


class _Positions:
    """The positions of items: an id and more numbers for each, in the order of the file."""

    def __init__(self, what: str, *, most: int, columns: int) -> None:
        self._what = what
        self._most = most
        self._columns = columns
        self._numbers = array("q")

    def add(self, *numbers: int) -> None:
        if len(self._numbers) >= self._most * self._columns:
            raise DataError(f"It has more than {self._most} {self._what}.", _SPLIT)
        self._numbers.extend(numbers)

    def table(self) -> npt.NDArray[np.int64]:
        return np.array(self._numbers, dtype=np.int64).reshape(-1, self._columns)


class CocoIndex:
    """The index of one file. `scan` must be read to its end first.

    Attributes:
        categories: names by id.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.categories: dict[int, str] = {}
        self._images = np.zeros((0, 4), dtype=np.int64)
        """Columns: id, offset, length, a hash of the key."""
        self._annotations = np.zeros((0, 3), dtype=np.int64)
        """Columns: the image's id, offset, length; sorted by id, in the file's order for one id."""

    def scan(self) -> Iterator[Rejected]:
        """Index the file; yield the items that cannot be used.

        Raises:
            DataError: it is no COCO file, is damaged anywhere, or has more items than allowed.
        """
        images = _Positions("images", most=MOST_IMAGES, columns=4)
        annotations = _Positions("annotations", most=MOST_ANNOTATIONS, columns=3)
        for item in coco_items(self.path):
            try:
                if item.key == "images":
                    self._note_image(item, images)
                elif item.key == "categories":
                    self._note_category(item)
                elif item.key == "annotations":
                    id_ = _id(_fields(item, longest=LONGEST_ITEM), "image_id")
                    annotations.add(id_, item.offset, item.length)
            except _Unusable as error:
                yield Rejected(_subject(item), str(error))
        self._images = images.table()
        if not len(self._images):
            raise DataError("It lists no images that can be used.", _AGAIN)
        found = annotations.table()
        self._annotations = found[np.argsort(found[:, 0], kind="stable")]

    def images(self) -> Iterator[CocoImage | Rejected]:
        """The images that have annotations, in the order of the file, and the rejected ones: images with
        the same id or the same name are rejected."""
        twice_by_id, twice_by_key = _repeated(self._images[:, 0]), _repeated(self._images[:, 3])
        begins, ends = self._slices(self._images[:, 0])
        with open_plain(self.path) as stream:
            for index in np.flatnonzero(ends > begins).tolist():
                _, offset, length, _ = self._images[index].tolist()
                try:
                    image = _image(_read(stream, offset, length), index)
                except DataError as error:
                    yield Rejected(f"images, byte {offset}", str(error))
                    continue
                if twice_by_id[index] or twice_by_key[index]:
                    reason = "Another image of the file has the same id, or the same name."
                    yield Rejected(shown(image.key), reason)
                    continue
                yield image
        yield from self._strays()

    def annotations(self, image: CocoImage) -> Iterator[dict[str, Any]]:
        """The annotations of an image, in the order of the file.

        Raises:
            DataError: the file has changed since the scan.
        """
        begins, ends = self._slices(self._images[image.index : image.index + 1, 0])
        with open_plain(self.path) as stream:
            for _, offset, length in self._annotations[int(begins[0]) : int(ends[0])].tolist():
                yield _read(stream, offset, length)

    def class_of(self, annotation: dict[str, Any], classes: Mapping[str, int]) -> int:
        """The index of an annotation's class, by the name of the annotation's category.

        Raises:
            DataError: there is no such category, or no such class.
        """
        id_ = _id(annotation, "category_id")
        name = self.categories.get(id_)
        if name is None:
            raise DataError(f"There is no category {id_}.", _AGAIN)
        if name not in classes:
            raise UnknownClass(f"There is no class {shown(name)!r}.", "Use the classes of `data.classes`.")
        return classes[name]

    def _slices(self, ids: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        sorted_ids = self._annotations[:, 0]
        return np.searchsorted(sorted_ids, ids, "left"), np.searchsorted(sorted_ids, ids, "right")

    def _strays(self) -> Iterator[Rejected]:
        known = np.isin(self._annotations[:, 0], self._images[:, 0])
        for id_, count in zip(*np.unique(self._annotations[~known, 0], return_counts=True), strict=True):
            yield Rejected(f"annotations of image {id_}", f"There is no image {id_} for {count} of them.")

    def _note_image(self, item: Item, images: _Positions) -> None:
        fields = _fields(item, longest=LONGEST_ENTRY)
        key = _image(fields, 0).key
        images.add(_id(fields, "id"), item.offset, item.length, hash((type(key), key)))

    def _note_category(self, item: Item) -> None:
        fields = _fields(item, longest=LONGEST_ENTRY)
        id_, name = _id(fields, "id"), fields.get("name")
        if not _is_text(name):
            raise _Unusable("It has no name.", _AGAIN)
        if self.categories.get(id_, name) != name:
            raise DataError(f"There are two categories {id_}.", _AGAIN)
        if len(self.categories) >= MOST_CATEGORIES:
            raise DataError(f"It has more than {MOST_CATEGORIES} categories.", _AGAIN)
        self.categories[id_] = name


class _Unusable(DataError):
    """An item is invalid."""


def coco_items(path: Path) -> Iterator[Item]:
    """The items of a COCO file.

    Raises:
        DataError: it is no COCO file.
    """
    with open_plain(path) as stream:
        for item in iter_items(stream, longest=LONGEST_ITEM, members=True):
            if item.key is None:
                raise DataError("It is no COCO file, that is, an object with lists.", _AGAIN)
            if item.listed or item.key not in ("images", "annotations", "categories"):
                yield item
            else:
                raise DataError(f"Its `{item.key}` is no list.", _AGAIN)


def categories(path: Path) -> Iterator[tuple[str, tuple[int, int, int] | None]]:
    """The names of a COCO file's categories, in their order, with their colours where they have any.

    Raises:
        DataError: it is no COCO file.
    """
    for item in coco_items(path):
        if item.key == "categories":
            with suppress(DataError):
                fields = _fields(item, longest=LONGEST_ENTRY)
                if _is_text(name := fields.get("name")):
                    yield name, _color(fields.get("color"))


def _color(value: object) -> tuple[int, int, int] | None:
    if not isinstance(value, list) or len(value) != 3:
        return None
    if not all(type(one) is int and 0 <= one <= 255 for one in value):
        return None
    return value[0], value[1], value[2]


def _read(stream: Any, offset: int, length: int) -> dict[str, Any]:
    stream.seek(offset)
    fields = load_item(stream.read(length))
    if not isinstance(fields, dict):
        raise DataError("The file has changed while it was read.", "Import it again.")
    return fields


def _fields(item: Item, *, longest: int) -> dict[str, Any]:
    if item.content is None or item.length > longest:
        raise _Unusable(f"It is longer than {longest} bytes.", _AGAIN)
    try:
        fields = load_item(item.content)
    except DataError as error:
        raise _Unusable(error.problem, error.remedy) from error
    if not isinstance(fields, dict):
        raise _Unusable("It is no object.", _AGAIN)
    return fields


def _subject(item: Item) -> str:
    """What a report calls an item: the name of its image, or its list and place in the file."""
    name = None
    with suppress(DataError):
        name = _fields(item, longest=LONGEST_ENTRY).get("file_name")
    return f"{item.key}: {shown(name)}" if _is_text(name) else f"{item.key}, byte {item.offset}"


def _id(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    if type(value) is not int or not 0 <= value < _LARGEST_ID:
        wrong = "is no whole number"
        if value is None:
            wrong = "is missing"
        elif type(value) is int:
            wrong = "is negative" if value < 0 else "is larger than a number of 63 bits"
        raise _Unusable(f"Its `{name}` {wrong}.", _AGAIN)
    return value


def _image(fields: dict[str, Any], index: int) -> CocoImage:
    name, id_ = fields.get("file_name"), fields.get("segcurate_image_id")
    if not _is_text(name):
        raise _Unusable("It has no name.", _AGAIN)
    key = id_ if type(id_) is int and 0 <= id_ < _LARGEST_ID else name
    queue, sha256 = fields.get("queue"), fields.get("sha256")
    is_digest = isinstance(sha256, str) and re.fullmatch(r"[0-9a-f]{64}", sha256)
    return CocoImage(
        index=index,
        key=key,
        name=name,
        width=_id(fields, "width"),
        height=_id(fields, "height"),
        queue=queue if _is_text(queue) else None,
        sha256=sha256 if is_digest else None,
    )


def _is_text(value: object) -> TypeGuard[str]:
    """Whether it can be looked up in a database: half of a surrogate pair, or a NUL, cannot."""
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_NAME or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _repeated(values: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return counts[inverse] > 1
