"""What the cases share: a Prefect server, a server of victims, and projects that are prepared once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import pytest
from sqlalchemy import URL, Engine, create_engine, make_url, text

from db.engine import connect
from tests.db.conftest import postgresql as postgresql
from tests.real.house import running_prefect
from tests.real.kill.projects import draw_project, let_images_come, set_masks_aside
from tests.real.kill.victims import Ended, Victims

SEED = int(os.environ.get("SEGCURATE_KILL_SEED", "20261122"))
EVERY = int(os.environ.get("SEGCURATE_KILL_EVERY", "1"))
"""Only each so many-th case is run: a sample of them for continuous integration."""
"""Of the random moments."""


class Copy(NamedTuple):
    """A project of its own: its folder, and the URL of its database on PostgreSQL; None for SQLite."""

    root: Path
    url: str | None

    @contextmanager
    def engine(self) -> Generator[Engine]:
        """Its database, as it is: nothing is upgraded, and nothing stays open."""
        engine = connect(self.url or f"sqlite:///{self.root / '.segcurate' / 'segcurate.db'}")
        try:
            yield engine
        finally:
            engine.dispose()


@dataclass
class Bench:
    """Makes projects and runs victims on them."""

    folder: Path
    victims: Victims
    server: Callable[[], URL]
    """Of PostgreSQL, started when it is first asked for."""
    prepared: dict[tuple[str, str], Copy] = field(default_factory=dict)
    undisturbed: dict[tuple[str, str, str], tuple[Copy, float]] = field(default_factory=dict)

    def start_of(self, backend: str, start: str) -> Copy:
        """The project that a flow finds, made once."""
        if (backend, start) not in self.prepared:
            self.prepared[backend, start] = getattr(self, f"_{start.replace(' ', '_')}")(backend)
        return self.prepared[backend, start]

    def end_of(self, backend: str, start: str, work: str) -> tuple[Copy, float]:
        """The project after a flow that nobody disturbed, and the seconds that it took."""
        if (backend, start, work) not in self.undisturbed:
            project = self.copy(self.start_of(backend, start))
            self.undisturbed[backend, start, work] = (project, self.run(work, project).seconds)
        return self.undisturbed[backend, start, work]

    def copy(self, project: Copy) -> Copy:
        root = self.folder / uuid4().hex[:8]
        shutil.copytree(project.root, root, symlinks=True)
        return Copy(root, None if project.url is None else self._database(like=project.url))

    def forget(self, project: Copy) -> None:
        """Remove its files and its database."""
        shutil.rmtree(project.root)
        if project.url is not None:
            self._administer(f"DROP DATABASE {make_url(project.url).database} WITH (FORCE)")

    def run(self, work: str, project: Copy) -> Ended:
        """Do a work undisturbed.

        Raises:
            RuntimeError: it failed.
        """
        ended = self.victims.run(work, project.root, url=project.url)
        if ended.code != 0:
            said = (project.root / "victim.log").read_text()[-6000:]
            raise RuntimeError(f"{work} failed in {project.root}:\n{said}")
        return ended

    def _first_night(self, backend: str) -> Copy:
        """A model that has scored nothing yet; half of the images come just now."""
        project = self.copy(self._trained(backend))
        let_images_come(project.root)
        return project

    def _second_night(self, backend: str) -> Copy:
        """A queue that is exported, and images that come after it."""
        project = self.copy(self._trained(backend))
        self.run("nightly", project)
        let_images_come(project.root)
        return project

    def _labels(self, backend: str) -> Copy:
        """A round that is closed with the labels of its queue, and a next one that has begun."""
        project = self.copy(self._trained(backend))
        for work in ("nightly", "annotator"):
            self.run(work, project)
        return project

    def _unlabeled(self, backend: str) -> Copy:
        """A model, and images without masks that came after it."""
        project = self.copy(self._trained(backend))
        let_images_come(project.root)
        set_masks_aside(project.root)
        self.run("ingest", project)
        return project

    def _trained(self, backend: str) -> Copy:
        if (backend, "trained") not in self.prepared:
            root = self.folder / f"trained-{backend}"
            root.mkdir()
            draw_project(root)
            project = Copy(root, None if backend == "sqlite" else self._database())
            self.run("first_round", project)
            self.prepared[backend, "trained"] = project
        return self.prepared[backend, "trained"]

    def _database(self, *, like: str | None = None) -> str:
        name = f"kill_{uuid4().hex}"
        template = "" if like is None else f" TEMPLATE {make_url(like).database}"
        self._administer(f"CREATE DATABASE {name}{template}")
        return self.server().set(database=name).render_as_string(hide_password=False)

    def _administer(self, statement: str) -> None:
        admin = create_engine(self.server(), isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(text(statement))
        admin.dispose()


class Outcome(NamedTuple):
    """A case, where its kills hit, and what came of it."""

    case: str
    hits: list[str]
    killed_after: float
    done_after: float
    differences: int


OUTCOMES: list[Outcome] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Where every kill hit, and what came of it."""
    if not OUTCOMES:
        return
    terminalreporter.section(f"killed and run again, seed {SEED}")
    for outcome in OUTCOMES:
        spent = f"{outcome.killed_after:.1f} s until the last kill, {outcome.done_after:.1f} s to the end"
        terminalreporter.write_line(f"{outcome.case}: {spent}; {outcome.differences} differences")
        for hit in outcome.hits:
            terminalreporter.write_line(f"    {hit}")
    kills = sum(len(outcome.hits) for outcome in OUTCOMES)
    unequal = sum(outcome.differences > 0 for outcome in OUTCOMES)
    terminalreporter.write_line(f"{len(OUTCOMES)} cases, {kills} kills, {unequal} cases with differences")


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """The URL of the API of a Prefect server of our own."""
    with running_prefect(tmp_path_factory.mktemp("prefect")) as api:
        yield api


@pytest.fixture(scope="session")
def bench(
    prefect_server: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Generator[Bench]:
    folder = tmp_path_factory.mktemp("kill")
    victims = Victims(
        os.environ
        | {
            "PREFECT_API_URL": prefect_server,
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }
    )
    try:
        yield Bench(folder, victims, partial(request.getfixturevalue, "postgresql"))
    finally:
        victims.close()
