"""The output of the command line: progress bars on a terminal, tables, and JSON for other programs."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from pipeline.evaluation.estimate import Estimate
from pipeline.format import MISSING, count, number
from pipeline.progress import LoggedProgress, Pace, Paces, speed
from pipeline.progress import Progress as StepProgress

_INDENT = re.compile(r"\s*(?:\S.{0,14}?\s{2,})?")
"""What stands before the text of a line: spaces, and a short name or number that two spaces end."""
_LEAST_WIDTH = 20
"""Columns that an indented text has; a console with fewer does not indent."""


class IndentingConsole(Console):
    """A console whose lines that do not fit go on below the beginning of their text."""

    def print(
        self, *objects: Any, markup: bool | None = None, soft_wrap: bool = False, **options: Any
    ) -> None:
        """As of rich. A single text is indented where it is wrapped."""
        if len(objects) == 1 and isinstance(objects[0], str) and not soft_wrap:
            objects = (_Indented(self.render_str(objects[0], markup=markup)),)
        super().print(*objects, markup=markup, soft_wrap=soft_wrap, **options)


@dataclass(frozen=True)
class _Indented:
    """A text of one or more lines, each wrapped and indented by itself."""

    text: Text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self.text.split(allow_blank=True):
            match = _INDENT.match(line.plain)
            before, text = line.divide([0 if match is None else match.end()])
            if options.max_width - before.cell_len < _LEAST_WIDTH:
                before, text = Text(), line
            for part in text.wrap(console, options.max_width - before.cell_len) or [Text()]:
                part.rstrip()
                yield before + part
                before = Text(" " * before.cell_len)


console = IndentingConsole(highlight=False, emoji=False)
errors = IndentingConsole(stderr=True, highlight=False, emoji=False)


@contextmanager
def progress_bar() -> Generator[StepProgress]:
    """A progress that draws a bar on a terminal, and where the output is a file or a pipe writes a line each
    5 % of a long step."""
    if not errors.is_terminal:
        yield LoggedProgress(lambda line: print(line, file=sys.stderr, flush=True))
        return
    bars = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
    )
    paces = Paces()
    shown: dict[str, tuple[TaskID, Pace]] = {}

    def report(title: str, done: int, total: int | None, note: str = "") -> None:
        now = time.monotonic()
        pace = paces.at(title, done, total, now)
        if title in shown and shown[title][1] is not pace:
            bars.remove_task(shown.pop(title)[0])
        if title not in shown:
            shown[title] = bars.add_task(title, total=total, completed=done, rate="", note=""), pace
        rate = pace.rate(now)
        written = "" if rate is None else speed(rate)
        bars.update(shown[title][0], completed=done, total=total, rate=written, note=literal(note))

    with bars:
        yield report


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; text is shown as it is, and numbers are right-aligned by their column's first row."""
    listed = [[_cell(value) for value in row] for row in rows]
    drawn = Table(header_style="bold", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        first = listed[0][index] if listed else ""
        numeric = first[:1].isdigit() or first[:1] in "−-"
        drawn.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in listed:
        drawn.add_row(*row)
    console.print(f"[italic]{literal(title)}[/]")  # rich would fold a title to the width of its table
    console.print(drawn)


def print_json(document: Any) -> None:
    """Print JSON on standard output, and nothing else."""
    sys.stdout.write(json.dumps(_plain(document), indent=2, ensure_ascii=False) + "\n")


def literal(text: str) -> str:
    """A text escaped for rich, which would read parts of it as markup."""
    return escape(text)


def _cell(value: object) -> str:
    if isinstance(value, Estimate):
        return value.text() if value.defined else MISSING
    if value is None or isinstance(value, float):
        return number(value)
    return count(value) if isinstance(value, int) and not isinstance(value, bool) else literal(str(value))


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):  # a row of a query
        value = value._asdict()
    if isinstance(value, Estimate):
        return list(value.document(digits=None).values())
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, Path) else value
