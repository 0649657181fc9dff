"""Reads Label Studio's JSON export: a list of tasks with their annotations, or one task for each line.

The source is untrusted: a file names the image of an annotation, and the image is looked up.
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
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pipeline.config import ClassConfig
from pipeline.data.images import IMAGE_ENDINGS
from pipeline.errors import DataError
from pipeline.files import open_plain
from pipeline.labeling.encoding import LabelMap
from pipeline.labeling.exchange import Annotation, Rejected, aware_time, classes_of, shown
from pipeline.labeling.label_studio.shapes import drawn_labels, paint
from pipeline.labeling.label_studio.tasks import TASKS
from pipeline.labeling.manifest import LABEL_MAP, MANIFEST
from pipeline.labeling.untrusted.json_items import Item, iter_items, load_item

LONGEST_TASK = 128 << 20
"""Bytes of a task with all its annotations."""
_ENDINGS = (".json", ".jsonl", ".ndjson")
_FIRST_BYTES = 1 << 16
_LONGEST_SECONDS = 30 * 86400.0
"""Annotation takes less; a longer time is no measurement, and counts as unknown."""
_OF_A_TASK = re.compile(rb'"(completed_by|was_cancelled|inner_id|lead_time)"\s*:')
_UPLOADED = re.compile("^[0-9a-f]{8}-")
_LONGEST_ADDRESS = 4096
_LARGEST_ID = (1 << 63) - 1


def recognises(source: Path) -> bool:
    """Whether a source looks like Label Studio's JSON, or like a folder that was exported for it."""
    if source.is_dir():
        return (source / TASKS).is_file()
    if source.suffix.lower() not in _ENDINGS or not source.is_file():
        return False
    with open_plain(source) as stream:
        begin = stream.read(_FIRST_BYTES)
    of_tasks = b'"annotations"' in begin or b'"annotation_id"' in begin
    return of_tasks and _OF_A_TASK.search(begin) is not None


def read_annotations(source: Path, labels: LabelMap) -> Iterator[Annotation | Rejected]:
    """The submitted and skipped annotations, without drafts and predictions.

    Args:
        source: a file, or an exported folder into which Label Studio's files were put.

    Raises:
        DataError: it is no JSON (after the readable part has been yielded), it is JSON-MIN, or the folder
            holds none.
    """
    for file in _files(source):
        with open_plain(file) as stream:
            for number, item in enumerate(iter_items(stream, longest=LONGEST_TASK), start=1):
                subject = f"{shown(file.name)}, task {number}"
                yield from _annotations(item, labels, subject)


def declared_classes(source: Path) -> list[ClassConfig]:
    """The labels of the shapes: the export does not list the others.

    Raises:
        DataError: it is no JSON, or the folder holds none.
    """
    names: dict[str, None] = {}
    for file in _files(source):
        with open_plain(file) as stream:
            for item in iter_items(stream, longest=LONGEST_TASK):
                with suppress(DataError):
                    names |= dict.fromkeys(_label_names(load_item(item.content or b"null")))
    return classes_of(dict.fromkeys(names))


def _label_names(task: Any) -> Iterator[str]:
    """The labels of a task's shapes."""
    annotations = task.get("annotations") if isinstance(task, dict) else None
    for annotation in annotations if isinstance(annotations, list) else ():
        result = annotation.get("result") if isinstance(annotation, dict) else None
        for region in result if isinstance(result, list) else ():
            yield from drawn_labels(region)


def _files(source: Path) -> list[Path]:
    if not source.is_dir():
        return [source]
    files = sorted(
        path
        for path in source.iterdir()
        if path.suffix.lower() in _ENDINGS
        and path.name not in (TASKS, LABEL_MAP, MANIFEST)
        and path.is_file()
        and not path.is_symlink()
    )
    if not files:
        raise DataError(
            f"{source} holds no annotations.",
            "Export them from Label Studio as JSON, and name that file, or put it into the folder.",
        )
    return files


def _annotations(item: Item, labels: LabelMap, subject: str) -> Iterator[Annotation | Rejected]:
    """The annotations of one task."""
    if item.content is None:
        limit = LONGEST_TASK >> 20
        yield Rejected(subject, f"It has {item.length >> 20} MiB, more than the {limit} MiB that a task may.")
        return
    try:
        task = load_item(item.content)
        if not isinstance(task, dict):
            raise DataError("It is no task of Label Studio.", "Export as JSON.")
        subject = _named(subject, task.get("id"))
        annotations = task.get("annotations", [])
        if not isinstance(annotations, list):
            raise DataError("Its annotations are no list.", "Export as JSON.")
        origin = _Task.of(task) if annotations else None
    except DataError as error:
        yield Rejected(subject, str(error))
        return
    if "annotation_id" in task and "annotations" not in task:
        file = subject.partition(", ")[0]
        raise DataError(
            f"{file} is JSON-MIN of Label Studio, which leaves out parts of the annotations.",
            "Export as JSON.",
        )
    for annotation in annotations:
        if origin is None or not isinstance(annotation, dict):
            yield Rejected(subject, "It has an annotation that is no object.")
        else:
            yield _annotation(annotation, origin, labels, subject)


@dataclass(frozen=True)
class _Task:
    """A task's image and queue, and the proposal."""

    image: int | str
    name: str | None
    queue: str | None
    sha256: str | None
    predictions: object

    @classmethod
    def of(cls, task: dict[str, Any]) -> _Task:
        data = task.get("data")
        image = data.get("image_id") if isinstance(data, dict) else None
        name = _image_name(data) if isinstance(data, dict) else None
        if type(image) is not int or not 0 <= image <= _LARGEST_ID:
            image = name
        if not isinstance(data, dict) or image is None:
            raise DataError("Its data names no image of segcurate.", "Import the tasks that were exported.")
        return cls(
            image=image,
            name=name,
            queue=_text(data.get("queue")),
            sha256=_text(data.get("sha256")),
            predictions=task.get("predictions"),
        )


def _annotation(annotation: dict[str, Any], task: _Task, labels: LabelMap, subject: str) -> Annotation:
    identifier, created = annotation.get("id"), aware_time(annotation.get("created_at"))
    return Annotation(
        subject=_named(subject, identifier, "annotation"),
        image=task.image,
        name=task.name,
        read=partial(paint, annotation.get("result"), _proposal(annotation, task), labels),
        queue=task.queue,
        sha256=task.sha256,
        annotator=_annotator(annotation.get("completed_by")),
        labeled_at=aware_time(annotation.get("updated_at")) or created,
        seconds=_seconds(annotation.get("lead_time")),
        skipped=annotation.get("was_cancelled") is True,
        origin=_origin(identifier, created),
    )


def _proposal(annotation: dict[str, Any], task: _Task) -> object:
    """The result that the annotator began with: that of the annotation, or of the task where it has only
    one."""
    predictions = [annotation.get("prediction")]
    if isinstance(task.predictions, list) and len(task.predictions) == 1:
        predictions += task.predictions
    results = [prediction.get("result") for prediction in predictions if isinstance(prediction, dict)]
    return next((result for result in results if result), None)


def _named(subject: str, identifier: object, what: str = "task") -> str:
    """A subject with Label Studio's own number of the task or annotation, where it has one."""
    if type(identifier) is not int or not 0 <= identifier <= _LARGEST_ID:
        return subject
    return f"{subject.rpartition(', task ')[0] if what == 'task' else subject}, {what} {identifier}"


def _origin(identifier: object, created: datetime | None) -> str | None:
    """An annotation's number and time: servers use the same numbers, and differ in the microseconds."""
    if type(identifier) is not int or not 0 <= identifier <= _LARGEST_ID:
        return None
    return f"annotation {identifier}" + ("" if created is None else f" of {created.isoformat()}")


def _annotator(completed_by: object) -> str | None:
    """An email address or a name; `user 3` where the file only has a number."""
    if isinstance(completed_by, dict):
        for key in ("email", "username"):
            if (name := _text(completed_by.get(key))) is not None:
                return name
        completed_by = completed_by.get("id")
    if type(completed_by) is int and 0 <= completed_by <= _LARGEST_ID:
        return f"user {completed_by}"
    return _text(completed_by)


def _image_name(data: dict[str, Any]) -> str | None:
    """The name of a task's image, by the file or address that its data has: the path below a folder that
    Label Studio serves, or the name of an upload without what Label Studio has put before it."""
    for value in (data.get("image"), *data.values()):
        if isinstance(value, str) and len(value) <= _LONGEST_ADDRESS:
            address = urlsplit(value)
            local = parse_qs(address.query).get("d", [""])[0]
            path = PurePosixPath(local or unquote(address.path))
            if path.suffix.lower() in IMAGE_ENDINGS and "\0" not in str(path):
                uploaded = "upload" in path.parts[:-1]
                return _UPLOADED.sub("", path.name) if uploaded else str(path).lstrip("/")
    return None


def _text(value: object) -> str | None:
    return shown(value) if isinstance(value, str) and value else None


def _seconds(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        seconds = float(value)
    except OverflowError:
        return None
    return seconds if math.isfinite(seconds) and 0 <= seconds <= _LONGEST_SECONDS else None
