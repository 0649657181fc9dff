"""The Prefect server: the one that is configured, or one of our own on this machine."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping
from contextlib import contextmanager

from pipeline.errors import UserError

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
START_SECONDS = 180.0
STOP_SECONDS = 20.0
RESTART_SECONDS = 2.0
SERVER_SETTINGS = {
    # By default the leases of concurrency slots are in memory: after a restart, the slot of a run that died
    # would stay taken for ever.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}
"""What a server of ours is started with where the environment does not say otherwise."""


def configured_server() -> str | None:
    """The API's address from the environment or the active Prefect profile."""
    from prefect.settings import get_current_settings

    return get_current_settings().api.url


def require_server() -> str:
    """The address of the configured Prefect server, once it has answered.

    Raises:
        UserError: none is configured, it does not answer, or it refuses us.
    """
    from prefect.client.orchestration import get_client

    url = configured_server()
    if url is None:
        raise UserError(
            "No Prefect server is named.",
            "On one machine `segcurate serve` brings its own; else set PREFECT_API_URL, such as "
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
                f"There is no Prefect server at {url}: {error}",
                "Start it (`prefect server start`, or `docker compose up`), or set PREFECT_API_URL.",
            ) from error
    return url


def answers(url: str, *, timeout: float = 2.0) -> bool:
    """Whether a healthy Prefect server is at this API address."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=timeout) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError, ValueError):
        return False


@contextmanager
def own_server(port: int) -> Generator[str]:
    """A Prefect server on this machine's loopback, until the context ends. It is started again if it dies.

    A healthy one that is there already is used, and left alone. Its data lie in PREFECT_HOME.

    Args:
        port: where the API and the UI are.

    Yields:
        The API's address.

    Raises:
        UserError: it does not come up.
    """
    url = f"http://{HOST}:{port}/api"
    if answers(url):
        yield url
        return
    server = _Server(port)
    try:
        server.wait_until_healthy(url)
        yield url
    finally:
        server.stop()


def use_server(url: str, environment: Mapping[str, str]) -> None:
    """Make `url` the server of this process and of the runs that it starts, and set these variables."""
    from prefect.context import refresh_global_settings_context

    for name, value in environment.items():
        os.environ.setdefault(name, value)
    os.environ["PREFECT_API_URL"] = url
    refresh_global_settings_context()


class _Server:
    """The child process. A thread waits for it, and starts it again when it has died by itself."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stopping = threading.Event()
        self._process = self._start()
        self._keeper = threading.Thread(target=self._keep, name="prefect-server-keeper", daemon=True)
        self._keeper.start()

    def wait_until_healthy(self, url: str) -> None:
        until = time.monotonic() + START_SECONDS
        while not answers(url):
            if self._process.poll() is not None or time.monotonic() > until:
                raise UserError(
                    f"The Prefect server did not come up at {url}.",
                    f"See whether port {self._port} is taken, or choose another with `--port`; "
                    f"`prefect server start --port {self._port}` says more.",
                )
            time.sleep(0.25)

    def stop(self) -> None:
        self._stopping.set()
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._keeper.join(STOP_SECONDS)

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "prefect", "server", "start"]
        command += ["--host", HOST, "--port", str(self._port)]
        environment = {**SERVER_SETTINGS, **os.environ}
        # its own session: Ctrl-C reaches us first, and the runs end before the server does
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)

    def _keep(self) -> None:
        while not self._stopping.is_set():
            code = self._process.wait()
            if self._stopping.wait(RESTART_SECONDS):
                return
            logger.warning("The Prefect server ended (%s) and is started again.", code)
            self._process = self._start()
