"""The items of a JSON file of any size, one after another, with only one of them in memory.

A file is one array, several values one after another (JSON lines), or an object of arrays such as COCO's.
It is parsed only as far as needed to find the begin and end of an item; `load_item` parses the item.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError

LONGEST_KEY = 1000
"""Bytes of the name of a top-level object's member."""

MOST_CONTAINERS = 2_000_000
"""Opening brackets and braces of an item: each takes many times more memory than text."""

_CHUNK = 1 << 18
_BOM = b"\xef\xbb\xbf"
_SPACE = re.compile(rb"[ \t\n\r]*+")
_WORD = re.compile(rb'[^ \t\n\r,:\[\]{}"]*+')
_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_QUOTE = 2
_CODES = np.zeros(256, dtype=np.int8)
_CODES[list(b"[{")], _CODES[list(b"]}")], _CODES[ord('"')] = 1, -1, _QUOTE

_AGAIN = "Export it again, or repair it with a JSON checker."


@dataclass(frozen=True)
class Item:
    """A piece of a JSON file.

    Attributes:
        key: the name of its member of the top-level object; None without one.
        offset: of its first byte in the stream.
        content: its bytes; None where they are more than `longest`.
        length: in bytes.
        listed: it is an item of an array, rather than a value of its own.
    """

    key: str | None
    offset: int
    content: bytes | None
    length: int
    listed: bool


def iter_items(stream: BinaryIO, *, longest: int, members: bool = False) -> Iterator[Item]:
    """The items of a top-level array, or top-level values one after another.

    It takes memory for at most two times `longest` bytes, for any stream.

    Args:
        stream: read from its position to its end.
        longest: bytes of an item; a longer one is skipped, and its `content` is None.
        members: split a top-level object: each item of its arrays is an item, and each member that is no
            array. Otherwise the object is an item.

    Raises:
        DataError: it is no JSON from a byte on that the message names. Earlier items have been yielded.

    >>> import io
    >>> [item.content for item in iter_items(io.BytesIO(b'[1, {"a": [2, 3]}]'), longest=100)]
    [b'1', b'{"a": [2, 3]}']
    >>> [item.key for item in iter_items(io.BytesIO(b'{"a": [2, 3]}'), longest=100, members=True)]
    ['a', 'a']
    """
    return _Scanner(stream, longest).items(members=members)


def load_item(content: bytes) -> Any:
    """The value of an item. A float is finite; an integer may be of any size, and a string of any content.

    Raises:
        DataError: it is no JSON, not UTF-8, nested too deeply or in too many parts, or has numbers that
            are not allowed.

    >>> load_item(b'{"a": [1, 2.5]}')
    {'a': [1, 2.5]}
    """
    if content.count(b"[") + content.count(b"{") > MOST_CONTAINERS:
        raise DataError("It has too many lists in it.", _AGAIN)
    try:
        return _DECODER.decode(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError("It has text that is not UTF-8.", "Save it as UTF-8.") from error
    except RecursionError as error:
        raise DataError("It is nested too deeply.", _AGAIN) from error
    except json.JSONDecodeError as error:
        raise DataError(f"It is no JSON: {error.msg} at its character {error.pos}.", _AGAIN) from error
    except ValueError as error:  # an integer of thousands of digits
        raise DataError("It has a number that is too large.", _AGAIN) from error


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise DataError("It has a number that is too large.", _AGAIN)
    return value


def _no_number(text: str) -> NoReturn:
    raise DataError(f"It has {text} where a number is needed.", _AGAIN)


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_no_number)


class _Brackets:
    """The brackets of a chunk that are not part of a string, and their depth.

    Args:
        text: without escapes.
        start: the text before it is ignored.
        quoted: whether it begins within a string.
    """

    def __init__(self, text: bytes, start: int, *, quoted: bool) -> None:
        codes = _CODES[np.frombuffer(text, dtype=np.uint8)[start:]]
        found = np.flatnonzero(codes)
        quotes = codes[found] == _QUOTE
        outside = (np.cumsum(quotes) + quoted) % 2 == 0
        self.quoted = bool(not outside[-1]) if len(found) else quoted
        """Whether the chunk ends within a string."""
        brackets = outside & ~quotes
        self._positions = found[brackets] + start
        self._steps = codes[found][brackets]
        self._depths = np.cumsum(self._steps, dtype=np.int64)
        self._ends: dict[int, npt.NDArray[np.int64]] = {}

    def depth_before(self, position: int) -> int:
        """The number of brackets that are open at a position."""
        index = int(np.searchsorted(self._positions, position))
        return int(self._depths[index - 1]) if index else 0

    def depth(self) -> int:
        """The depth at the chunk's end."""
        return int(self._depths[-1]) if len(self._depths) else 0

    def end(self, depth: int, *, after: int) -> int | None:
        """The first position at which a bracket closes down to a depth; None where none does."""
        if depth not in self._ends:
            closing = (self._depths == depth) & (self._steps < 0)
            self._ends[depth] = self._positions[closing]
        ends = self._ends[depth]
        index = int(np.searchsorted(ends, after))
        return int(ends[index]) + 1 if index < len(ends) else None


class _Scanner:
    """Reads a stream a chunk at a time; keeps the bytes of the current value."""

    def __init__(self, stream: BinaryIO, longest: int) -> None:
        self._stream = stream
        self._longest = longest
        self._buffer = b""
        self._text = b""
        """The buffer with every escape in it blanked out."""
        self._brackets: _Brackets | None = None
        self._at = 0
        """Position in the buffer."""
        self._before = 0
        """Bytes of the stream before the buffer."""
        self._kept: list[bytes] | None = None
        """The value's bytes of former chunks; None outside of a value."""
        self._start = 0
        """Position in the buffer at which the value continues."""

    def items(self, *, members: bool) -> Iterator[Item]:
        if self._more() and self._buffer.startswith(_BOM):
            self._at = len(_BOM)
        while (byte := self._peek()) is not None:
            if byte == b"[":
                yield from self._array(None)
            elif byte == b"{" and members:
                yield from self._members()
            else:
                yield self._value(None, listed=False)

    def _array(self, key: str | None) -> Iterator[Item]:
        self._at += 1
        if self._peek() == b"]":
            self._at += 1
            return
        while True:
            yield self._value(key, listed=True)
            if self._next(b",]") == b"]":
                return

    def _members(self) -> Iterator[Item]:
        self._at += 1
        if self._peek() == b"}":
            self._at += 1
            return
        while True:
            key = self._key()
            self._next(b":")
            if self._peek() == b"[":
                yield from self._array(key)
            else:
                yield self._value(key, listed=False)
            if self._next(b",}") == b"}":
                return

    def _key(self) -> str:
        if self._peek() != b'"':
            self._fail("a name in quotes is missing")
        item = self._value(None, listed=False)
        if item.content is None or item.length > LONGEST_KEY:
            self._fail("a name is too long")
        return load_item(item.content)

    def _value(self, key: str | None, *, listed: bool) -> Item:
        """Read the next value."""
        byte = self._peek()
        self._kept, self._start = [], self._at
        offset = self._before + self._at
        if byte is None:
            self._fail("it ends too early")
        elif byte in b"[{":
            self._skip_container()
        elif byte == b'"':
            self._skip_string()
        elif byte in b",:]}":
            self._fail("a value is missing")
        else:
            self._skip_word()
        length = self._before + self._at - offset
        content = None
        if length <= self._longest:
            content = b"".join((*self._kept, self._buffer[self._start : self._at]))
        self._kept = None
        return Item(key=key, offset=offset, content=content, length=length, listed=listed)

    def _skip_container(self) -> None:
        if self._brackets is None:
            self._brackets = _Brackets(self._text, self._at, quoted=False)
        depth = self._brackets.depth_before(self._at)
        while (end := self._brackets.end(depth, after=self._at)) is None:
            depth -= self._brackets.depth()
            quoted = self._brackets.quoted
            self._need_more()
            self._brackets = _Brackets(self._text, 0, quoted=quoted)
        self._at = end

    def _skip_string(self) -> None:
        self._at += 1
        while (end := self._text.find(b'"', self._at)) < 0:
            self._need_more()
        self._at = end + 1

    def _skip_word(self) -> None:
        """Skip a number, true, false, null, or an invalid word."""
        while True:
            self._at = self._matched(_WORD)
            if self._at < len(self._buffer) or not self._more():
                return

    def _next(self, allowed: bytes) -> bytes:
        """Read the next byte, which must be one of the allowed ones."""
        byte = self._peek()
        if byte is None:
            self._fail("it ends too early")
        if byte not in allowed:
            self._fail(f"there is no {' or '.join(chr(byte) for byte in allowed)}")
        self._at += 1
        return byte

    def _peek(self) -> bytes | None:
        """The next byte that is no space; None at the end."""
        while True:
            self._at = self._matched(_SPACE)
            if self._at < len(self._buffer):
                return self._buffer[self._at : self._at + 1]
            if not self._more():
                return None

    def _matched(self, pattern: re.Pattern[bytes]) -> int:
        """The end of a pattern's match, which may be empty."""
        match = pattern.match(self._text, self._at)
        return self._at if match is None else match.end()

    def _need_more(self) -> None:
        if not self._more():
            self._fail("it ends too early")

    def _more(self) -> bool:
        """Go on to the next chunk; False at the end of the stream."""
        if self._kept is not None:
            self._keep(self._buffer[self._start :])
        self._before += len(self._buffer)
        self._buffer = self._stream.read(_CHUNK)
        if (len(self._buffer) - len(self._buffer.rstrip(b"\\"))) % 2:
            self._buffer += self._stream.read(1)  # a chunk ends with a whole escape
        self._text = _ESCAPE.sub(b"__", self._buffer) if b"\\" in self._buffer else self._buffer
        self._brackets = None
        self._at = self._start = 0
        return bool(self._buffer)

    def _keep(self, part: bytes) -> None:
        """Keep a part of a value, unless the value is too long already."""
        assert self._kept is not None
        if sum(map(len, self._kept)) + len(part) <= self._longest:
            self._kept.append(part)
        else:
            self._kept.clear()

    def _fail(self, why: str) -> NoReturn:
        raise DataError(f"It is no JSON from its byte {self._before + self._at} on: {why}.", _AGAIN)
