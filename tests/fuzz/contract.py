"""What a reader promises, whatever it reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import IGNORE
from pipeline.errors import UserError
from pipeline.labeling.encoding import LabelMap
from pipeline.labeling.exchange import Annotation, DecodedMask, Rejected, Tool

LONGEST_LINE = 5000
"""Of a report: some texts of a stranger, each cut short, and ours around them."""


class Broken(Exception):
    """A promise was not kept."""


def check_tool(
    tool: Tool, source: Path, labels: LabelMap, sizes: Callable[[int | str], tuple[int, int]]
) -> int:
    """Read a source as an import does; how many masks came out.

    Raises:
        Broken: what comes out is not what is promised.
        UserError: the source is refused, which is right.
    """
    expect(isinstance(tool.recognises(source), bool), "`recognises` is no bool")
    masks = 0
    try:
        for found in tool.read(source, labels):
            if isinstance(found, Rejected):
                _check_line(found.subject)
                _check_line(found.reason)
            else:
                expect(isinstance(found, Annotation), f"`read` gives {type(found)}")
                masks += _check_annotation(found, labels, sizes)
    except UserError as error:
        _check_line(str(error))
        raise
    return masks


def expect(kept: bool, what: str) -> None:
    """Raise what was broken."""
    if not kept:
        raise Broken(what)


def storable(value: str) -> bool:
    """Whether a database takes the text."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def check_mask(painted: Any, *, classes: int, size: tuple[int, int]) -> None:
    """A mask is uint8 [H, W] of known classes."""
    expect(isinstance(painted, DecodedMask), f"`read` of an annotation gives {type(painted)}")
    mask = painted.mask
    expect(mask.dtype == np.uint8 and mask.shape == size[::-1], f"a mask is {mask.dtype} {mask.shape}")
    expect(bool(((mask < classes) | (mask == IGNORE)).all()), f"a mask has {np.unique(mask)}")
    expect(0 <= painted.overlapping <= mask.size, f"{painted.overlapping} pixels overlap")


def _check_annotation(
    annotation: Annotation, labels: LabelMap, sizes: Callable[[int | str], tuple[int, int]]
) -> int:
    _check_line(annotation.subject)
    image = annotation.image
    expect(type(image) in (int, str), f"an image is {image!r}")
    expect(-(2**63) <= image < 2**63 if isinstance(image, int) else storable(image), f"an image is {image!r}")
    for text in _said(annotation.queue, annotation.sha256, annotation.annotator, annotation.origin):
        expect(storable(text) and len(text) <= LONGEST_LINE, f"an annotation says {text[:200]!r}")
    if annotation.labeled_at is not None:
        expect(annotation.labeled_at.utcoffset() is not None, "a time has no time zone")
    if annotation.seconds is not None:
        expect(
            math.isfinite(annotation.seconds) and annotation.seconds >= 0,
            f"it took {annotation.seconds} seconds",
        )
    if annotation.skipped:
        return 0
    size = sizes(image)
    try:
        check_mask(annotation.read(*size), classes=len(labels.names), size=size)
    except UserError as error:
        _check_line(str(error))
        return 0
    return 1


def _said(*texts: str | None) -> Iterable[str]:
    return [text for text in texts if text is not None]


def _check_line(line: str) -> None:
    expect(isinstance(line, str), f"a line is {line!r}")
    expect(line.isprintable(), f"a line is not printable: {line[:200]!r}")
    expect(len(line) <= LONGEST_LINE, f"a line has {len(line)} characters: {line[:200]!r}")
