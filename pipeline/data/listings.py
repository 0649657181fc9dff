"""What users write down about images: lists, CSV files with groups, and expressions on paths."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.config import HeldOutSplit, InitialSplit
from pipeline.data.project import Project
from pipeline.data.remote import canonical, is_remote
from pipeline.data.sources import Found, glob_pattern
from pipeline.errors import DataError
from pipeline.files import read_lines


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

    def locate(self, found: Found) -> tuple[str, int | None]:
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
            position = None
            group = _matched(self._group, found) if self._group else found.uri.rpartition("/")[0] or "."
            if not group:
                raise DataError(
                    f"`data.group_regex` finds no group in {found.uri}.", "Correct the regular expression."
                )
        if position is None and self._position is not None:
            try:
                position = whole_number(_matched(self._position, found))
            except (ValueError, OverflowError) as error:
                raise DataError(
                    f"`data.position_regex` finds no number of 64 bits in {found.uri}.",
                    "Correct the regular expression.",
                ) from error
        return group, position


def _matched(pattern: re.Pattern[str], found: Found) -> str:
    """The first group of a pattern in an image's URI, or the whole match; empty without a match."""
    match = pattern.search(found.uri)
    return (match and match.group(1 if pattern.groups else 0)) or ""


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
            "INSERT OR REPLACE INTO row VALUES (?, ?, 0)", ((_normal(path), text) for path, text in rows)
        )

    def get(self, found: Found) -> str | None:
        """The text of an image, or None where it is not listed."""
        names = (found.uri, str(found.path), found.below)
        rows = self._database.execute("SELECT path, text FROM row WHERE path IN (?, ?, ?)", names).fetchall()
        if not rows:
            return None
        self._database.executemany(
            "UPDATE row SET seen = 1 WHERE path = ? AND seen = 0", [(path,) for path, _ in rows]
        )
        return rows[0][1]

    def unseen(self, limit: int) -> tuple[list[str], int]:
        """The texts of the first paths that no image had, and how many there are."""
        rows = self._database.execute("SELECT text FROM row WHERE seen = 0 LIMIT ?", (limit,)).fetchall()
        count = self._database.execute("SELECT count(*) FROM row WHERE seen = 0").fetchone()[0]
        return [text for (text,) in rows], count


def _normal(path: str) -> str:
    return canonical(path) if is_remote(path) else os.path.normpath(path)


def read_list(path: Path) -> Iterator[tuple[str, str]]:
    """The paths of a list file and the numbers of their lines; empty lines and lines that start with # are
    passed over.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        for number, line in enumerate(read_lines(path), start=1):
            text = line.strip()
            if text and not text.startswith("#"):
                yield text, str(number)
    except OSError as error:
        raise DataError(
            f"The list {path} cannot be read: {error.strerror}.", "Name a readable text file."
        ) from error


def read_groups(path: Path) -> Iterator[tuple[str, str]]:
    """Image and JSON `[group, position or null]` of each line of a CSV.

    Raises:
        DataError: the file cannot be read, lacks a column, or has a position that is no number.
    """
    try:
        reader = csv.DictReader(read_lines(path))
        if not {"image", "group"} <= set(reader.fieldnames or ()):
            raise DataError(f"{path} lacks the columns `image` and `group`.", "Name them in its first line.")
        for row in reader:
            position = (row.get("position") or "").strip()
            try:
                group = json.dumps([row["group"], whole_number(position) if position else None])
            except (ValueError, TypeError, OverflowError):
                raise DataError(
                    f"{path} has a position in line {reader.line_num} that is no number of 64 bits.",
                    "Correct it.",
                ) from None
            if None in (row["image"], row["group"]):
                raise DataError(
                    f"{path} has a line {reader.line_num} without an image or a group.", "Correct it."
                )
            yield row["image"], group
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", "Name a readable CSV.") from error
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as CSV: {error}.", "Name a readable CSV.") from error


def whole_number(text: str) -> int:
    """A number as a position: digits as they are (a time stamp in nanoseconds too), else rounded down.

    Raises:
        ValueError, OverflowError: the text is no number, or one that does not fit into 64 bits, which is what
            databases store.
    """
    try:
        number = int(text)
    except ValueError:
        number = math.floor(float(text))
    if not -(1 << 63) <= number < 1 << 63:
        raise OverflowError(f"Expected a number of 64 bits, but got {text}.")
    return number


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
            folder = project.uri(project.image(spec.folder)).rstrip("/")
            self._folder = (glob_pattern(folder), glob_pattern(folder + "/**"))

    def __contains__(self, found: Found) -> bool:
        if self._paths is not None:
            return self._paths.get(found) is not None
        return self._folder is not None and any(part.fullmatch(found.uri) for part in self._folder)

    def unmatched(self) -> str | None:
        """How many lines of the list no image had, and the numbers of the first."""
        numbers, count = self._paths.unseen(3) if self._paths is not None else ([], 0)
        if not count:
            return None
        more = ", …" if count > len(numbers) else ""
        return f"{count} lines of {self._list} name no image: line {', '.join(numbers)}{more}"
