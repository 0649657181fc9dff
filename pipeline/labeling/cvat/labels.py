"""CVAT's names and colours of the project's classes: in its XML, in its masks, and in the Pascal VOC layout,
which is the same.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Sequence

from pipeline.labeling.encoding import LabelMap, hexadecimal

BACKGROUND = "background"
"""CVAT's name of the pixels without a label."""
BACKGROUND_COLOR = (0, 0, 0)
LOOK_HERE = "look here"
"""The label of the boxes around queued regions."""
LONGEST_NAME = 64
"""Characters of a label's name that CVAT allows."""

_LOOK_COLOR = (255, 255, 255)


def label_names(names: Sequence[str]) -> list[str]:
    """CVAT's name of each class: its own name, unless CVAT or its label map cannot store that, or give it
    another meaning.

    >>> label_names(["road & <kerb>", "a:b", "background", " odd "])
    ['road & <kerb>', 'a_b', 'background 2', 'odd']
    """
    called: list[str] = []
    for name in names:
        plain = _plain(name)
        candidates = (plain, *(_numbered(plain, number) for number in range(2, len(names) + 4)))
        taken = {BACKGROUND, LOOK_HERE, *called, *names} - {name}
        if name in (BACKGROUND, LOOK_HERE):
            taken.add(name)
        called.append(next(candidate for candidate in candidates if candidate not in taken))
    return called


def meanings(names: Sequence[str]) -> dict[str, int]:
    """The class index of every name that a source may use: the exported names, and the classes' own."""
    called = {name: index for index, name in enumerate(label_names(names))}
    return {name: index for index, name in enumerate(names)} | called


def label_colors(labels: LabelMap) -> list[tuple[int, int, int]]:
    """The colour of each class: its own, unless the background or another class has that colour.

    >>> from pipeline.config import DataConfig
    >>> classes = [{"name": "sky", "color": (0, 0, 0)}, {"name": "road", "color": (1, 2, 3)}]
    >>> label_colors(LabelMap(DataConfig(images=["images"], classes=classes)))
    [(128, 0, 0), (1, 2, 3)]
    """
    kept = set(labels.colors)
    free = (color for color in voc_colors() if color not in kept)
    taken: set[tuple[int, int, int]] = {BACKGROUND_COLOR}
    chosen: list[tuple[int, int, int]] = []
    for color in labels.colors:
        chosen.append(next(free) if color in taken else color)
        taken.add(chosen[-1])
    return chosen


def voc_colors() -> Iterator[tuple[int, int, int]]:
    """Pascal VOC's 255 colours besides the background: the bits of the index, spread over the channels.

    >>> list(voc_colors())[:3]
    [(128, 0, 0), (0, 128, 0), (128, 128, 0)]
    """
    for index in range(1, 256):
        channels = [
            sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)
        ]
        yield channels[0], channels[1], channels[2]


def raw_labels(labels: LabelMap) -> str:
    """The labels for CVAT's raw constructor, in JSON: the classes, and the boxes that show where to look."""
    classes = zip(label_names(labels.names), label_colors(labels), strict=True)
    document = [
        *(
            {"name": name, "color": hexadecimal(color), "type": "any", "attributes": []}
            for name, color in classes
        ),
        {"name": LOOK_HERE, "color": hexadecimal(_LOOK_COLOR), "type": "rectangle", "attributes": []},
    ]
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _plain(name: str) -> str:
    """A name that a label map's line, an XML attribute and CVAT's form do not change."""
    spelled = "".join(
        "_"
        if letter == ":" or unicodedata.category(letter)[0] == "C" or ord(letter) & 0xFFFE == 0xFFFE
        else letter
        for letter in name
    )
    line = " ".join(spelled.splitlines())[:LONGEST_NAME].strip()
    return f"_{line[: LONGEST_NAME - 1]}" if line.startswith("#") else line or "_"


def _numbered(name: str, number: int) -> str:
    ending = f" {number}"
    return name[: LONGEST_NAME - len(ending)].rstrip() + ending
