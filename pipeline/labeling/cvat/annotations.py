"""Reads "CVAT for images 1.1": the XML that CVAT exports, as it is or in a zip archive.

The source is untrusted: a file names the image and the class of a shape, and both are looked up.

Legend: H height, W width.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from pipeline.config import ClassConfig
from pipeline.errors import DataError
from pipeline.files import open_plain
from pipeline.labeling.cvat.document import ANNOTATIONS
from pipeline.labeling.cvat.labels import LOOK_HERE, meanings
from pipeline.labeling.cvat.pieces import parse_runs
from pipeline.labeling.encoding import LabelMap
from pipeline.labeling.exchange import (
    Annotation,
    DecodedMask,
    Rejected,
    aware_time,
    check_size,
    class_named,
    classes_of,
    shown,
)
from pipeline.labeling.unchanged import without_unchanged
from pipeline.labeling.untrusted.archives import Files, is_zip, open_files
from pipeline.labeling.untrusted.canvas import Canvas
from pipeline.labeling.untrusted.coco_shapes import read_shape
from pipeline.labeling.untrusted.xml_elements import Element, TooLarge, iter_elements

LARGEST_DOCUMENT = 16 << 30
"""Bytes of XML in an archive."""
MOST_POINTS = 100_000
"""Points of a polygon."""

_FIRST_BYTES = 1 << 12
_BEGINS = re.compile(rb"<annotations[\s>]")
_HEX = re.compile("#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})")
_WHOLE = re.compile(r"(-?[0-9]{1,9})(?:\.0+)?")
_OTHERS = frozenset({"box", "polyline", "points", "ellipse", "cuboid", "skeleton"})
_WANTED = frozenset({"meta", "image", "track"})
_REMEDY = "Export it from CVAT again."
_NO_ANNOTATIONS = (
    'Export the task from CVAT in the format "CVAT for images 1.1", and name that file, or put it into the '
    "folder."
)


def recognises(source: Path) -> bool:
    """Whether it looks like CVAT's XML, an archive with it, or a folder that was exported for CVAT."""
    if source.is_dir():
        return any(map(_is_document, source.glob("*.xml")))
    if is_zip(source):
        with suppress(DataError), open_files(source) as files:
            return next(_members(files), None) is not None
        return False
    return _is_document(source)


def read_annotations(source: Path, labels: LabelMap) -> Iterator[Annotation | Rejected]:
    """One annotation for each image.

    Args:
        source: a file; or an exported folder into which CVAT's files were put. Exported files are left out
            where they are unchanged.

    Raises:
        DataError: it cannot be read (after the readable part has been yielded), or holds no annotations.
    """
    found = False
    for subject, stream in _documents(source):
        if isinstance(stream, Rejected):
            yield stream
            continue
        document = _Document(subject)
        for element in iter_elements(stream, _WANTED):
            found = True
            annotation = document.annotation(element, labels)
            if annotation is not None:
                yield annotation
    if not found:
        raise DataError(f"{source} holds no annotations.", _NO_ANNOTATIONS)


def declared_classes(source: Path) -> list[ClassConfig]:
    """The labels of the tasks, with their colours, without the label of the boxes that show where to look.

    Raises:
        DataError: it cannot be read.
    """
    colors: dict[str, tuple[int, int, int] | None] = {}
    for _, stream in _documents(source):
        if isinstance(stream, Rejected):
            continue
        for element in iter_elements(stream, frozenset({"meta"})):
            if isinstance(element, Element):
                for name, color in _labels(element):
                    colors.setdefault(name, color)
    colors.pop(LOOK_HERE, None)
    return classes_of(colors)


@dataclass(frozen=True)
class _Task:
    """A task, as a document describes it."""

    identifier: str
    created: str
    updated: datetime | None
    annotator: str | None


class _Document:
    """A document that is read element by element: its tasks come before its images."""

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._tasks: dict[str, _Task] = {}
        self._only: _Task | None = None
        self._tracks = False

    def annotation(self, element: Element | TooLarge, labels: LabelMap) -> Annotation | Rejected | None:
        """The annotation of an image element; None for an element about tasks."""
        if element.tag == "meta" and isinstance(element, Element):
            self._tasks |= {task.identifier: task for task in _tasks(element)}
            self._only = next(iter(self._tasks.values())) if len(self._tasks) == 1 else None
        name = element.attributes.get("name", "")
        if element.tag == "track":
            first, self._tracks = not self._tracks, True
            why = 'It has tracks of a video. Export it in the format "CVAT for images 1.1".'
            return Rejected(f"{self._subject}, line {element.line}", why) if first else None
        if element.tag != "image":
            return None
        subject = f"{self._subject}, image {shown(name)}" if name else f"{self._subject}, line {element.line}"
        if isinstance(element, TooLarge):
            return Rejected(subject, element.reason)
        if not name:
            return Rejected(subject, "Its image has no name.")
        task = self._tasks.get(element.attributes.get("task_id", ""), self._only)
        return Annotation(
            subject=subject,
            image=name,
            read=partial(_paint, element, labels),
            annotator=None if task is None else task.annotator,
            labeled_at=None if task is None else task.updated,
            origin=None if task is None else shown(f"{name} of task {task.identifier} of {task.created}"),
        )


def _members(files: Files) -> Iterator[str]:
    """The documents of an archive: valid ones of any name, and damaged ones of CVAT's own name."""
    for name in files.names:
        if PurePosixPath(name).name == ANNOTATIONS:
            yield name
        elif PurePosixPath(name).suffix.lower() == ".xml":
            with suppress(DataError), files.open(name, longest=LARGEST_DOCUMENT) as stream:
                if _BEGINS.search(stream.read(_FIRST_BYTES)) is not None:
                    yield name


def _documents(source: Path) -> Iterator[tuple[str, BinaryIO | Rejected]]:
    """The documents of a source: its files, and those of the archives among them. Each can be read until the
    iterator moves to the next."""
    for file in _files(source):
        subject = shown(file.name)
        try:
            if not is_zip(file):
                with open_plain(file) as stream:
                    yield subject, stream
                continue
            with open_files(file) as files:
                yield from ((subject, one) for one in files.rejected if one.subject.endswith(".xml"))
                for name in list(_members(files)):
                    yield f"{subject}, {shown(name)}", files.open(name, longest=LARGEST_DOCUMENT)
        except OSError as error:
            raise DataError(f"{file} cannot be read.", "Name the file that was exported.") from error


def _files(source: Path) -> list[Path]:
    found = [source]
    if source.is_dir():
        found = sorted(
            path
            for path in source.iterdir()
            if path.suffix.lower() in (".xml", ".zip") and path.is_file() and not path.is_symlink()
        )
    return without_unchanged(source, found, folder=source if source.is_dir() else source.absolute().parent)


def _is_document(path: Path) -> bool:
    if path.suffix.lower() != ".xml" or not path.is_file():
        return False
    with open_plain(path) as stream:
        return _BEGINS.search(stream.read(_FIRST_BYTES)) is not None


def _tasks(meta: Element) -> Iterator[_Task]:
    """The tasks of a document, which is that of a task, a job, or a project with its tasks."""
    for holder in meta.children:
        tasks = holder.child("tasks")
        for task in [holder] if tasks is None else tasks.children:
            identifier, assignee = task.text_of("id"), task.child("assignee")
            if task.tag in ("task", "job") and identifier is not None:
                username = None if assignee is None else assignee.text_of("username")
                yield _Task(
                    identifier=identifier,
                    created=task.text_of("created") or "",
                    updated=aware_time(task.text_of("updated")),
                    annotator=None if username is None else shown(username),
                )


def _labels(meta: Element) -> Iterator[tuple[str, tuple[int, int, int] | None]]:
    """The labels of a task, job or project, with their colours."""
    for holder in meta.children:
        labels = holder.child("labels")
        for label in labels.children if labels is not None else ():
            name, color = label.text_of("name"), _HEX.fullmatch(label.text_of("color") or "")
            if name is not None:
                red, green, blue = (int(part, 16) for part in color.groups()) if color else (0, 0, 0)
                yield name, (red, green, blue) if color else None


def _paint(image: Element, labels: LabelMap, width: int, height: int) -> DecodedMask:
    """The mask [H, W] of an image, given its width and height."""
    stated = image.attributes.get("width"), image.attributes.get("height")
    check_size(stated, str(width), str(height))
    canvas, classes = Canvas(width=width, height=height), meanings(labels.names) | labels.aliases
    shapes = [(_z_order(shape), shape) for shape in image.children if _is_shape(shape)]
    for _, shape in sorted(shapes, key=lambda pair: pair[0]):  # stable: among equals, the later is on top
        index = class_named(shape.attributes.get("label", ""), classes)
        if shape.tag == "mask":
            box, runs = _mask(shape, width=width, height=height)
            canvas.paint_box(runs, index, **box)
        else:
            canvas.paint(read_shape([_points(shape)], width=width, height=height), index)
    return canvas.decoded()


def _is_shape(element: Element) -> bool:
    """Whether it paints a class; not so a tag, or a box that shows where to look."""
    label = element.attributes.get("label", "")
    if element.tag in _OTHERS and not (label == LOOK_HERE and element.tag == "box"):
        raise DataError(
            f"It has a shape of the kind {element.tag}, of the label {shown(label)!r}.",
            "Paint masks, or draw polygons.",
        )
    return element.tag in ("mask", "polygon")


def _mask(shape: Element, *, width: int, height: int) -> tuple[dict[str, int], npt.NDArray[np.int64]]:
    """The box of a mask, inside an image of this size, and the runs that fill the box."""
    left, top, box_width, box_height = (_whole(shape, key) for key in ("left", "top", "width", "height"))
    if box_width < 1 or box_height < 1:
        raise DataError("It has a mask without a size.", _REMEDY)
    if min(left, top) < 0 or left + box_width > width or top + box_height > height:
        raise DataError("It has a mask that is not inside the image.", _REMEDY)
    runs = parse_runs(shape.attributes.get("rle", ""), width=box_width, height=box_height)
    return {"left": left, "top": top, "width": box_width}, runs


def _points(shape: Element) -> list[float]:
    """The points of a polygon, x and y in turn."""
    text = shape.attributes.get("points", "")
    if text.count(";") >= MOST_POINTS:
        raise DataError(f"It has a polygon of more than {MOST_POINTS} points.", _REMEDY)
    try:
        pairs = [(float(x), float(y)) for x, y in (pair.split(",") for pair in text.split(";"))]
    except ValueError as error:
        raise DataError("It has a polygon whose points are none.", _REMEDY) from error
    values = [value for pair in pairs for value in pair]
    if len(pairs) < 3 or not all(map(math.isfinite, values)):
        raise DataError("It has a polygon whose points are none.", _REMEDY)
    return values


def _z_order(shape: Element) -> int:
    return _whole(shape, "z_order") if "z_order" in shape.attributes else 0


def _whole(shape: Element, key: str) -> int:
    match = _WHOLE.fullmatch(shape.attributes.get(key, ""))
    if match is None:
        raise DataError(f"It has a shape whose {key} is no whole number.", _REMEDY)
    return int(match[1])
