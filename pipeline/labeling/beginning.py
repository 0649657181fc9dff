"""What a project needs that begins with a labeling tool's file: its format, its classes, and where its images
lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from pipeline.config import ClassConfig, DataConfig
from pipeline.data.images import IMAGE_ENDINGS
from pipeline.errors import DataError
from pipeline.labeling.encoding import LabelMap
from pipeline.labeling.exchange import Annotation, Tool
from pipeline.labeling.tools import TOOLS, recognise, tool_named

BACKGROUND = "background"
_TRIED = 20
"""Annotations whose images are looked for."""
_MOST_FOLDERS = 100
"""Folders beside a file of labels that are looked into."""


@dataclass(frozen=True)
class Beginning:
    """What a file of labels says.

    Attributes:
        tool: whose format it has.
        classes: that it names; with a background where it names only one.
        unlabeled: of `data.labels`: the background, if there is one beside the classes that are drawn.
        images: the folder with its images; None where they were not found near it.
        example: the name of an image.
    """

    tool: Tool
    classes: list[ClassConfig]
    unlabeled: str
    images: Path | None
    example: str


def look_at(source: Path, *, tool: str | None) -> Beginning:
    """Look at a file of labels.

    Args:
        tool: the name of its format; None to find out.

    Raises:
        DataError: it is missing, in none of the formats, or cannot be read.
    """
    if not source.exists():
        raise DataError(f"There is no file or folder {source}.", "Name what the labeling tool has exported.")
    reader = recognise(source) if tool is None else tool_named(tool)
    if reader.classes is None:
        others = ", ".join(name for name, one in TOOLS.items() if one.classes is not None)
        raise DataError(
            f"{source} is read as {reader.title}, which names no classes.",
            f"For mask files, write `segcurate init --masks {source}`; else name a format of {others}.",
        )
    try:
        classes = reader.classes(source)
        names = _names(source, reader, classes)
    except DataError as error:
        problem = error.problem.removeprefix(f"{source}: ")
        raise DataError(f"{source}: {problem}", error.remedy) from error
    unlabeled = "ignore"
    if len(classes) == 1 and classes[0].name != BACKGROUND:
        classes, unlabeled = [ClassConfig(name=BACKGROUND), *classes], BACKGROUND
    return Beginning(reader, classes, unlabeled, _folder(source, names), names[0] if names else "")


def _names(source: Path, reader: Tool, classes: Sequence[ClassConfig]) -> list[str]:
    """The names of the first images; nothing of them is decoded."""
    two = [*classes, ClassConfig(name=" a"), ClassConfig(name=" b")][: max(2, len(classes))]
    labels = LabelMap(DataConfig(images=["images"], classes=two))
    found = islice(reader.read(source, labels), _TRIED)
    return [one.name or str(one.image) for one in found if isinstance(one, Annotation)]


def _folder(source: Path, names: Sequence[str]) -> Path | None:
    """The folder near a file of labels in which most of these images are."""
    above = source.absolute() if source.is_dir() else source.absolute().parent
    beside = sorted(path for path in above.iterdir() if path.is_dir() and not path.name.startswith("."))
    near = [
        folder / below for folder in (above, above.parent) for below in ("images", "JPEGImages", "data", "")
    ]
    near += beside[:_MOST_FOLDERS]
    counts = {folder: sum(_is_in(folder, name) for name in names) for folder in near}
    best = max(counts, key=lambda folder: counts[folder])
    return best if counts[best] else None


def _is_in(folder: Path, name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        return False
    if path.suffix.lower() in IMAGE_ENDINGS and (folder / path).is_file():
        return True
    return any((folder / path.with_suffix(ending)).is_file() for ending in sorted(IMAGE_ENDINGS))
