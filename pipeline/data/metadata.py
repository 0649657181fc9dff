"""Damaged metadata of a PNG or a JPEG, for which a decoder would refuse pixels that can be read.

A PNG is a list of chunks: length, name, content, checksum. A name in capitals means that a reader needs the
chunk; the others hold metadata (W3C, Portable Network Graphics, 3rd edition, 5.3 and 5.4).

A JPEG begins with segments: marker, length, content. Those of applications (APPn) hold metadata; the first
bytes of the content name the application (ITU T.81, B.1.1 and B.2.4.6).
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_SIGNATURE = b"\xff\xd8"
LONGEST_METADATA = 1 << 24
"""Bytes of a chunk whose checksum is compared; a longer one counts as whole."""
_SHORTEST = {b"cHRM": 32, b"gAMA": 4, b"pHYs": 9, b"sRGB": 1, b"acTL": 8}
"""Bytes of chunks that Pillow reads without a look at their length."""
_SHORTEST_SEGMENT = {b"JFIF": 7, b"ICC_PROFILE\0": 14, b"Adobe": 7}
"""The same of segments. Where they are shorter, libjpeg ignores them, too."""
_PHOTOSHOP, _RESOURCE = b"Photoshop 3.0\0", b"8BIM"


def without_damaged_metadata(stream: BinaryIO) -> BinaryIO:
    """The stream itself; where a PNG has damaged chunks of metadata, or a JPEG damaged segments, its content
    without them, in memory.

    Transparency (tRNS) belongs to the pixels, and is kept whatever it is. The stream stays where it was.
    """
    start = stream.tell()
    try:
        stream.seek(0)
        beginning = stream.read(len(SIGNATURE))
        if beginning == SIGNATURE:
            kept, parts = [(0, len(SIGNATURE))], _chunks(stream)
        elif beginning.startswith(_JPEG_SIGNATURE):
            kept, parts = [(0, len(_JPEG_SIGNATURE))], _segments(stream)
        else:
            return stream
        damaged = False
        for offset, length, sound in parts:
            damaged = damaged or not sound
            if sound:
                kept.append((offset, length))
        if not damaged:
            return stream
        content = io.BytesIO()
        for offset, length in kept:
            stream.seek(offset)
            content.write(stream.read(length))
        content.seek(0)
        return content
    finally:
        stream.seek(start)


def _chunks(stream: BinaryIO) -> Iterator[tuple[int, int, bool]]:
    """Offset and length of each chunk up to the last, and whether it is to be kept. A chunk beyond the end of
    the file is left to the decoder, which calls the file truncated."""
    end = os.fstat(stream.fileno()).st_size
    offset = len(SIGNATURE)
    while offset < end:
        stream.seek(offset)
        header = stream.read(8)
        length, name = int.from_bytes(header[:4]), header[4:]
        total = length + 12
        is_metadata = len(name) == 4 and name.isalpha() and name[0:1].islower() and name != b"tRNS"
        sound = True
        if is_metadata and offset + total <= end and length <= LONGEST_METADATA:
            content, checksum = stream.read(length), stream.read(4)
            sound = length >= _SHORTEST.get(name, 0) and zlib.crc32(name + content) == int.from_bytes(
                checksum
            )
        yield offset, total, sound
        if name == b"IEND":
            return
        offset += total


def _segments(stream: BinaryIO) -> Iterator[tuple[int, int, bool]]:
    """As `_chunks`, of a JPEG: the segments before its pixels, and all the rest as one part."""
    end = os.fstat(stream.fileno()).st_size
    offset = len(_JPEG_SIGNATURE)
    while offset + 4 <= end:
        stream.seek(offset)
        header = stream.read(4)
        length = int.from_bytes(header[2:])
        is_plain = header[0] == 0xFF and 0xC0 <= header[1] < 0xFF and not 0xD0 <= header[1] <= 0xDA
        if not is_plain or length < 2 or offset + 2 + length > end:
            break
        is_metadata = 0xE0 <= header[1] <= 0xEF
        yield offset, 2 + length, not is_metadata or _is_sound(stream.read(length - 2))
        offset += 2 + length
    yield offset, end - offset, True


def _is_sound(content: bytes) -> bool:
    """Whether Pillow can read the segment of an application."""
    if any(content.startswith(name) and len(content) < least for name, least in _SHORTEST_SEGMENT.items()):
        return False
    offset = len(_PHOTOSHOP)
    if not content.startswith(_PHOTOSHOP):
        return True
    while content[offset : offset + 4] == _RESOURCE:  # code, the name with its length, and the size
        if offset + 7 > len(content):
            return False
        offset += 7 + content[offset + 6]
        offset += offset & 1
        if offset + 4 > len(content):
            return False
        offset += 4 + int.from_bytes(content[offset : offset + 4])
        offset += offset & 1
    return True
