"""Real processes: a Prefect server, a worker, and a project that a night takes some seconds for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
from sqlalchemy import select

from db.engine import Database
from db.tables import Image, ImageScore, Queue, QueueItem, Shard
from flows.prefect_server import SERVER_SETTINGS
from pipeline.data.project import load_project
from tests.conftest import draw, write_config

BIN = Path(sys.executable).parent
BUDGET = 12
"""Regions of each queue, as `write_config` says."""
Result = TypeVar("Result")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(what: str, look: Callable[[], Result | None], *, seconds: float) -> Result:
    """What `look` returns as soon as that is true; an error of a connection counts as not yet."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            found = look()
        except httpx.HTTPError:
            found = None
        if found:
            return found
        time.sleep(0.2)
    raise TimeoutError(f"{what} within {seconds:.0f} seconds")


@contextmanager
def running_prefect(home: Path, **settings: str) -> Generator[str]:
    """The API of a Prefect server with its data in a folder, gone in the end."""
    port = free_port()
    kept = {"PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    environment = os.environ | kept | {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"} | settings
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "server.log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    api = environment["PREFECT_API_URL"]
    try:
        wait_for("Prefect", lambda: httpx.get(f"{api}/health", timeout=2).is_success, seconds=240)
        yield api
    finally:
        server.terminate()
        server.wait(30)


@dataclass
class House:
    """A folder with a Prefect home of its own, and the processes that live in it."""

    folder: Path
    port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    name: str = "squares"
    """The project's, which ends the names of its deployments."""

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def project(self) -> Path:
        return self.folder / "project"

    def environment(self, *, with_api: bool = True) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        made = {
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "SEGCURATE_TIMEZONE": "Europe/Berlin",
            "SEGCURATE_CONFIG": str(self.project / "segcurate.yaml"),
            "OMP_NUM_THREADS": "1",
        }
        return kept | made | ({"PREFECT_API_URL": self.api} if with_api else {})

    def start(
        self, name: str, *command: str, with_api: bool = True, more: Mapping[str, str] | None = None
    ) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [str(BIN / command[0]), *command[1:]],
                cwd=self.project,
                env=self.environment(with_api=with_api) | dict(more or {}),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def run(self, *command: str, expect: int = 0) -> str:
        done = subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            cwd=self.project,
            env=self.environment() | {"COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return done.stdout + done.stderr

    def start_server(self) -> None:
        self.start(
            "server", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port),
            more=SERVER_SETTINGS,
        )  # fmt: skip
        self.wait_for_server()

    def wait_for_server(self) -> None:
        wait_for("a healthy server", lambda: httpx.get(f"{self.api}/health").is_success, seconds=240)

    def start_worker(self) -> None:
        self.start("worker", "prefect", "worker", "start", "--pool", "segcurate", "--name", "worker")

    def kill(self, name: str) -> None:
        """Kill -9 the process and everything that it has started."""
        process = self.processes.pop(name)
        family = [*psutil.Process(process.pid).children(recursive=True), process]
        for member in family:
            member.kill()
        process.wait(30)

    def leave(self) -> None:
        for name, process in list(self.processes.items()):
            if process.poll() is None:
                self.kill(name)

    def ask(self, path: str, document: dict[str, Any] | None = None) -> Any:
        return self._send("POST", path, json=document or {})

    def deployment(self, name: str) -> dict[str, Any]:
        return self._send("GET", f"deployments/name/{name}/{name}-{self.name}")

    def begin(self, name: str, *, parameters: Mapping[str, str] | None = None, **state: Any) -> str:
        """Create a run of a deployment, due now or as `state` says, and return its id."""
        due = {"state": {"type": "SCHEDULED", **state}, "parameters": dict(parameters or {})}
        return self.ask(f"deployments/{self.deployment(name)['id']}/create_flow_run", due)["id"]

    def state(self, run: str) -> dict[str, Any]:
        return self._send("GET", f"flow_runs/{run}")["state"]

    def ended(self, run: str, *, seconds: float) -> dict[str, Any]:
        """The state that the run ends in."""

        def final() -> dict[str, Any] | None:
            now = self.state(run)
            return now if now["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

        return wait_for(f"an end of run {run}", final, seconds=seconds)

    def _send(self, method: str, path: str, **options: Any) -> Any:
        """The server's answer; the private server of `segcurate serve` gets the password of its project."""
        secret = self.project / ".segcurate" / "prefect-password"
        auth = httpx.BasicAuth(*secret.read_text().split(":", 1)) if secret.exists() else None
        response = httpx.request(method, f"{self.api}/{path}", auth=auth, timeout=30, **options)
        response.raise_for_status()
        return response.json()

    def shards_done(self) -> int:
        with opened(self.project) as database, database.session(write=False) as session:
            return len(session.scalars(select(Shard.id).where(Shard.status == "done")).all())


def make_project(folder: Path) -> Path:
    """A project with a promoted model and its first queue exported."""
    for index in range(24):
        draw(folder / "images", folder / "masks", name=f"frame_{index:03d}.png", seed=index)
    write_config(folder)
    for command in (("ingest",), ("loop", "--rounds", "1", "--annotator", "masks")):
        done = subprocess.run(
            [str(BIN / "segcurate"), *command], cwd=folder, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def add_images(folder: Path, count: int, *, name: str) -> None:
    """New images for the pool, which all look different."""
    for index in range(count):
        seed = zlib.crc32(f"{name} {index}".encode())
        draw(folder / "images", None, name=f"{name}_{index:03d}.png", seed=seed)


def scores(project: Path) -> dict[str, tuple[float, int]]:
    """Each image's URI, with its mean entropy and how many rows it has."""
    with opened(project) as database, database.session(write=False) as session:
        rows = session.execute(
            select(Image.uri, ImageScore.entropy).join(ImageScore, ImageScore.image_id == Image.id)
        ).all()
    found: dict[str, tuple[float, int]] = {}
    for uri, entropy in rows:
        found[uri] = (round(entropy, 4), found.get(uri, (0.0, 0))[1] + 1)
    return found


def pool(project: Path) -> set[str]:
    """The URIs of the images in the pool, those of the files that ingestion has not seen yet included."""
    with opened(project) as database, database.session(write=False) as session:
        held_out = set(session.scalars(select(Image.uri).where(Image.split != "pool")))
    files = {path.relative_to(project).as_posix() for path in (project / "images").glob("*.png")}
    return files - held_out


def queued(project: Path) -> list[tuple[str, int, int, int]]:
    """Image, and place in it, of what the newest queue asks for, in its order."""
    with opened(project) as database, database.session(write=False) as session:
        newest = select(Queue.id).order_by(Queue.id.desc()).limit(1).scalar_subquery()
        rows = session.execute(
            select(Image.uri, QueueItem.rank, QueueItem.x, QueueItem.y)
            .join(Image, QueueItem.image_id == Image.id)
            .where(QueueItem.queue_id == newest)
            .order_by(QueueItem.rank)
        ).all()
    return [(uri, rank, x, y) for uri, rank, x, y in rows]


def opened(project: Path) -> closing[Database]:
    return closing(Database(load_project(project / "segcurate.yaml").database_url))
