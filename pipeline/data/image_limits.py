"""What an image file may cost, checked on its header: bytes of the file and of its pixels, pages, and values.

A small file may declare thousands of channels, pages or strips. All of them are counted here before a decoder
sees the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from pipeline.errors import DataError

BYTES_PER_PIXEL = 16
"""Four channels of 32 bits. The file, and its decoded pixels, may have so many for each of `max_pixels`."""
ALWAYS_BYTES = 1 << 30
"""Bytes that the file, and its decoded pixels, may have in any case: small images may have many channels."""
MOST_PAGES = 1024
"""Pages of a TIFF, and smaller versions of a page."""
MOST_VALUES = 1 << 22
"""Values of all tags of a TIFF, among them two for each strip or tile."""

_TYPE_BYTES = {1: 1, 2: 1, 6: 1, 7: 1}
"""Tags of bytes and text count as one value for eight bytes: profiles and descriptions are long."""
_SUB_PAGES = 330
_LESS = "Save it as one plain image."


class Damaged(ValueError):
    """A file cannot be decoded; the message says why, and quotes nothing of it."""


class NotAnImage(ValueError):
    """A file is not of the kind that its ending says."""


class _Layout(NamedTuple):
    """The sizes of a TIFF's fields, and their formats."""

    order: str
    first: int
    tag_count: str
    tag: str
    offset: str


def check_bytes(name: object, size: int, *, max_pixels: int, what: str) -> None:
    """Refuse more bytes than an image of `max_pixels` may have.

    Args:
        name: of the file.
        size: bytes.
        what: has them, for the message.

    Raises:
        DataError: they are more than `ALWAYS_BYTES`, and than `BYTES_PER_PIXEL` for each of `max_pixels`.
    """
    most = max(ALWAYS_BYTES, BYTES_PER_PIXEL * max_pixels)
    if size > most:
        raise DataError(
            f"{name} is too large: {what} {size >> 20} MiB, more than {most >> 20} MiB.",
            "Raise `data.max_pixels` if the file is yours and the memory suffices.",
        )


def check_tiff(name: object, stream: BinaryIO) -> None:
    """Refuse a TIFF of too many pages or values. The stream is left at its begin.

    Raises:
        DataError: it has more than `MOST_PAGES` pages, or more than `MOST_VALUES` values.
        NotAnImage, Damaged: it is no TIFF, or ends too early.
    """
    values = 0
    for number, (code, kind, count) in enumerate(_tags(name, stream)):
        values += count // 8 if kind in _TYPE_BYTES else count
        if values + number > MOST_VALUES or (code == _SUB_PAGES and count > MOST_PAGES):
            raise DataError(f"{name} has more than {MOST_VALUES} values in its header.", _LESS)
    stream.seek(0)


def _tags(name: object, stream: BinaryIO) -> Iterator[tuple[int, int, int]]:
    """Code, type and number of values of each tag of each page (TIFF 6.0, section 2, and BigTIFF)."""
    layout = _layout(stream)
    at, pages = layout.first, 0
    while at:
        pages += 1
        if pages > MOST_PAGES:
            raise DataError(f"{name} has more than {MOST_PAGES} pages.", _LESS)
        stream.seek(at)
        (count,) = _read(stream, layout.order + layout.tag_count)
        size = struct.calcsize(layout.order + layout.tag)
        for _ in range(min(count, MOST_VALUES)):
            code, kind, number, _ = struct.unpack(layout.order + layout.tag, _exactly(stream, size))
            yield code, kind, number
        (at,) = _read(stream, layout.order + layout.offset)


def _layout(stream: BinaryIO) -> _Layout:
    stream.seek(0)
    head = _exactly(stream, 8)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None:
        raise NotAnImage
    (version,) = struct.unpack(order + "H", head[2:4])
    if version == 43:
        (first,) = _read(stream, order + "Q")
        return _Layout(order, first, tag_count="Q", tag="HHQQ", offset="Q")
    if version != 42:
        raise NotAnImage
    return _Layout(order, struct.unpack(order + "I", head[4:])[0], tag_count="H", tag="HHII", offset="I")


def _read(stream: BinaryIO, form: str) -> tuple[int, ...]:
    return struct.unpack(form, _exactly(stream, struct.calcsize(form)))


def _exactly(stream: BinaryIO, size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise Damaged("the file is truncated")
    return content
