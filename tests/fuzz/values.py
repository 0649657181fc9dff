"""Values that nobody expects, and places to put them: in documents, in text, in bytes, in names."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

NUMBERS: list[Any] = [
    *(0, 1, -1, 2, 7, 255, 256, 2**15, 2**24, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64),
    *(-(2**31), -(2**63), 10**30, 10**400, -(10**400), 0.0, -0.0, 0.5, -0.5, 1e-320, 1e18, 1e300, -1e300),
    *(float("nan"), float("inf"), float("-inf"), True, False, None),
]
TEXTS = [
    *(
        "",
        " ",
        "0",
        "-1",
        "1e999",
        "NaN",
        "null",
        "true",
        "\0",
        "a\0b",
        "\x1b[31m",
        "\r\n",
        "\u202e",
        "\ud800",
    ),
    *("<script>alert(1)</script>", "' OR 1=1 --", "{{7*7}}", "%s%n", "${x}", "../../etc/passwd", "..", "."),
    *(
        "/etc/passwd",
        "C:\\Windows\\win.ini",
        "\\\\host\\share",
        "~",
        "file:///etc/passwd",
        "http://a/b",
        "CON",
    ),
    *(
        "ﷺ" * 50,
        "é",
        "e\u0301",
        "日本",
        "a" * 255,
        "a" * 300,
        "A" * 20_000,
        "o" * 64,
        "0" * 5000,
        "1," * 9000,
    ),
    *("data:image/png;base64,", "data:image/png;base64,AAAA", "9" * 400, "0x10", "١٢٣", "1_000", "+5", " 5"),
]

_NUMBER_IN_TEXT = re.compile(r"-?\d+(\.\d+)?")


def number(chance: random.Random, like: Any = None) -> Any:
    """A number, near the one that was there or far from anything."""
    if isinstance(like, int | float) and not isinstance(like, bool) and chance.random() < 0.5:
        return like + chance.choice([-1, 1, 0.5, -2, 1000, -1000]) if abs(like) < 2**64 else like
    return chance.choice(NUMBERS)


def text(chance: random.Random, like: str = "") -> str:
    """A text, made from the one that was there or of nobody's."""
    way = chance.randrange(6)
    if way == 0 and like:
        at = chance.randrange(len(like))
        return like[:at] + chance.choice(["", "\0", "'", "<", "&", "/", "9", "\ud83d", like]) + like[at + 1 :]
    if way == 1 and like:
        return like[: chance.randrange(len(like))]
    if way == 2:
        return _NUMBER_IN_TEXT.sub(lambda _: _plain(number(chance)), like, count=1)
    if way == 3 and "," in like:
        parts = like.split(",")
        parts[chance.randrange(len(parts))] = _plain(number(chance))
        return ",".join(parts)
    return chance.choice(TEXTS)


def _plain(value: Any) -> str:
    return "" if value is None else str(value)[:500]


def mutate_bytes(content: bytes, chance: random.Random) -> bytes:
    """Flip, cut, repeat, swap or overwrite."""
    if not content:
        return bytes([chance.randrange(256)])
    data = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 2, 5, 20])):
        at = chance.randrange(len(data)) if data else 0
        way = chance.randrange(7)
        if way == 0 and data:
            data[at] ^= 1 << chance.randrange(8)
        elif way == 1 and data:
            data[at] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
        elif way == 2:
            del data[at:]
        elif way == 3:
            del data[at : at + chance.choice([1, 2, 4, 64])]
        elif way == 4:
            data[at:at] = data[at : at + chance.choice([1, 4, 64, 4096])]
        elif way == 5:
            data[at : at + 4] = chance.choice([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\0\0\xff\xff"])
        else:
            data[at:at] = chance.choice(TEXTS).encode(errors="replace")[:2000]
    return bytes(data)


def mutate_json(content: bytes, chance: random.Random) -> bytes:
    """Change a document here and there, and leave it a document."""
    document = json.loads(content)
    for _ in range(chance.choice([1, 1, 1, 2, 3, 6])):
        document = _mutate_node(document, chance)
    return json.dumps(document, ensure_ascii=chance.random() < 0.8).encode(errors="surrogatepass")


def _mutate_node(document: Any, chance: random.Random) -> Any:
    """Walk down to any place, and change what is there."""
    parent: Any = None
    key: Any = None
    node: Any = document
    while isinstance(node, dict | list) and node and (parent is None or chance.random() < 0.8):
        parent = node
        key = chance.choice(list(node)) if isinstance(node, dict) else chance.randrange(len(node))
        node = node[key]
    if parent is None:
        return _changed(node, chance)
    way = chance.randrange(12)
    if way == 0:
        del parent[key]
    elif way == 1 and isinstance(parent, list):
        parent.extend([node] * chance.choice([1, 2, 50]))
    elif way == 2 and isinstance(parent, dict):
        parent[text(chance, str(key))] = parent.pop(key)
    elif way == 3:
        other = chance.choice(list(parent)) if isinstance(parent, dict) else chance.randrange(len(parent))
        parent[key], parent[other] = parent[other], parent[key]
    elif way == 4:
        parent[key] = chance.choice([[node], {"a": node}, [[node]], {str(key): node}, [], {}])
    elif way == 5:
        parent[key] = _nested(chance.choice([10, 60, 400]), node)
    else:
        parent[key] = _changed(node, chance)
    return document


def _changed(node: Any, chance: random.Random) -> Any:
    if chance.random() < 0.15:
        return chance.choice([number(chance), text(chance), [], {}, None, [number(chance)] * 3])
    if isinstance(node, str):
        return text(chance, node)
    if isinstance(node, list) and node and chance.random() < 0.5:
        chance.shuffle(node)
        return [*node[: chance.randrange(len(node) + 1)], number(chance, node[0])]
    if isinstance(node, int | float):
        return number(chance, node)
    return chance.choice([number(chance), text(chance), node])


def _nested(depth: int, node: Any) -> Any:
    for _ in range(depth):
        node = [node]
    return node


_TAGS = [
    "mask",
    "image",
    "polygon",
    "polyline",
    "box",
    "tag",
    "a",
    "annotations",
    "meta",
    "label",
    "job",
    "skeleton",
]


def mutate_xml(content: bytes, chance: random.Random) -> bytes:
    """Change elements here and there, and leave it XML."""
    root = ElementTree.fromstring(content)
    for _ in range(chance.choice([1, 1, 1, 2, 3, 6])):
        _mutate_element(root, chance)
    head = chance.choice(_HEADS) if chance.random() < 0.1 else b""
    try:
        return head + ElementTree.tostring(root, encoding="utf-8")
    except (ValueError, TypeError):
        return head + content


_HEADS = [
    b'<?xml version="1.0" encoding="utf-16"?>',
    b'<!DOCTYPE a [<!ENTITY x "yyyyyyyyyy"><!ENTITY z "&x;&x;&x;&x;&x;&x;&x;&x;">]>',
    b'<!DOCTYPE a SYSTEM "file:///etc/passwd">',
    b'<?xml version="1.0" encoding="nonsense"?>',
]


def _mutate_element(root: ElementTree.Element, chance: random.Random) -> None:
    parents = [element for element in root.iter() if len(element)]
    parent = chance.choice(parents) if parents else root
    element = chance.choice(list(parent)) if len(parent) else root
    way = chance.randrange(9)
    if way == 0 and element is not root:
        parent.remove(element)
    elif way == 1 and element is not root:
        parent.extend([element] * chance.choice([1, 2, 30]))
    elif way == 2 and element is not root:
        other = chance.choice(list(root.iter()))
        if element not in other.iter() and other not in element.iter():
            other.append(element)
    elif way == 3:
        element.tag = chance.choice(_TAGS)
    elif way == 4:
        element.text = _spelled(text(chance, element.text or ""))
    elif way == 5:
        for _ in range(chance.choice([1, 40, 80])):
            element = ElementTree.SubElement(element, chance.choice(_TAGS))
    elif element.attrib:
        name = chance.choice(list(element.attrib))
        if way == 6:
            del element.attrib[name]
        else:
            element.attrib[name] = _spelled(text(chance, element.attrib[name]))
    else:
        element.set(chance.choice(["label", "rle", "id", "name", "width"]), _spelled(text(chance)))


def _spelled(value: str) -> str:
    return value.encode(errors="replace").decode()


def mutate_lines(content: bytes, chance: random.Random) -> bytes:
    """Change a text file's lines."""
    lines = content.decode().split("\n")
    at = chance.randrange(len(lines))
    ways: list[Callable[[], Any]] = [
        lambda: lines.pop(at),
        lambda: lines.insert(at, lines[at]),
        lambda: lines.insert(at, text(chance)),
        lambda: lines.__setitem__(at, text(chance, lines[at])),
        lambda: chance.shuffle(lines),
    ]
    chance.choice(ways)()
    return "\n".join(lines).encode(errors="replace")
