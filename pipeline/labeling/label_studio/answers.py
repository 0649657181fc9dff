"""Reads what Label Studio exports as JSON: a list of tasks with their annotations, or a task a line.

All of it is untrusted: a file says which image an annotation is of and which classes it paints, and both are
looked up; sizes are compared with the image's before anything is decoded.

Legend: H height, W width.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import IGNORE
from pipeline.errors import DataError
from pipeline.labeling.encoding import LabelMap
from pipeline.labeling.exchange import Answer, Painted, Refusal, shown
from pipeline.labeling.label_studio import bitmask, brush
from pipeline.labeling.label_studio.config import LOOK, MASK, label_values
from pipeline.labeling.label_studio.tasks import TASKS
from pipeline.labeling.manifest import LABEL_MAP
from pipeline.labeling.untrusted.json_items import Item, iter_items, load_item

LONGEST_TASK = 128 << 20
"""Bytes of a task with all its annotations."""
MOST_SHAPES = 2000
"""Of an annotation."""

_ENDINGS = (".json", ".jsonl", ".ndjson")
_FIRST_BYTES = 1 << 16
_OF_A_TASK = re.compile(rb'"(completed_by|was_cancelled|inner_id|lead_time)"\s*:')
_SHAPES = re.compile("(polygon|rectangle|ellipse|keypoint|vector|brush|bitmask)(labels)?|labels|magicwand")
_LARGEST_ID = (1 << 63) - 1


def recognises(source: Path) -> bool:
    """Whether it looks like Label Studio's JSON, or like a folder that was exported for it."""
    if source.is_dir():
        return (source / TASKS).is_file()
    if source.suffix.lower() not in _ENDINGS or not source.is_file():
        return False
    with source.open("rb") as stream:
        begin = stream.read(_FIRST_BYTES)
    return b'"annotations"' in begin and _OF_A_TASK.search(begin) is not None


def read_answers(source: Path, labels: LabelMap) -> Iterator[Answer | Refusal]:
    """One answer for each annotation that is submitted or skipped. Drafts and predictions are passed over.

    Args:
        source: a file, or an exported folder into which Label Studio's files were put.

    Raises:
        DataError: it is no JSON (after what came before has been yielded), or the folder holds none.
    """
    for file in _files(source):
        with file.open("rb") as stream:
            for number, item in enumerate(iter_items(stream, longest=LONGEST_TASK), start=1):
                subject = f"{shown(file.name)}, task {number}"
                yield from _answers(item, labels, subject)


def _files(source: Path) -> list[Path]:
    if not source.is_dir():
        return [source]
    files = sorted(
        path
        for path in source.iterdir()
        if path.suffix.lower() in _ENDINGS
        and path.name not in (TASKS, LABEL_MAP)
        and path.name != "manifest.jsonl"
        and path.is_file()
        and not path.is_symlink()
    )
    if not files:
        raise DataError(
            f"{source} holds no annotations.",
            "Export them from Label Studio as JSON, and name that file, or put it into the folder.",
        )
    return files


def _answers(item: Item, labels: LabelMap, subject: str) -> Iterator[Answer | Refusal]:
    """What one task says."""
    if item.content is None:
        limit = LONGEST_TASK >> 20
        yield Refusal(subject, f"It has {item.length >> 20} MiB, more than the {limit} MiB that a task may.")
        return
    try:
        task = load_item(item.content)
        if not isinstance(task, dict):
            raise DataError("It is no task of Label Studio.", "Export as JSON, not as JSON-MIN.")
        subject = _named(subject, task.get("id"))
        annotations = task.get("annotations", [])
        if not isinstance(annotations, list):
            raise DataError("Its annotations are no list.", "Export as JSON, not as JSON-MIN.")
        origin = _Task.of(task) if annotations else None
    except DataError as error:
        yield Refusal(subject, str(error))
        return
    for annotation in annotations:
        if origin is None or not isinstance(annotation, dict):
            yield Refusal(subject, "It has an annotation that is none.")
        else:
            yield _answer(annotation, origin, labels, subject)


@dataclass(frozen=True)
class _Task:
    """Which image, of which queue, a task is of."""

    image_id: int
    queue: str | None
    sha256: str | None

    @classmethod
    def of(cls, task: dict[str, Any]) -> _Task:
        data = task.get("data")
        image_id = data.get("image_id") if isinstance(data, dict) else None
        if not isinstance(data, dict) or type(image_id) is not int or not 0 <= image_id <= _LARGEST_ID:
            raise DataError("Its data names no image of segcurate.", "Import the tasks that were exported.")
        return cls(image_id=image_id, queue=_text(data.get("queue")), sha256=_text(data.get("sha256")))


def _answer(annotation: dict[str, Any], task: _Task, labels: LabelMap, subject: str) -> Answer:
    identifier, created = annotation.get("id"), _time(annotation.get("created_at"))
    return Answer(
        subject=_named(subject, identifier, "annotation"),
        image=task.image_id,
        read=partial(_paint, annotation.get("result"), labels),
        queue=task.queue,
        sha256=task.sha256,
        annotator=_annotator(annotation.get("completed_by")),
        labeled_at=_time(annotation.get("updated_at")) or created,
        seconds=_seconds(annotation.get("lead_time")),
        skipped=annotation.get("was_cancelled") is True,
        origin=_origin(identifier, created),
    )


def _paint(result: object, labels: LabelMap, width: int, height: int) -> Painted:
    """The mask [H, W] of an annotation, given the image's width and height."""
    if not isinstance(result, list):
        raise DataError("Its result is no list.", "Export it from Label Studio again.")
    shapes = [region for region in result if _is_shape(region)]
    if len(shapes) > MOST_SHAPES:
        raise DataError(f"It has {len(shapes)} shapes, more than {MOST_SHAPES}.", "Merge shapes of a class.")
    values = {value: index for index, value in enumerate(label_values(labels.names))}
    mask = np.full((height, width), IGNORE, dtype=np.uint8)
    contested = np.zeros((height, width), dtype=bool)
    for region in shapes:
        index, painted = _painted(region, values, width=width, height=height)
        contested |= painted & (mask != IGNORE) & (mask != index)
        mask[painted] = index
    return Painted(mask=mask, overlapping=int(contested.sum()))


def _is_shape(region: object) -> bool:
    """Whether it is drawn on the image, and not a box that says where to look, a relation, or an answer."""
    if not isinstance(region, dict):
        raise DataError("Its result holds what is no region.", "Export it from Label Studio again.")
    kind = region.get("type")
    drawn = isinstance(kind, str) and _SHAPES.fullmatch(kind.lower()) is not None
    return drawn and region.get("from_name") != LOOK


def _painted(
    region: dict[str, Any], values: dict[str, int], *, width: int, height: int
) -> tuple[int, np.ndarray[Any, np.dtype[np.bool_]]]:
    """The class of a region, and its pixels [H, W]."""
    kind, value = region["type"].lower(), region.get("value")
    if region.get("from_name") != MASK or kind not in ("brushlabels", "bitmasklabels"):
        raise DataError(
            f"It has a shape of the kind {shown(kind)}.", "Paint masks with the interface that was exported."
        )
    if not isinstance(value, dict):
        raise DataError("It has a shape without a value.", "Export it from Label Studio again.")
    _check_sizes(region, width=width, height=height)
    index = _class(value.get(kind), values)
    if kind == "brushlabels":
        return index, brush.decode(value.get("rle"), width=width, height=height)
    return index, bitmask.decode(value.get("imageDataURL"), width=width, height=height)


def _class(labels: object, values: dict[str, int]) -> int:
    if not isinstance(labels, list) or len(labels) != 1:
        raise DataError("It has a shape that has not exactly one class.", "Choose its class in Label Studio.")
    (label,) = labels
    if not isinstance(label, str) or label not in values:
        raise DataError(
            f"It has a shape of the class {shown(label)!r}, which the project does not have.",
            "Use the classes that were exported.",
        )
    return values[label]


def _check_sizes(region: dict[str, Any], *, width: int, height: int) -> None:
    if region.get("image_rotation") not in (0, None):
        raise DataError("It was drawn on a turned image.", "Turn the image back in Label Studio.")
    said = region.get("original_width"), region.get("original_height")
    if said != (width, height):
        raise DataError(
            f"It was drawn on an image of {shown(said[0])}×{shown(said[1])} pixels, and this one has "
            f"{width}×{height}.",
            "Label the image that was exported.",
        )


def _named(subject: str, identifier: object, what: str = "task") -> str:
    """A subject with Label Studio's own number of the task or annotation, where that is one."""
    if type(identifier) is not int or not 0 <= identifier <= _LARGEST_ID:
        return subject
    return f"{subject.rpartition(', task ')[0] if what == 'task' else subject}, {what} {identifier}"


def _origin(identifier: object, created: datetime | None) -> str | None:
    """Numbers are a server's own; the time, to the microsecond, tells servers apart."""
    if type(identifier) is not int or not 0 <= identifier <= _LARGEST_ID:
        return None
    return f"annotation {identifier}" + ("" if created is None else f" of {created.isoformat()}")


def _annotator(completed_by: object) -> str | None:
    """An email address or a name; `user 3` where the file has no more than a number."""
    if isinstance(completed_by, dict):
        for key in ("email", "username"):
            if (name := _text(completed_by.get(key))) is not None:
                return name
        completed_by = completed_by.get("id")
    if type(completed_by) is int and 0 <= completed_by <= _LARGEST_ID:
        return f"user {completed_by}"
    return _text(completed_by)


def _text(value: object) -> str | None:
    return shown(value) if isinstance(value, str) and value else None


def _time(value: object) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        time = datetime.fromisoformat(value)
        return None if time.utcoffset() is None else time.astimezone(UTC)
    except (ValueError, OverflowError):  # the year 1 of another time zone may be before all years
        return None


def _seconds(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        seconds = float(value)
    except OverflowError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
