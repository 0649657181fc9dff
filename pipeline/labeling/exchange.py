"""The exchange with a labeling tool, the same for every tool: queues go out, annotations are imported.

A tool is a module with a writer and a reader. The writer gets the images of a queue one by one, in the order
of their ranks, and keeps none of them. The reader gets untrusted files: it yields an annotation for every
image and annotator, or a rejection. Time and memory are bounded whatever the source contains. Neither of
the two uses the database; the steps do.

Legend: H height, W width. A mask is uint8 [H, W] of the upright image: class index, or 255 where
no class is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pipeline.config import ClassConfig
from pipeline.data.masks import Mask
from pipeline.errors import DataError
from pipeline.labeling.encoding import LabelMap
from pipeline.labeling.outgoing import OutgoingQueue
from pipeline.labeling.queue_writer import QueueWriter


class UnknownClass(DataError):
    """A name in a source is no class of the project."""


class DecodedMask(NamedTuple):
    """A mask, and the number of pixels that shapes of different classes cover: the later shape has them."""

    mask: Mask
    overlapping: int = 0


@dataclass(frozen=True)
class Annotation:
    """The annotation of one image by one annotator.

    Attributes:
        subject: its location for the report: a file, or a task of a file.
        image: the image's id, or its name in the source.
        read: decodes the mask, given the image's width and height; raises a DataError where the source states
            another size, or something invalid. It must be called before the next annotation is read.
        queue: the queue's name, where the source states it.
        sha256: of the image file, where the source states it.
        annotator: who drew it, where the source states it.
        labeled_at: aware; None where the source does not state it.
        seconds: spent on it, where the tool has measured them.
        skipped: the annotator has skipped the image; `read` is not called then.
        origin: the tool's identifier of this annotation, so that a later state of it is its next version.
        name: the image's name in the source, where `image` is its id.
    """

    subject: str
    image: int | str
    read: Callable[[int, int], DecodedMask]
    queue: str | None = None
    sha256: str | None = None
    annotator: str | None = None
    labeled_at: datetime | None = None
    seconds: float | None = None
    skipped: bool = False
    origin: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Rejected:
    """A part of a source that is not imported, and why. Both texts may contain untrusted parts."""

    subject: str
    reason: str


@dataclass(frozen=True)
class Tool:
    """A labeling tool's format.

    Attributes:
        name: the value of `--to` and `--from`.
        title: the tool's own name.
        writer: opens a writer for an empty folder.
        read: the annotations of a file or folder, which is read once.
        recognises: whether `read` can probably read a file or folder; only the first bytes are read.
        classes: the classes that a source names, with their colours where it has any; empty where it names
            none. None for a format without names.
    """

    name: str
    title: str
    writer: Callable[[Path, OutgoingQueue], QueueWriter]
    read: Callable[[Path, LabelMap], Iterator[Annotation | Rejected]]
    recognises: Callable[[Path], bool]
    classes: Callable[[Path], list[ClassConfig]] | None = None


LONGEST_CLASS = 100
"""Characters of a class name."""
LONGEST_TEXT = 200
"""Characters of untrusted text in a report."""


def shown(text: object) -> str:
    """Untrusted text for a report: one short line without control characters.

    >>> shown("a\\x1b[31m\\nb")
    'a\\\\x1b[31m\\\\x0ab'
    """
    plain = "".join(
        character if character.isprintable() else f"\\x{ord(character):02x}"
        for character in str(text)[: LONGEST_TEXT + 1]
    )
    return plain if len(plain) <= LONGEST_TEXT else plain[:LONGEST_TEXT] + "…"


def check_size(stated: tuple[object, object], width: object, height: object) -> None:
    """Compare the width and height that an untrusted source states with those of the image.

    Raises:
        DataError: they differ.
    """
    if stated != (width, height):
        raise DataError(
            f"The mask has {shown(stated[0])}×{shown(stated[1])} pixels, and the image {width}×{height}.",
            "Label the image that was exported.",
        )


def class_named(label: object, classes: Mapping[str, int]) -> int:
    """The index of the class that an untrusted label names.

    Raises:
        DataError: it names no class.
    """
    if not isinstance(label, str) or label not in classes:
        raise UnknownClass(
            f"It has a shape of the label {shown(label)!r}, which is no class of the project.",
            "Use the labels that were exported.",
        )
    return classes[label]


def classes_of(colors: Mapping[str, tuple[int, int, int] | None]) -> list[ClassConfig]:
    """Classes for untrusted names and colours, in their order. A colour that an earlier one has is left out.

    Raises:
        DataError: a name is too long for a class.
    """
    taken: set[tuple[int, int, int] | None] = set()
    found: list[ClassConfig] = []
    for name, color in colors.items():
        if not 0 < len(name) <= LONGEST_CLASS:
            raise DataError(
                f"It names a class {shown(name)!r}, which has more than {LONGEST_CLASS} characters.",
                "Give it a shorter name.",
            )
        found.append(ClassConfig(name=name, color=None if color in taken else color))
        taken.add(color)
    return found


def aware_time(text: object) -> datetime | None:
    """The time that an untrusted text states, in UTC; None for any other text, or without a time zone."""
    try:
        time = datetime.fromisoformat(text) if isinstance(text, str) else None
        return None if time is None or time.utcoffset() is None else time.astimezone(UTC)
    except (ValueError, OverflowError):  # year 1 of another time zone may be before year 1 of UTC
        return None
