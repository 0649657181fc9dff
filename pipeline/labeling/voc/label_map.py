"""The label map of a Pascal VOC folder: which colour means which class.

A line for each label: its name, its colour, and two fields for parts and actions, with colons between them.
Where no label has a colour, the labels have Pascal VOC's colours in their order.

Legend: H height, W width, L labels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import IGNORE
from pipeline.data.masks import Mask, pack, unpack
from pipeline.errors import DataError
from pipeline.labeling.cvat.labels import (
    BACKGROUND,
    BACKGROUND_COLOR,
    label_colors,
    label_names,
    meanings,
    voc_colors,
)
from pipeline.labeling.encoding import LabelMap
from pipeline.labeling.exchange import shown

LABEL_MAP_FILE = "labelmap.txt"
LONGEST_LABEL_MAP = 1 << 20
"""Bytes."""

_LISTED = 5
_REMEDY = "Export it from the labeling tool again."
Color = tuple[int, int, int]


def write_label_map(labels: LabelMap) -> str:
    """The content of `labelmap.txt`."""
    named = [
        (BACKGROUND, BACKGROUND_COLOR),
        *zip(label_names(labels.names), label_colors(labels), strict=True),
    ]
    lines = [f"{name}:{red},{green},{blue}::\n" for name, (red, green, blue) in named]
    return "# label:color_rgb:parts:actions\n" + "".join(lines)


@dataclass(frozen=True)
class ColorMap:
    """The classes of colours.

    Attributes:
        colors: int32 [L], packed and rising.
        classes: uint8 [L], the class index of each, or 255.
        problems: why a colour means no class, by the packed colour.
    """

    colors: npt.NDArray[np.int32]
    classes: npt.NDArray[np.uint8]
    problems: dict[int, str]

    @classmethod
    def parse(cls, content: bytes, labels: LabelMap) -> ColorMap:
        """The map of an untrusted `labelmap.txt`. Its names are looked up among the project's classes.

        Raises:
            DataError: it is not valid.
        """
        return cls._of(parse_label_map(content), labels)

    @classmethod
    def of(cls, labels: LabelMap) -> ColorMap:
        """The map of a project's own colours, for masks without a label map.

        Raises:
            DataError: a class has no colour of its own; the one of pictures means nothing in a foreign mask.
        """
        if not labels.has_own_colors:
            raise DataError(
                f"It has no {LABEL_MAP_FILE} that says which class a colour means, and not every class in "
                "`data.classes` has a `color`.",
                f"Put the {LABEL_MAP_FILE} of the labeling tool beside the folder of the masks.",
            )
        return cls.parse(write_label_map(labels).encode(), labels)

    @classmethod
    def _of(cls, named: Iterable[tuple[str, Color]], labels: LabelMap) -> ColorMap:
        known: dict[str, int] = meanings(labels.names) | labels.aliases
        named = list(named)
        if BACKGROUND not in labels.aliases and (
            BACKGROUND not in known or label_names(labels.names)[known[BACKGROUND]] in dict(named)
        ):
            known[BACKGROUND] = IGNORE
        classes: dict[int, int] = {}
        problems: dict[int, str] = {}
        for name, color in named:
            packed = pack(color)
            index = known.get(name)
            if index is None:
                problems[packed] = f"of the label {shown(name)!r}, which is no class of the project"
            elif classes.setdefault(packed, index) != index:
                problems[packed] = f"of the colour {color}, which two labels have"
        for packed in problems:
            classes.pop(packed, None)
        if classes:
            for color in labels.ignored_colors:
                if pack(color) not in problems:
                    classes.setdefault(pack(color), IGNORE)
        colors = np.array(sorted(classes), dtype=np.int32)
        values = np.array([classes[color] for color in colors.tolist()], dtype=np.uint8)
        return cls(colors=colors, classes=values, problems=problems)

    def read(self, packed: npt.NDArray[np.int32]) -> Mask:
        """The mask [H, W] of packed colours [H, W].

        Raises:
            DataError: there is a colour that means no class.
        """
        if not len(self.colors):
            raise DataError("No label of its label map is a class of the project.", _REMEDY)
        index = np.searchsorted(self.colors, packed).clip(max=len(self.colors) - 1)
        unknown = self.colors[index] != packed
        if unknown.any():
            found, counts = np.unique(packed[unknown], return_counts=True)
            raise DataError(
                f"It has pixels that mean no class: {self._listed(found, counts)}.",
                "Use the labels that were exported.",
            )
        return self.classes[index]

    def _listed(self, colors: npt.NDArray[Any], counts: npt.NDArray[Any]) -> str:
        order = np.argsort(-counts, kind="stable")[:_LISTED].tolist()
        listed = [
            f"{counts[at]} {self.problems.get(color, f'of the colour {unpack(color)}, which no label has')}"
            for at, color in ((at, int(colors[at])) for at in order)
        ]
        return "; ".join(listed) + (" and more" if len(colors) > _LISTED else "")


def parse_label_map(content: bytes) -> list[tuple[str, Color]]:
    """The labels of an untrusted `labelmap.txt`, with their colours.

    Raises:
        DataError: it is not valid.
    """
    found: list[tuple[str, Color | None]] = []
    for number, line in enumerate(content.decode("utf-8-sig", errors="replace").splitlines(), start=1):
        text = line.strip()
        if text and not text.startswith("#"):
            found.append(_label(text, number))
    named = [(name, color) for name, color in found if color is not None]
    if not named:
        colors = (BACKGROUND_COLOR, *voc_colors())
        named = [(name, color) for (name, _), color in zip(found, colors, strict=False)]
    return named


def _label(line: str, number: int) -> tuple[str, Color | None]:
    """Name and colour of a line. A name may have colons, although Datumaro cannot read such a line."""
    fields = line.rsplit(":", 3)
    if len(fields) == 4 and not fields[1].strip():
        return fields[0], None
    parts = fields[1].split(",") if len(fields) == 4 else []
    if len(parts) != 3 or not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise DataError(f"Line {number} of its label map is no label with a colour.", _REMEDY)
    red, green, blue = (min(int(part[:9]), 256) for part in parts)
    if max(red, green, blue) > 255:
        raise DataError(f"Line {number} of its label map has no colour of 0 to 255.", _REMEDY)
    return fields[0], (red, green, blue)
