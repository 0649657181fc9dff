"""The items of a JSON file, whatever the file is."""

from __future__ import annotations

import io
import json
import time
import tracemalloc
from typing import Any, BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.labeling.untrusted import json_items
from pipeline.labeling.untrusted.json_items import Item, iter_items, load_item

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
SPACING = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n\t", " :\r\n ")])


class Dripping(io.RawIOBase):
    """Gives a few bytes at a time, so that every byte comes to be a chunk's first and last."""

    def __init__(self, content: bytes, size: int) -> None:
        self._inner = io.BytesIO(content)
        self._size = size

    def read(self, size: int = -1) -> bytes:
        return self._inner.read(min(self._size, size))


def items(content: bytes, *, longest: int = 10_000, size: int = 1 << 18, members: bool = False) -> list[Item]:
    stream: BinaryIO = Dripping(content, size)  # pyright: ignore[reportAssignmentType]
    return list(iter_items(stream, longest=longest, members=members))


def loaded(found: list[Item]) -> list[Any]:
    return [load_item(item.content) for item in found if item.content is not None]


@settings(deadline=None, max_examples=60)
@given(st.lists(VALUES), SPACING, st.booleans(), st.integers(1, 7))
def test_an_array_gives_its_items_wherever_the_chunks_end(
    values: list[Any], spacing: tuple[str, str], ascii_only: bool, size: int
) -> None:
    content = json.dumps(values, separators=spacing, ensure_ascii=ascii_only).encode(errors="replace")
    assert loaded(items(content, size=size)) == json.loads(content)


@settings(deadline=None, max_examples=60)
@given(st.lists(VALUES.filter(lambda value: not isinstance(value, list))), st.integers(1, 7))
def test_values_one_after_another_are_items(values: list[Any], size: int) -> None:
    content = b"\n".join(json.dumps(value).encode() for value in values)
    found = items(content, size=size)
    assert loaded(found) == [json.loads(line) for line in content.splitlines()]
    assert not any(item.listed for item in found)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.text(max_size=20), VALUES), SPACING, st.integers(1, 7))
def test_the_members_of_an_object_come_with_their_names(
    document: dict[str, Any], spacing: tuple[str, str], size: int
) -> None:
    content = json.dumps(document, separators=spacing).encode()
    expected = [
        (key, listed)
        for key, value in document.items()
        for listed in (value if isinstance(value, list) else [value])
    ]
    found = items(content, size=size, members=True)
    assert list(zip([item.key for item in found], loaded(found), strict=True)) == expected
    assert [item.listed for item in found] == [isinstance(document[key], list) for key, _ in expected]


@settings(deadline=None, max_examples=60)
@given(st.lists(VALUES, min_size=1), st.integers(1, 7))
def test_an_item_can_be_read_again_where_it_says_that_it_lies(values: list[Any], size: int) -> None:
    content = b"\xef\xbb\xbf" + json.dumps(values).encode()
    for item in items(content, size=size):
        assert content[item.offset : item.offset + item.length] == item.content


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=40), st.booleans())
def test_bytes_that_are_no_json_are_refused_and_nothing_else_happens(content: bytes, members: bool) -> None:
    try:
        loaded(items(content, members=members))
    except DataError:
        return
    text = content.decode("utf-8-sig")  # what is taken is text, and every value of it is JSON
    decoder, at = json.JSONDecoder(), 0
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        at = decoder.raw_decode(text, at)[1]


def test_an_item_that_is_too_long_is_passed_over_and_the_next_one_is_not() -> None:
    content = json.dumps([1, "x" * 500, {"a": [2] * 300}, [3]]).encode()
    for size in (1, 64, 10_000):
        found = items(content, longest=100, size=size)
        assert [item.content for item in found] == [b"1", None, None, b"[3]"]
        assert [item.length for item in found[1:3]] == [502, 907]


@pytest.mark.parametrize(
    ("content", "before", "at"),
    [
        (b"[1, 2", [1, 2], 5),
        (b"[1, 2 3]", [1, 2], 6),
        (b"[1, , 2]", [1], 4),
        (b"[1, 2,]", [1, 2], 6),
        (b'[1, {"a": "', [1], 11),
        (b"[1, [[[[", [1], 8),
        (b'[1, "\\', [1], 6),
        (b"1 ]", [1], 2),
        (b"[1}", [1], 2),
    ],
)
def test_a_broken_file_gives_what_comes_before_and_says_where_it_breaks(
    content: bytes, before: list[int], at: int
) -> None:
    found: list[Item] = []
    with pytest.raises(DataError, match=f"byte {at} on"):
        found.extend(iter_items(io.BytesIO(content), longest=100))
    found = []
    with pytest.raises(DataError):
        for item in iter_items(io.BytesIO(content), longest=100):
            found.append(item)
    assert loaded(found) == before


@pytest.mark.parametrize("content", [b'{"a" 1}', b"{1: 2}", b'{"a": 1,}', b'{"a": 1', b"{,}", b'{"a": }'])
def test_a_broken_object_of_members_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="no JSON from its byte"):
        items(content, members=True)


def test_a_members_name_of_megabytes_is_refused() -> None:
    with pytest.raises(DataError, match="a name is too long"):
        items(b'{"' + b"a" * (1 << 20) + b'": 1}', longest=1 << 24, members=True)


@pytest.mark.parametrize("content", [b"", b"  \n", b"\xef\xbb\xbf", b"[]", b"[ ]"])
def test_a_file_of_nothing_has_no_items(content: bytes) -> None:
    assert items(content, size=2 if b"[" in content else 4) == []


def test_nesting_is_passed_over_without_recursion_and_refused_when_it_is_loaded() -> None:
    deep = b"[" * 200_000 + b"]" * 200_000
    first, second = items(b"[" + deep + b", 7]", longest=1 << 20)
    assert first.content == deep
    assert second.content == b"7"
    with pytest.raises(DataError, match="nested too deeply"):
        load_item(deep)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"NaN", "NaN"),
        (b"[-Infinity]", "-Infinity"),
        (b"1e999", "too large"),
        (b"9" * 5000, "too large"),
        (b'"\xff"', "UTF-8"),
        (b"\x00[\x00]", "no JSON"),
        (b"{'a': 1}", "no JSON"),
        (b"[1}", "no JSON"),
        (b"[" + b"[]," * 2_000_000 + b"1]", "too many lists"),
        (b"", "no JSON"),
        (b'"a\nb"', "no JSON"),
    ],
)
def test_what_cannot_be_a_value_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        load_item(content)


def test_a_key_that_is_there_twice_means_the_later_one() -> None:
    assert load_item(b'{"a": 1, "a": 2}') == {"a": 2}


def test_memory_is_that_of_an_item_and_not_of_the_file() -> None:
    item = b'{"rle": [' + b"255, " * 10_000 + b"0]}"

    class Endless(io.RawIOBase):
        left = 600

        def read(self, size: int = -1) -> bytes:
            self.left -= 1
            return b"[" + item if self.left == 599 else b"," + item if self.left > 0 else b""

    tracemalloc.start()
    try:
        stream: BinaryIO = Endless()  # pyright: ignore[reportAssignmentType]
        with pytest.raises(DataError, match="ends too early"):
            for found in iter_items(stream, longest=1 << 16):
                assert found.length == len(item)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 * len(item)


def test_a_brush_mask_of_megabytes_passes_at_the_speed_of_a_disk() -> None:
    content = b'[{"result": [' + b"255, 0, 12, " * (1 << 22) + b"1]}]"
    start = time.process_time()
    (item,) = iter_items(io.BytesIO(content), longest=1 << 20)
    elapsed = time.process_time() - start
    assert item.content is None
    assert len(content) / elapsed > 50e6  # on a machine that does other things too


def test_the_chunk_is_small_beside_what_an_item_may_be() -> None:
    assert json_items._CHUNK <= 1 << 18
