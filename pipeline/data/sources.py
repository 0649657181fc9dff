"""Finding images: folders, globs and single files, streamed in natural order.

Names are sorted a folder at a time; a folder of more names than memory should hold is sorted on disk.
"""

from __future__ import annotations

import csv
import heapq
import json
import math
import os
import re
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

from pipeline.config import HeldOutSplit, InitialSplit, Project
from pipeline.data.images import IMAGE_ENDINGS
from pipeline.errors import DataError

SORTED_IN_MEMORY = 50_000
"""Names of one folder that are sorted in memory; more are sorted in files."""

_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Found:
    """A file that `data.images` names.

    Attributes:
        path: where it is.
        uri: how the store calls it.
        below: its path below its image folder, POSIX: what lists and CSV files may call it.
    """

    path: Path
    uri: str
    below: str

    @property
    def parent(self) -> str:
        """Its folder below its image folder; empty at the top."""
        return self.below.rpartition("/")[0]

    @property
    def stem(self) -> str:
        return self.path.stem

    @property
    def name(self) -> str:
        return self.path.name


@dataclass(frozen=True)
class _Source:
    """An entry of `data.images`: what lies below `base` and matches `pattern`, or everything there."""

    base: Path
    pattern: re.Pattern[str] | None
    depth: int | None

    def covers(self, path: Path) -> bool:
        if not path.is_relative_to(self.base):
            return False
        return self.pattern is None or bool(self.pattern.fullmatch(path.relative_to(self.base).as_posix()))


def find_images(project: Project) -> Iterator[Found]:
    """Every image file that `data.images` names, once, in natural order within its folder.

    The project's own folders, the mask folder, hidden files and the masks that lie among the images are
    left out; links to folders are followed.

    Raises:
        DataError: an entry of `data.images` does not exist.
    """
    sources = [_source(project, entry) for entry in project.config.data.images]
    excluded = _excluded(project)
    is_mask = _mask_test(project)
    for number, source in enumerate(sources):
        for path in _walk(source, excluded=excluded):
            if any(earlier.covers(path) for earlier in sources[:number]) or is_mask(path):
                continue
            below = path.relative_to(source.base).as_posix()
            yield Found(path=path, uri=project.uri(path), below=below)


def mask_path(project: Project, found: Found) -> Path | None:
    """The existing mask of an image, by `data.masks` and `data.mask_template`; None where there is none."""
    config = project.config.data
    if config.masks is None:
        return None
    relative = config.mask_template.format(parent=found.parent, stem=found.stem, name=found.name)
    path = Path(os.path.normpath(project.path(config.masks) / relative.lstrip("/")))
    return path if path != found.path and path.is_file() else None


class Sequences:
    """The group and the position of each image, by `data.group_csv`, or by regular expressions.

    Raises:
        DataError: the CSV cannot be read, or lacks its columns.
    """

    def __init__(self, project: Project) -> None:
        config = project.config.data
        self._group = re.compile(config.group_regex) if config.group_regex else None
        self._position = re.compile(config.position_regex) if config.position_regex else None
        self._rows = None
        self._csv = config.group_csv
        if config.group_csv is not None:
            self._rows = PathTable(read_groups(project.path(config.group_csv)))

    def place(self, found: Found) -> tuple[str, int | None]:
        """Group, and position where it is written in the CSV or in the path.

        Raises:
            DataError: the image is not in the CSV, or an expression does not match its path.
        """
        if self._rows is not None:
            row = self._rows.get(found)
            if row is None:
                raise DataError(f"{found.uri} is not in {self._csv}.", "Add a line for it.")
            group, position = json.loads(row)
        else:
            group, position = self._group_of(found), None
        if position is None and self._position is not None:
            position = self._position_of(found)
        return group, position

    def _group_of(self, found: Found) -> str:
        if self._group is None:
            return found.uri.rpartition("/")[0] or "."
        match = self._group.search(found.uri)
        text = None if match is None else match.group(1 if match.re.groups else 0)
        if not text:
            raise DataError(
                f"`data.group_regex` finds no group in {found.uri}.", "Mend the regular expression."
            )
        return text

    def _position_of(self, found: Found) -> int:
        match = self._position.search(found.uri) if self._position else None
        text = None if match is None else match.group(1 if match.re.groups else 0)
        try:
            return whole_number(text or "")
        except (ValueError, OverflowError) as error:
            raise DataError(
                f"`data.position_regex` finds no number in {found.uri}.", "Mend the regular expression."
            ) from error


class PathTable:
    """Paths and a text for each, on disk: a list of a million files does not stay in memory.

    An image is found by its URI, its absolute path, or its path below its image folder.
    """

    def __init__(self, rows: Iterable[tuple[str, str]]) -> None:
        self._database = sqlite3.connect("", check_same_thread=False)  # "": a temporary file
        self._database.execute(
            "CREATE TABLE row (path TEXT PRIMARY KEY, text TEXT, seen INTEGER) WITHOUT ROWID"
        )
        self._database.executemany(
            "INSERT OR REPLACE INTO row VALUES (?, ?, 0)", ((os.path.normpath(p), t) for p, t in rows)
        )

    def get(self, found: Found) -> str | None:
        """The text of an image, or None where it is not listed."""
        names = (found.uri, found.path.as_posix(), found.below)
        rows = self._database.execute("SELECT path, text FROM row WHERE path IN (?, ?, ?)", names).fetchall()
        if not rows:
            return None
        self._database.executemany(
            "UPDATE row SET seen = 1 WHERE path = ? AND seen = 0", [(path,) for path, _ in rows]
        )
        return rows[0][1]

    def unseen(self, limit: int) -> tuple[list[str], int]:
        """The first paths that no image had, and how many there are."""
        rows = self._database.execute("SELECT path FROM row WHERE seen = 0 LIMIT ?", (limit,)).fetchall()
        count = self._database.execute("SELECT count(*) FROM row WHERE seen = 0").fetchone()[0]
        return [path for (path,) in rows], count


def read_list(path: Path) -> Iterator[tuple[str, str]]:
    """The paths of a list file, a line each; empty lines and lines that start with # are passed over.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig") as stream:
            for line in stream:
                text = line.strip()
                if text and not text.startswith("#"):
                    yield text, ""
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The list {path} cannot be read: {error}.", "Name a readable text file.") from error


def read_groups(path: Path) -> Iterator[tuple[str, str]]:
    """Image and JSON `[group, position or null]` of each line of a CSV.

    Raises:
        DataError: the file cannot be read, lacks a column, or has a position that is no number.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            if not {"image", "group"} <= set(reader.fieldnames or ()):
                raise DataError(
                    f"{path} lacks the columns `image` and `group`.", "Name them in its first line."
                )
            for row in reader:
                position = (row.get("position") or "").strip()
                yield row["image"], json.dumps([row["group"], whole_number(position) if position else None])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}.", "Name a readable CSV.") from error
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(
            f"{path} has a line that is not image, group, position: {error}.", "Mend it."
        ) from error


def whole_number(text: str) -> int:
    """A number as a position: digits as they are (a time stamp in nanoseconds too), else rounded down.

    Raises:
        ValueError, OverflowError: the text is no number.
    """
    try:
        return int(text)
    except ValueError:
        return math.floor(float(text))


class Named:
    """The images that a `list` or a `folder` of `splits` names; none, where both are missing.

    Raises:
        DataError: the list cannot be read.
    """

    def __init__(self, project: Project, spec: HeldOutSplit | InitialSplit) -> None:
        self.given = spec.list is not None or spec.folder is not None
        self._list = spec.list
        self._paths = PathTable(read_list(project.path(spec.list))) if spec.list is not None else None
        self._folder = None
        if spec.folder is not None:
            folder = project.uri(project.path(spec.folder)).rstrip("/")
            self._folder = (glob_pattern(folder), glob_pattern(folder + "/**"))

    def __contains__(self, found: Found) -> bool:
        if self._paths is not None:
            return self._paths.get(found) is not None
        return self._folder is not None and any(part.fullmatch(found.uri) for part in self._folder)

    def unmatched(self) -> str | None:
        """The lines of the list that no image had, in words."""
        paths, count = self._paths.unseen(3) if self._paths is not None else ([], 0)
        if not count:
            return None
        more = ", …" if count > len(paths) else ""
        return f"{count} lines of {self._list} name no image: {', '.join(paths)}{more}"


def natural_key(name: str) -> str:
    """A text that sorts as people count: the number in `img10` after the one in `img9`.

    >>> sorted(["img10", "img9", "Img1"], key=natural_key)
    ['Img1', 'img9', 'img10']
    """
    # A run of digits sorts by its length, then by its digits: both are in the text.
    return re.sub(r"0*([0-9]+)", lambda run: f"{len(run[1]):03d}{run[1]}", name.casefold()) + "\0" + name


def _source(project: Project, entry: str) -> _Source:
    absolute = Path(os.path.abspath(project.path(entry)))
    if absolute.is_dir():
        return _Source(base=absolute, pattern=None, depth=None)
    if absolute.is_file():
        return _Source(base=absolute.parent, pattern=re.compile(re.escape(absolute.name)), depth=1)
    parts = absolute.parts
    fixed = next((index for index, part in enumerate(parts) if _MAGIC.search(part)), None)
    base = Path(*parts[:fixed]) if fixed is not None else absolute
    if fixed is None or not base.is_dir():
        raise DataError(f"`data.images` names {entry!r}, and there is no {base}.", "Mend the path.")
    tail = parts[fixed:]
    depth = None if "**" in tail else len(tail)
    return _Source(base=base, pattern=glob_pattern("/".join(tail)), depth=depth)


def glob_pattern(glob: str) -> re.Pattern[str]:
    """The expression that a whole POSIX path must match. `*` stays inside a folder, `**` does not.

    >>> [bool(glob_pattern(glob).fullmatch("a/b/c.png")) for glob in ("**/*.png", "a/*.png")]
    [True, False]
    """
    tokens = re.findall(r"\*\*/|\*\*|\*|\?|\[[^\]]+\]|.", glob, flags=re.DOTALL)
    spelled = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile(
        "".join(
            spelled.get(token) or (_set(token) if len(token) > 1 else re.escape(token)) for token in tokens
        ),
        flags=re.DOTALL,
    )


def _set(token: str) -> str:
    inside = token[1:-1].replace("\\", "\\\\")
    return f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]"


def _excluded(project: Project) -> set[str]:
    """Folders of the project's own, and of masks, wherever the walk meets them."""
    config = project.config
    own = [project.workdir, project.path(config.export.folder)]
    if config.data.masks is not None:
        masks = project.path(config.data.masks)
        if not masks.is_dir():
            raise DataError(
                f"`data.masks` is {config.data.masks!r}, and there is no folder {masks}.",
                "Make it, or mend the path.",
            )
        own.append(masks)
    return {os.path.realpath(path) for path in own}


def _mask_test(project: Project) -> Callable[[Path], bool]:
    """Whether a file that lies in the mask folder is the mask of an image beside it.

    Only asked where masks and images share a folder (the mask folder is an entry of `data.images`).
    """
    config = project.config.data
    if config.masks is None:
        return lambda path: False
    folder = Path(os.path.abspath(project.path(config.masks)))
    stem_at = config.mask_template.rpartition("/")[2]
    shape = re.escape(stem_at).replace(r"\{stem\}", "(?P<stem>.+)").replace(r"\{name\}", "(?P<name>.+)")
    pattern = re.compile(shape.replace(r"\{parent\}", ".*"))

    def is_mask(path: Path) -> bool:
        match = pattern.fullmatch(path.name) if path.is_relative_to(folder) else None
        if match is None:
            return False
        named = match.groupdict()
        if "name" in named:
            return (path.parent / named["name"]).is_file() and named["name"] != path.name
        images = (path.with_name(named.get("stem", "") + ending) for ending in sorted(IMAGE_ENDINGS))
        return any(image != path and image.is_file() for image in images)

    return is_mask


def _walk(source: _Source, *, excluded: set[str]) -> Iterator[Path]:
    """Matching image files below a folder, depth first; the folder itself is never excluded."""
    stack: list[tuple[Path, int, frozenset[str]]] = [
        (source.base, 1, frozenset({os.path.realpath(source.base)}))
    ]
    while stack:
        folder, depth, ancestors = stack.pop()
        folders: list[str] = []
        with _sorted_names(_names(folder, folders=folders)) as names:
            for name in names:
                path = folder / name
                if source.pattern is None or source.covers(path):
                    yield path
        if source.depth is not None and depth >= source.depth:
            continue
        for name in sorted(folders, key=natural_key, reverse=True):
            real = os.path.realpath(folder / name)
            if real not in excluded and real not in ancestors:
                stack.append((folder / name, depth + 1, ancestors | {real}))


def _names(folder: Path, *, folders: list[str]) -> Iterator[str]:
    """Image files of a folder, unsorted; its folders are put into `folders`."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif os.path.splitext(entry.name)[1].lower() in IMAGE_ENDINGS:
                    yield entry.name
    except OSError as error:
        raise DataError(
            f"The folder {folder} cannot be read: {error.strerror}.", "Give yourself permission."
        ) from error


class _sorted_names:
    """Names in natural order; beyond `SORTED_IN_MEMORY` they are sorted in temporary files and merged."""

    def __init__(self, names: Iterator[str]) -> None:
        self._names = names
        self._files = ExitStack()

    def __enter__(self) -> Iterator[str]:
        runs: list[IO[str]] = []
        while True:
            chunk = sorted(islice(self._names, SORTED_IN_MEMORY), key=natural_key)
            if not runs and len(chunk) < SORTED_IN_MEMORY:
                return iter(chunk)
            if not chunk:
                break
            run = self._files.enter_context(
                tempfile.TemporaryFile("w+", encoding="utf-8", errors="surrogateescape")
            )
            run.writelines(json.dumps(name) + "\n" for name in chunk)
            run.seek(0)
            runs.append(run)
        return heapq.merge(*((json.loads(line) for line in run) for run in runs), key=natural_key)

    def __exit__(self, *_: object) -> None:
        self._files.close()
