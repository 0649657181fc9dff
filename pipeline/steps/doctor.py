"""Doctor: what this machine and this project offer, what is missing, and how fast the pool is scored here."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy

from db.engine import Database
from db.errors import StoreError
from db.migrations import head
from db.queries import images as image_queries
from db.queries.images import ImageRow
from pipeline.data.image_info import ImageRef
from pipeline.data.loading import Unreadable
from pipeline.data.project import Project
from pipeline.errors import UserError
from pipeline.format import count, counted, duration, number
from pipeline.machine import Fact, machine_facts
from pipeline.ownership import open_database
from pipeline.progress import Progress, silent
from pipeline.regions.sources import region_source
from pipeline.steps.score.scorer import open_scorer
from pipeline.uncertainty.scoring import ScoredImage, score_images

SECONDS = 60.0
"""Of the measurement, by default."""
WARM_UP = 2
"""Batches that are not timed: buffers are made, and kernels chosen."""
MOST_IMAGES = 2000
"""Of the pool, in even steps, that the measurement reads."""


@dataclass(frozen=True)
class Speed:
    """How fast images of the pool were scored, from file to numbers, without writing a row.

    Attributes:
        images: those timed.
        pool: images of the pool.
    """

    model: str
    device: str
    sampler: str
    samples: int
    images: int
    seconds: float
    unreadable: int
    pool: int

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds

    def lines(self) -> Iterator[str]:
        """The speed as text."""
        sampled = f"{self.sampler}, {counted(self.samples, 'sample')}" if self.samples else self.sampler
        yield (
            f"{self.model} scores {number(self.rate, 1)} images/s on {self.device} ({sampled}; "
            f"{counted(self.images, 'image')} in {duration(self.seconds)})."
        )
        if self.unreadable:
            yield f"warning: {counted(self.unreadable, 'image')} could not be read."
        yield f"The pool's {counted(self.pool, 'image')}: about {duration(self.pool / self.rate)}."


@dataclass(frozen=True)
class DoctorReport:
    """What was found.

    Attributes:
        speed: None where nothing was measured; `not_measured` says why.
    """

    facts: Sequence[Fact]
    speed: Speed | None = None
    not_measured: str = ""

    def lines(self) -> Iterator[str]:
        """What was found, the speed, and what to do."""
        for fact in self.facts:
            yield f"{fact.name:<10} {fact.found}"
        if self.speed is not None:
            yield from self.speed.lines()
        elif self.not_measured:
            yield self.not_measured
        for fact in self.facts:
            if fact.remedy:
                yield f"to do: {fact.remedy}"
        if not any(fact.remedy for fact in self.facts):
            yield "Nothing is missing."

    def document(self) -> dict[str, Any]:
        """The same as JSON."""
        speed = None if self.speed is None else {**asdict(self.speed), "images_per_second": self.speed.rate}
        return {
            "facts": [asdict(fact) for fact in self.facts],
            "speed": speed,
            "not_measured": self.not_measured or None,
        }


def doctor(project: Project | None, *, seconds: float = SECONDS, progress: Progress = silent) -> DoctorReport:
    """Look at the machine and at the project, and score images of the pool for some seconds; nothing is
    written.

    Args:
        project: None where there is no configuration.
        seconds: of the measurement; 0 for none.
    """
    folder = Path.cwd() if project is None else project.workdir
    facts = machine_facts(folder)
    if project is None:
        facts.append(Fact("project", "none here", "Write a configuration with `segcurate init`."))
        return DoctorReport(facts)
    facts.append(Fact("project", f"{project.config.name}, device {project.config.device}"))
    try:
        database = open_database(project)
    except (StoreError, UserError) as error:
        return DoctorReport([*facts, _failed("database", error)])
    try:
        with database.session(write=False) as session:
            total, some = image_queries.spread_pool(session, most=MOST_IMAGES)
        facts += [_database(database), _images(project, total, some)]
        if seconds <= 0 or not total:
            return DoctorReport(facts)
        try:
            speed = measure(project, database, some, total=total, seconds=seconds, progress=progress)
        except UserError as error:
            return DoctorReport(facts, not_measured=f"The speed was not measured. {error}")
        return DoctorReport(facts, speed)
    finally:
        database.close()


def measure(
    project: Project,
    database: Database,
    images: Sequence[ImageRow],
    *,
    total: int,
    seconds: float,
    progress: Progress = silent,
) -> Speed:
    """Score images for about so many seconds, and forget the scores.

    Args:
        total: images of the pool.

    Raises:
        UserError: no model has been promoted; or none of the images could be read.
    """
    scorer = open_scorer(project, database)
    scoring, model = project.config.scoring, scorer.model
    clock = _Clock(seconds, first=WARM_UP * model.predictor.batch_size)
    refs = [project.ref(image) for image in images]
    score_images(
        clock.until_over(refs, progress),
        model=model,
        regions=scoring.regions,
        sink=clock.take,
        source=region_source(project, scoring.regions),
    )
    done, elapsed = clock.timed()
    if not done:
        raise UserError("None of the images that were tried could be read.", "Run `segcurate failures`.")
    return Speed(
        model=scorer.model_name,
        device=str(model.predictor.device),
        sampler=scoring.sampler,
        samples=0 if scoring.sampler == "none" else scoring.samples,
        images=done,
        seconds=elapsed,
        unreadable=clock.unreadable,
        pool=total,
    )


class _Clock:
    """Gives out images until the time is over, and counts those that were scored after the first ones."""

    def __init__(self, seconds: float, *, first: int) -> None:
        self.seconds = seconds
        self.first = first
        self.began = time.monotonic()
        self.moments: list[float] = [self.began]
        self.unreadable = 0

    def until_over(self, refs: Sequence[ImageRef], progress: Progress) -> Iterator[ImageRef]:
        """Images, again from the first one where the pool is small."""
        at = 0
        while (elapsed := time.monotonic() - self.began) < self.seconds:
            if at >= len(refs) and self.unreadable >= at:
                return  # none can be read
            yield refs[at % len(refs)]
            at += 1
            progress("measure", int(elapsed), int(self.seconds))

    def take(self, scored: ScoredImage | Unreadable) -> None:
        """Called with each result, from one thread."""
        if isinstance(scored, Unreadable):
            self.unreadable += 1
        else:
            self.moments.append(time.monotonic())

    def timed(self) -> tuple[int, float]:
        """The images after the first ones, and their seconds; all of them where there are few."""
        done = len(self.moments) - 1
        start = self.first if done >= 2 * self.first else 0
        return done - start, max(1e-9, self.moments[-1] - self.moments[start])


def _database(database: Database) -> Fact:
    engine = database.engine
    began = time.perf_counter()
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("SELECT 1"))
    milliseconds = 1000 * (time.perf_counter() - began)
    version = ".".join(map(str, engine.dialect.server_version_info or ()))
    name = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}.get(engine.dialect.name, engine.dialect.name)
    return Fact("database", f"{name} {version}, revision {head()}, a query takes {milliseconds:.1f} ms")


def _images(project: Project, total: int, some: Sequence[ImageRow]) -> Fact:
    if not total:
        return Fact("pool", "no images yet", "Run `segcurate ingest`.")
    first = some[0]
    size = f"{count(first.width)}×{count(first.height)} pixels"
    path = project.image(first.uri)
    remedy = ""
    if isinstance(path, Path) and not path.is_file():
        remedy = f"{path} is gone: mount its disk, or run `segcurate ingest`."
    return Fact("pool", f"{counted(total, 'image')}, the first of {size}", remedy)


def _failed(name: str, error: StoreError | UserError) -> Fact:
    return Fact(name, error.problem, error.remedy or "Correct it.")
