"""The elements of an XML file, whatever a stranger has written."""

from __future__ import annotations

import io
import time
import tracemalloc
from typing import BinaryIO
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.labeling.untrusted import xml_elements
from pipeline.labeling.untrusted.xml_elements import Element, TooLarge, iter_elements

MIB = 1 << 20
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cn"]), max_size=8)


class Endless(io.RawIOBase):
    """A beginning, then the same bytes again and again."""

    def __init__(self, begin: bytes, again: bytes, *, size: int) -> None:
        self._begin, self._again, self._left = begin, again, size

    def read(self, size: int = -1) -> bytes:
        if self._begin:
            begin, self._begin = self._begin, b""
            return begin
        given = (self._again * (size // len(self._again)))[: max(0, self._left)]
        self._left -= len(given)
        return given


def elements(content: bytes, *tags: str, longest: int = MIB) -> list[Element | TooLarge]:
    return list(iter_elements(io.BytesIO(content), frozenset(tags), longest=longest))


def until_error(stream: BinaryIO, *tags: str) -> tuple[list[str], str]:
    """The tags of the elements that came, and what was said then."""
    found: list[str] = []
    with pytest.raises(DataError) as error:
        found.extend(element.tag for element in iter_elements(stream, frozenset(tags)))
    return found, str(error.value)


def as_tree(element: Element | TooLarge) -> ElementTree.Element:
    assert isinstance(element, Element)
    tree = ElementTree.Element(element.tag, element.attributes)
    tree.text = element.text
    tree.extend(map(as_tree, element.children))
    return tree


def same(one: ElementTree.Element, other: ElementTree.Element) -> bool:
    return (
        (one.tag, one.attrib, (one.text or "").strip())
        == (other.tag, other.attrib, (other.text or "").strip())
        and len(one) == len(other)
        and all(map(same, one, other))
    )


TREES = st.recursive(
    st.builds(lambda tag, text: (tag, text, []), st.sampled_from("abc"), TEXTS),
    lambda inner: st.tuples(st.sampled_from("abc"), TEXTS, st.lists(inner, max_size=3)),
    max_leaves=10,
)


def build(made: tuple[str, str, list[object]]) -> ElementTree.Element:
    tag, text, children = made
    element = ElementTree.Element(tag, {"name": text, "other": 'a<b>&"c"'})
    if not children:
        element.text = text
    element.extend(build(child) for child in children)  # pyright: ignore[reportArgumentType]
    return element


@settings(deadline=None)
@given(st.lists(TREES, max_size=4), st.sampled_from(["utf-8", "utf-16", "us-ascii"]))
def test_elements_are_what_the_standard_library_reads(
    made: list[tuple[str, str, list[object]]], encoding: str
) -> None:
    root = ElementTree.Element("root")
    root.extend(build(tree) for tree in made)
    content = ElementTree.tostring(root, encoding=encoding, xml_declaration=True)
    found = [as_tree(element) for element in elements(content, "a", "b", "c")]
    assert len(found) == len(root)
    assert all(map(same, found, ElementTree.fromstring(content)))


def test_only_the_wanted_elements_come_with_their_lines_and_places() -> None:
    content = b"<r>\n<x><i n='1'/></x>\n  <i n='2'><i n='3'></i></i></r>"
    found = elements(content, "i")
    assert [(element.attributes["n"], element.line) for element in found] == [("1", 2), ("2", 3)]
    assert [element.start for element in found if isinstance(element, Element)] == [
        content.index(b"<i n='1'"),
        content.index(b"<i n='2'"),
    ]


def test_what_came_before_damage_counts() -> None:
    found, said = until_error(io.BytesIO(b"<r><i/>\n<i/>\n<i></r>"), "i")
    assert found == ["i", "i"]
    assert "from its line 3 on: mismatched tag" in said


@pytest.mark.parametrize(
    "content", [b"", b"<r><i/>", b"<r/><r/>", b"text", b"<r>&unknown;</r>", b"\x00", b"<r a='1' a='2'/>"]
)
def test_what_is_no_xml_is_a_data_error(content: bytes) -> None:
    assert "cannot be read as XML" in until_error(io.BytesIO(content), "i")[1]


def test_an_encoding_that_there_is_not_is_a_data_error() -> None:
    content = b"<?xml version='1.0' encoding='no-such'?><r/>"
    assert "cannot be read as XML" in until_error(io.BytesIO(content), "i")[1]


@pytest.mark.parametrize(
    "document_type",
    [
        '<!DOCTYPE r [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>',
        '<!DOCTYPE r [<!ENTITY a SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE r SYSTEM "http://example.org/r.dtd">',
        '<!DOCTYPE r [<!ATTLIST i n CDATA "1">]>',
    ],
)
def test_document_types_are_refused(document_type: str) -> None:
    content = f"<?xml version='1.0'?>\n{document_type}<r><i>&b;</i></r>".encode()
    found, said = until_error(io.BytesIO(content), "i")
    assert found == []
    assert "from its line 2 on: it declares a document type" in said


@pytest.mark.parametrize(
    ("begin", "again"),
    [
        (b"<r><i/><i n='", b"x" * 997),
        (b"<r><i/><!--", b"x" * 997),
        (b"<r><i/><", b"x" * 997),
        (b"<r><i/><i ", b"a"),
        (b"<r><i/><?x ", b"y" * 997),
        (b"<r><i/><i x='1", b" " * 997),
    ],
)
def test_a_gigantic_tag_ends_the_reading_in_bounded_memory(begin: bytes, again: bytes) -> None:
    tracemalloc.start()
    started = time.monotonic()
    found, said = until_error(Endless(begin, again, size=1 << 40), "i")  # pyright: ignore[reportArgumentType]
    assert found == ["i"]
    assert "a tag is too long" in said
    assert time.monotonic() - started < 30
    assert tracemalloc.get_traced_memory()[1] < 128 * MIB
    tracemalloc.stop()


def test_a_tag_of_millions_of_attributes_ends_the_reading() -> None:
    attributes = b" ".join(b"a%d=''" % number for number in range(700_000))
    found, said = until_error(io.BytesIO(b"<r><i/><i " + attributes + b"/></r>"), "i")
    assert found == ["i"]
    assert "a tag is too long" in said


def test_long_text_outside_of_the_wanted_elements_costs_nothing() -> None:
    content = b"<r><i/><x>" + b"text " * 4_000_000 + b"</x><i/></r>"
    tracemalloc.start()
    assert len(elements(content, "i")) == 2
    assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    tracemalloc.stop()


@pytest.mark.parametrize(
    "inner", [b"<p a='1'/>" * 300_000, b"x" * (2 * MIB), b"<p>" + b"x" * (2 * MIB) + b"</p>"]
)
def test_an_element_with_too_much_in_it_is_passed_over(inner: bytes) -> None:
    content = b"<r><i n='1'>" + inner + b"</i>\n<i n='2'/></r>"
    large, after = elements(content, "i")
    assert isinstance(large, TooLarge)
    assert (large.attributes, large.line) == ({"n": "1"}, 1)
    assert "more than the 1 MiB" in large.reason
    assert isinstance(after, Element)
    assert after.attributes == {"n": "2"}


def test_more_elements_than_the_limit_are_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xml_elements, "MOST_ELEMENTS", 10)
    enough, large = elements(b"<r><i>" + b"<p/>" * 9 + b"</i><i>" + b"<p/>" * 10 + b"</i></r>", "i")
    assert isinstance(enough, Element)
    assert isinstance(large, TooLarge)
    assert "more than the 10 shapes" in large.reason


def test_deep_nesting_ends_the_reading() -> None:
    found, said = until_error(io.BytesIO(b"<r><i/>" + b"<a>" * 100_000), "i")
    assert found == ["i"]
    assert "nested too deeply" in said


def test_memory_does_not_grow_with_the_number_of_elements() -> None:
    stream = Endless(b"<r>", b"<i n='1'><p a='2'/></i>", size=23 * 60_000)
    tracemalloc.start()
    with pytest.raises(DataError, match="no element found"):  # it has no end
        for _ in iter_elements(stream, frozenset({"i"})):  # pyright: ignore[reportArgumentType]
            pass
    assert tracemalloc.get_traced_memory()[1] < 64 * MIB
    tracemalloc.stop()
