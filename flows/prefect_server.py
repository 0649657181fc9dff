"""The Prefect server: the one that is configured, or a private one of a project on this machine.

Anyone who can reach the API of a Prefect server can run any command as the user of its worker, and every page
in a browser can send requests to this machine. A private server therefore needs a password that only the
project's owner can read, and accepts requests from its own pages only.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from flows.import_path import SAFE_PATH
from pipeline.errors import UserError
from pipeline.files import require_plain, writing
from pipeline.processes import is_running, name_process, stop_process

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
START_SECONDS = 180.0
STOP_SECONDS = 20.0
RESTART_SECONDS = 2.0
SERVER_SETTINGS = {
    # By default the leases of concurrency slots are in memory: after a restart, the slot of a run that died
    # would never be freed.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # A run whose process has died cannot end its own cancellation: the server does, by default after 300
    # seconds. A living process has 30 seconds to end.
    "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_CANCELLING_TIMEOUT_SECONDS": "90",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}
"""Settings of a server that segcurate starts; the environment overrides them."""


def configured_server() -> str | None:
    """The API's address from the environment or the active Prefect profile."""
    from prefect.settings import get_current_settings

    return get_current_settings().api.url


def require_server() -> str:
    """The address of the configured Prefect server, once it has answered.

    Raises:
        UserError: none is configured, it does not answer, or it needs a password.
    """
    from prefect.client.orchestration import get_client

    url = configured_server()
    if url is None:
        raise UserError(
            "No Prefect server is configured.",
            "On one machine `segcurate serve` starts its own; else set PREFECT_API_URL, such as "
            f"http://{HOST}:4200/api.",
        )
    with get_client(sync_client=True) as client:
        try:
            client.hello().raise_for_status()
        except Exception as error:
            if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
                raise UserError(
                    f"The Prefect server at {url} asks for a password.",
                    "Set PREFECT_API_AUTH_STRING to user:password.",
                ) from error
            raise UserError(
                f"No Prefect server answers at {url}: {error}",
                "Start it (`prefect server start`, or `docker compose up`), or set PREFECT_API_URL.",
            ) from error
    return url


def private_password(file: Path) -> str:
    """User and password of a project's private server, `segcurate:…`; the first call creates the password.

    Args:
        file: where both are kept, readable by its owner only.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        require_plain(file)
        file.chmod(0o600)
        return file.read_text(encoding="ascii").strip()
    with os.fdopen(descriptor, "w", encoding="ascii") as opened:
        opened.write(f"segcurate:{secrets.token_urlsafe(32)}")
    return file.read_text(encoding="ascii")


def answers(url: str, *, timeout: float = 2.0) -> bool:
    """Whether a healthy Prefect server is at this API address."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=timeout) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError, ValueError):
        return False


@contextmanager
def private_server(port: int, *, password: str, record: Path) -> Generator[str]:
    """Run a Prefect server on this machine's loopback until the context ends, and restart it if it dies.

    A server that a killed process has left running is stopped first: nobody would restart it. The data are in
    PREFECT_HOME.

    Args:
        port: of the API and the UI.
        password: `user:password`, which every request needs.
        record: the file in which the server's process is written down, readable by its owner only. It is
            locked while the server runs.

    Yields:
        The API's address.

    Raises:
        UserError: another process runs the server of this record, another server has this port, or the
            server does not start.
    """
    url = f"http://{HOST}:{port}/api"
    with _locked(record) as descriptor, _sigterm_unwinds():
        left = os.pread(descriptor, 1000, 0).decode(errors="replace")
        if is_running(left):
            logger.warning("The Prefect server of a killed process is stopped, and a new one starts.")
            stop_process(left, within=STOP_SECONDS)
        if answers(url):
            raise UserError(
                f"Another Prefect server is running at {url}.",
                f"To use it, set PREFECT_API_URL={url}; else choose another port with `--port`.",
            )
        server = _Server(port, password, descriptor)
        try:
            server.wait_until_healthy(url)
            yield url
        finally:
            server.stop()


def use_server(url: str, environment: Mapping[str, str], *, password: str | None = None) -> None:
    """Make `url` the server of this process and of the runs that it starts, and set these variables.

    Args:
        environment: variables that are set where they are not.
        password: `user:password` of the server; None leaves it to the environment.
    """
    from prefect.context import refresh_global_settings_context

    for name, value in environment.items():
        os.environ.setdefault(name, value)
    if "PREFECT_HOME" in os.environ:  # the runs start in another working directory
        os.environ["PREFECT_HOME"] = os.path.abspath(os.environ["PREFECT_HOME"])
    os.environ["PREFECT_API_URL"] = url
    if password is not None:
        os.environ["PREFECT_API_AUTH_STRING"] = password
    refresh_global_settings_context()


class _Server:
    """The child process. A thread waits for it, and restarts it when it has died by itself."""

    def __init__(self, port: int, password: str, record: int) -> None:
        self._port = port
        self._password = password
        self._record = record
        self._starting = threading.Lock()
        self._stopping = threading.Event()
        self._process = self._start()
        self._keeper = threading.Thread(target=self._keep, name="prefect-server-keeper", daemon=True)
        self._keeper.start()

    def wait_until_healthy(self, url: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not answers(url):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise UserError(
                    f"The Prefect server did not start at {url}.",
                    f"Check whether port {self._port} is taken, or choose another with `--port`; "
                    f"`prefect server start --port {self._port}` shows the reason.",
                )
            time.sleep(0.25)

    def stop(self) -> None:
        self._stopping.set()
        with self._starting:  # the keeper starts no other one from now on
            self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._keeper.join(STOP_SECONDS)
        self._write_down("")

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "prefect", "server", "start"]
        command += ["--host", HOST, "--port", str(self._port)]
        origin = f"http://{HOST}:{self._port}"
        environment = {
            **SERVER_SETTINGS,
            **os.environ,
            **SAFE_PATH,
            "PREFECT_SERVER_API_AUTH_STRING": self._password,
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": origin,
            "PREFECT_UI_API_URL": f"{origin}/api",
        }
        # its own session: Ctrl-C reaches this process first, and the runs end before the server
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
        )
        self._write_down(name_process(process.pid))
        return process

    def _write_down(self, process: str) -> None:
        text = process.encode()
        try:
            os.pwrite(self._record, text, 0)
            os.ftruncate(self._record, len(text))
        except OSError as error:  # the disk is full: the server runs all the same
            logger.warning("The process of the Prefect server cannot be written down: %s", error)

    def _keep(self) -> None:
        while True:
            code = self._process.wait()
            if self._stopping.wait(RESTART_SECONDS):
                return
            with self._starting:
                if self._stopping.is_set():
                    return
                logger.warning("The Prefect server ended (%s) and is restarted.", code)
                try:
                    self._process = self._start()
                except OSError as error:  # tried again after the same wait
                    logger.warning("The Prefect server cannot be started: %s", error)


@contextmanager
def _sigterm_unwinds() -> Generator[None]:
    """In the block SIGTERM raises `SystemExit`; else the process would end and leave its server behind."""

    def end(*_: object) -> NoReturn:
        raise SystemExit(0)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _locked(file: Path) -> Generator[int]:
    """The descriptor of the file, which no other process has locked."""
    require_plain(file)
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                "Another `segcurate serve` of this project is running.",
                "Stop that one first: it runs all schedules of the project.",
            ) from error
        except OSError as error:
            raise UserError(
                f"{file} cannot be locked: {error.strerror}.",
                "Choose a `workdir` on a disk of this machine, or use a server with PREFECT_API_URL.",
            ) from error
        yield descriptor
    finally:
        os.close(descriptor)
