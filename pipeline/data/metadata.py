"""Damaged metadata of a PNG, which would refuse pixels that can be read.

A PNG is a list of chunks: length, name, content, checksum. A name in capitals means that a reader needs the
chunk; the others hold metadata (W3C, Portable Network Graphics, 3rd edition, 5.3 and 5.4).
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LONGEST_METADATA = 1 << 24
"""Bytes of a chunk whose checksum is compared; a longer one counts as whole."""
_SHORTEST = {b"cHRM": 32, b"gAMA": 4, b"pHYs": 9, b"sRGB": 1, b"acTL": 8}
"""Bytes of chunks that Pillow reads without a look at their length."""


def without_damaged_metadata(stream: BinaryIO) -> BinaryIO:
    """The stream itself; where a PNG has damaged chunks of metadata, its content without them, in memory.

    Transparency (tRNS) belongs to the pixels, and is kept whatever it is. The stream stays where it was.
    """
    start = stream.tell()
    try:
        stream.seek(0)
        if stream.read(len(SIGNATURE)) != SIGNATURE:
            return stream
        kept, damaged = [(0, len(SIGNATURE))], False
        for offset, length, sound in _chunks(stream):
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
