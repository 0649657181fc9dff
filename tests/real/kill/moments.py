"""When a process is killed: after so many seconds, or at a stated place in its work.

A place is watched for inside the process that will die, by wrapping what SQLAlchemy, the driver and the file
system are called through; nothing in the product knows of it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.engine.default import DefaultDialect

Kind = Literal["statement", "commit", "write", "replace", "unlink", "copy"]
When = Literal["before", "half", "after"]


@dataclass(frozen=True)
class Place:
    """The `nth` time that the work comes by here.

    Attributes:
        kind: a SQL `statement`; the `commit` of a transaction that had such a statement; the `write` of a
            file, a `replace` by it, an `unlink` of it; a row that is sent by a `copy`.
        pattern: a regular expression: of the statement, or of the file's path.
        when: `half` of a write is half of its bytes; of a commit, at some moment while it lasts.
    """

    kind: Kind
    pattern: str
    when: When = "before"
    nth: int = 1

    def __str__(self) -> str:
        count = "" if self.nth == 1 else f", {self.nth}."
        return f"{self.when} {self.kind} of {self.pattern}{count}"


def arm(place: Place, marker: Path) -> None:
    """Have this process, and its group, killed when it comes to the place; `marker` then says that it did."""
    seen = 0
    lock = threading.Lock()

    def is_there(text: str) -> bool:
        nonlocal seen
        if re.search(place.pattern, text) is None:
            return False
        with lock:
            seen += 1
            return seen == place.nth

    def die() -> None:
        descriptor = os.open(marker, os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, str(place).encode())
        os.close(descriptor)
        os.killpg(0, signal.SIGKILL)
        time.sleep(60)  # a signal to oneself may take a moment

    _WATCHERS[place.kind](place.when, is_there, die)


def _watch_statements(when: When, is_there: Callable[[str], bool], die: Callable[[], None]) -> None:
    moment = "before_cursor_execute" if when == "before" else "after_cursor_execute"

    def look(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if is_there(" ".join(statement.split())):
            die()

    event.listen(Engine, moment, look)


def _watch_commits(when: When, is_there: Callable[[str], bool], die: Callable[[], None]) -> None:
    doomed: set[int] = set()

    def look(connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if is_there(" ".join(statement.split())):
            doomed.add(id(connection.connection.dbapi_connection))

    event.listen(Engine, "after_cursor_execute", look)
    commit = DefaultDialect.do_commit

    def do_commit(self: DefaultDialect, dbapi_connection: Any) -> None:
        if id(getattr(dbapi_connection, "dbapi_connection", dbapi_connection)) not in doomed:
            commit(self, dbapi_connection)
            return
        if when == "before":
            die()
        if when == "half":
            threading.Thread(
                target=lambda: (time.sleep(int.from_bytes(os.urandom(1)) / 2**8 / 500), die())
            ).start()
        commit(self, dbapi_connection)
        die()

    DefaultDialect.do_commit = do_commit


def _watch_writes(when: When, is_there: Callable[[str], bool], die: Callable[[], None]) -> None:
    fdopen = os.fdopen

    class Doomed:
        """A file that takes half of what is written."""

        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def __getattr__(self, name: str) -> Any:
            return getattr(self.stream, name)

        def __enter__(self) -> Doomed:
            return self

        def __exit__(self, *_problem: object) -> None:
            self.stream.close()

        def write(self, data: bytes) -> int:
            if when != "before":
                self.stream.write(data[: len(data) // 2 if when == "half" else len(data)])
                self.stream.flush()
            die()
            return len(data)

    def open_doomed(descriptor: int, *args: Any, **options: Any) -> Any:
        stream = fdopen(descriptor, *args, **options)
        return Doomed(stream) if is_there(os.readlink(f"/proc/self/fd/{descriptor}")) else stream

    os.fdopen = open_doomed


def _watch_replaces(when: When, is_there: Callable[[str], bool], die: Callable[[], None]) -> None:
    replace = os.replace

    def replace_and_die(source: Any, target: Any, **options: Any) -> None:
        there = is_there(f"{source} -> {target}")
        if there and when == "before":
            die()
        replace(source, target, **options)
        if there:
            die()

    os.replace = replace_and_die


def _watch_unlinks(when: When, is_there: Callable[[str], bool], die: Callable[[], None]) -> None:
    unlink, rmtree = Path.unlink, shutil.rmtree

    def around(remove: Callable[..., None]) -> Callable[..., None]:
        def remove_and_die(path: Any, *args: Any, **options: Any) -> None:
            there = is_there(str(path))
            if there and when == "before":
                die()
            remove(path, *args, **options)
            if there:
                die()

        return remove_and_die

    Path.unlink = around(unlink)
    shutil.rmtree = around(rmtree)


def _watch_copies(_when: When, is_there: Callable[[str], bool], die: Callable[[], None]) -> None:
    import psycopg

    write = psycopg.Copy.write

    def write_and_die(self: Any, buffer: Any) -> None:
        there = is_there(str(self.cursor._query.query))
        if there:
            write(self, bytes(buffer)[: len(buffer) // 2])
            die()
        write(self, buffer)

    psycopg.Copy.write = write_and_die


_WATCHERS: dict[Kind, Callable[[When, Callable[[str], bool], Callable[[], None]], None]] = {
    "statement": _watch_statements,
    "commit": _watch_commits,
    "write": _watch_writes,
    "replace": _watch_replaces,
    "unlink": _watch_unlinks,
    "copy": _watch_copies,
}
