"""The elements of an untrusted XML file: one after another, in bounded memory.

Document types are rejected, and with them every entity that a file could declare. expat keeps a tag until it
is complete, so that the length of a tag is checked while it is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import BinaryIO
from xml.parsers import expat

from pipeline.errors import DataError

LONGEST_TAG = 32 << 20
"""Bytes of a tag with its attributes, or of anything else that is no element: a comment, an instruction."""
LONGEST_ELEMENT = 128 << 20
"""Bytes of an element with its content."""
MOST_ELEMENTS = 200_000
"""Elements in an element."""
MOST_ATTRIBUTES = 1000
"""Attributes of a tag that is longer than a chunk."""
DEEPEST = 64
"""Elements within each other."""

_CHUNK = 1 << 20
_AGAIN = "Export it from the labeling tool again."


@dataclass(frozen=True)
class Element:
    """An element with its content.

    Attributes:
        text: directly in it, without spaces around.
        line: of its begin, from 1 on.
        start: of its begin, in bytes of the stream.
    """

    tag: str
    attributes: dict[str, str]
    children: list[Element]
    text: str
    line: int
    start: int

    def child(self, tag: str) -> Element | None:
        """The first child of this tag."""
        return next((child for child in self.children if child.tag == tag), None)

    def text_of(self, tag: str) -> str | None:
        """The text of the first child of this tag; None where there is none."""
        child = self.child(tag)
        return None if child is None or not child.text else child.text


@dataclass(frozen=True)
class TooLarge:
    """An element that was skipped because it has too much content."""

    tag: str
    attributes: dict[str, str]
    line: int
    reason: str


def iter_elements(
    stream: BinaryIO, tags: AbstractSet[str], *, longest: int = LONGEST_ELEMENT
) -> Iterator[Element | TooLarge]:
    """The elements with one of the tags, at any depth; an element within another is a part of that one.

    Args:
        longest: bytes that an element may have.

    Raises:
        DataError: it is no XML, or is not supported, from some line on. Earlier elements have been
            yielded.
    """
    parser = _Parser(tags, longest)
    going = True
    while going:
        chunk = stream.read(_CHUNK)
        going = bool(chunk)
        problem = parser.feed(chunk)
        yield from parser.ended()
        if problem is not None:
            raise problem


@dataclass
class _Open:
    """An element whose end has not been read yet."""

    tag: str
    attributes: dict[str, str]
    line: int
    start: int
    children: list[Element] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


class _Parser:
    def __init__(self, tags: AbstractSet[str], longest: int) -> None:
        self._tags = tags
        self._longest = longest
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters
        self._parser.StartDoctypeDeclHandler = self._doctype
        self._parser.CommentHandler = self._anything
        self._parser.ProcessingInstructionHandler = self._anything
        self._parser.XmlDeclHandler = self._anything
        self._depth = 0
        self._open: list[_Open] = []
        """The current element to yield, and the open elements within it, outermost first."""
        self._outer_depth = 0
        self._elements = 0
        self._reason: str | None = None
        """The reason why the content of the current element is not kept."""
        self._ended: list[Element | TooLarge] = []
        self._fed = 0
        self._event = 0
        """Begin of the last event, in bytes of the stream."""
        self._equals = 0
        """Equals signs (attributes) since then, in whole chunks."""

    def feed(self, chunk: bytes) -> DataError | None:
        """Parse a chunk; an empty one is the end. Returns the error, if it has one."""
        begin = self._fed
        self._fed += len(chunk)
        try:
            self._parser.Parse(chunk, not chunk)
        except expat.ExpatError as error:
            return _problem(error.lineno, expat.ErrorString(error.code))
        except DataError as error:
            return error
        except (LookupError, ValueError):
            return _problem(self._parser.CurrentLineNumber, "its encoding is not supported")
        self._equals = self._equals + chunk.count(b"=") if self._event < begin else 0
        if self._fed - self._event > LONGEST_TAG or self._equals > MOST_ATTRIBUTES:
            return _problem(self._parser.CurrentLineNumber, "a tag is too long")
        return None

    def ended(self) -> list[Element | TooLarge]:
        """The elements that have ended since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._anything()
        self._depth += 1
        if self._depth > DEEPEST:
            raise _problem(self._parser.CurrentLineNumber, "its elements are nested too deeply")
        if not self._open and tag not in self._tags:
            return
        if not self._open:
            self._outer_depth, self._elements, self._reason = self._depth, 0, None
        self._elements += 1
        self._check()
        if not self._open or self._reason is None:
            line, start = self._parser.CurrentLineNumber, self._parser.CurrentByteIndex
            self._open.append(_Open(tag, attributes, line, start))

    def _end(self, tag: str) -> None:
        self._anything()
        depth, self._depth = self._depth, self._depth - 1
        if not self._open:
            return
        self._check()
        if self._reason is not None:
            if depth == self._outer_depth:
                outer = self._open.pop()
                self._ended.append(TooLarge(outer.tag, outer.attributes, outer.line, self._reason))
            return
        ended = self._open.pop()
        element = Element(
            tag=ended.tag,
            attributes=ended.attributes,
            children=ended.children,
            text="".join(ended.texts).strip(),
            line=ended.line,
            start=ended.start,
        )
        if self._open:
            self._open[-1].children.append(element)
        else:
            self._ended.append(element)

    def _characters(self, text: str) -> None:
        self._anything()
        if self._open and self._reason is None:
            self._check()
            if self._reason is None and not text.isspace():
                self._open[-1].texts.append(text)

    def _check(self) -> None:
        """Stop keeping the content of an element that has become too large."""
        if self._reason is not None:
            return
        if self._open and self._parser.CurrentByteIndex - self._open[0].start > self._longest:
            self._reason = f"It has more than the {self._longest >> 20} MiB that it may have."
        elif self._elements > MOST_ELEMENTS:
            self._reason = f"It has more than the {MOST_ELEMENTS} shapes that it may have."
        if self._reason is not None:
            del self._open[1:]
            self._open[0].children.clear()
            self._open[0].texts.clear()

    def _doctype(self, *_: object) -> None:
        raise _problem(self._parser.CurrentLineNumber, "it declares a document type")

    def _anything(self, *_: object) -> None:
        self._event = self._parser.CurrentByteIndex


def _problem(line: int, why: str) -> DataError:
    return DataError(f"It cannot be read as XML from its line {line} on: {why}.", _AGAIN)
