"""Sources: the files that a labeling tool sends, and hostile variants of them."""

from __future__ import annotations

import io
import os
import random
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from tests.fuzz.values import TEXTS, mutate_bytes, mutate_json, mutate_lines, mutate_xml
from tests.pipeline.claiming_png import SIGNATURE, chunk

Files = dict[str, bytes]
"""Contents by their paths in a folder."""

Shape = Literal["file", "folder", "zip"]
"""What a reader is given: the one file, or all of them in a folder or a zip archive."""

_PLAIN = 60
"""A way in which nothing is hostile."""
_HOSTILE_NAMES = [
    *(
        "../outside.png",
        "/absolute.png",
        "a/../../b.png",
        "..\\..\\c.png",
        "C:\\d.png",
        "e\0f.png",
        ".hidden.png",
    ),
    *(
        "nested/" * 40 + "g.png",
        "h" * 250 + ".png",
        "\u202egnp.i",
        "con.png",
        "-rf.png",
        "j.png/",
        "k.PNG",
        " .png",
    ),
]


def mutated(files: Files, chance: random.Random) -> Files:
    """A variant of some files: most of them changed where it makes sense, some of them anywhere."""
    changed = dict(files)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        if not changed:
            break
        name = chance.choice(sorted(changed))
        way = chance.randrange(20)
        if way == 0:
            del changed[name]
        elif way == 1:
            changed[chance.choice([*_HOSTILE_NAMES, *files])] = changed.pop(name)
        elif way == 2:
            changed[chance.choice(_HOSTILE_NAMES)] = changed[name]
        elif way == 3:
            changed[name] = changed[chance.choice(sorted(changed))]
        elif way <= 6:
            changed[name] = mutate_bytes(changed[name], chance)
        else:
            changed[name] = _mutate_content(name, changed[name], chance)
    return changed


def _mutate_content(name: str, content: bytes, chance: random.Random) -> bytes:
    ways: dict[str, Callable[[bytes, random.Random], bytes]] = {
        ".json": mutate_json,
        ".xml": mutate_xml,
        ".txt": mutate_lines,
        ".png": mutate_png,
    }
    way = ways.get(Path(name).suffix.lower(), mutate_bytes)
    try:
        return way(content, chance)
    except (ValueError, SyntaxError, LookupError, RecursionError, struct.error):  # it has been changed before
        return mutate_bytes(content, chance)


def mutate_png(content: bytes, chance: random.Random) -> bytes:
    """Change the chunks of a PNG, and make their sums right again."""
    chunks: list[tuple[bytes, bytes]] = []
    at = len(SIGNATURE)
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    index = chance.randrange(len(chunks))
    kind, data = chunks[index]
    way = chance.randrange(6)
    if way == 0:
        del chunks[index]
    elif way == 1:
        chunks.insert(index, (kind, data))
    elif way == 2:
        side = chance.choice([0, 1, 2**16, 10**6, 2**31 - 1])
        chunks[0] = (b"IHDR", struct.pack(">II", side, chance.choice([side, 1])) + chunks[0][1][8:])
    elif way == 3:
        chunks[0] = (
            b"IHDR",
            chunks[0][1][:8] + bytes([chance.choice([1, 2, 8, 16, 3]), chance.randrange(8), 0, 0, 0]),
        )
    elif way == 4:
        text = zlib.compress(b"a" * chance.choice([10, 1 << 20, 8 << 20]))
        chunks.insert(1, (chance.choice([b"zTXt", b"iCCP"]), b"a\0\0" + text))
    else:
        chunks[index] = (kind, mutate_bytes(data, chance))
    return SIGNATURE + b"".join(chunk(kind, data) for kind, data in chunks)


def materialise(files: Files, root: Path, *, shape: Shape, main: str, chance: random.Random | None) -> Path:
    """Write the files as what a reader is given; the path of that. With `chance`, what holds them may be
    hostile too."""
    if shape == "file":
        path = root / Path(main).name
        path.write_bytes(files.get(main, b""))
        return path
    if shape == "zip":
        path = root / "sent.zip"
        content = _zipped(files, chance)
        path.write_bytes(mutate_bytes(content, chance) if chance and chance.random() < 0.2 else content)
        return path
    folder = root / "sent"
    folder.mkdir()
    for name, content in files.items():
        _put(folder, name, content, chance)
    return folder


def _put(folder: Path, name: str, content: bytes, chance: random.Random | None) -> None:
    path = folder / name.replace("\0", "").lstrip("/")
    if not path.resolve().is_relative_to(folder.resolve()):
        path = folder / path.name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        way = chance.randrange(60) if chance else _PLAIN
        if chance and way == 0:
            path.symlink_to(chance.choice(["/etc/passwd", "..", "nowhere", path.name, "/dev/zero"]))
        elif way == 1:
            os.mkfifo(path)
        elif way == 2:
            path.mkdir()
        else:
            path.write_bytes(content)
    except OSError:  # a name that the file system does not take, or a file where a folder is needed
        pass


def _zipped(files: Files, chance: random.Random | None) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name.replace("\0", "_") or "a", date_time=(1980, 1, 1, 0, 0, 0))
            info.orig_filename = info.filename = name or "a"
            info.compress_type = zipfile.ZIP_DEFLATED
            way = chance.randrange(60) if chance else _PLAIN
            if chance and way == 0:
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
                content = chance.choice(TEXTS).encode(errors="replace")
            elif way == 1:
                info.compress_type = zipfile.ZIP_BZIP2
            elif way == 2:
                content += b" " * (4 << 20)
            elif way == 3:
                info.compress_type = zipfile.ZIP_STORED
            try:
                archive.writestr(info, content)
            except (ValueError, UnicodeEncodeError):
                continue
    return stream.getvalue()
