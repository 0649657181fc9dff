"""The cases: of each flow, 25 moments at which it is killed, on SQLite, and a few on PostgreSQL; and the
moments of a queue of held-out images.

Half of the moments are uniformly random in the time that an undisturbed run takes; the others are places that
a random moment seldom hits. A part of the random ones kill the second attempt too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.real.kill.moments import Place

MOMENTS = 25
TWICE = 4
"""Every so many random moments, the run after the kill is killed as well."""

FIRST_NIGHT: tuple[Place, ...] = (
    Place("commit", "INSERT INTO image ", "before"),
    Place("commit", "INSERT INTO image ", "after"),
    Place("commit", "UPDATE shard SET .*attempts", "after", nth=2),
    Place("statement", 'INSERT INTO "region_score', "before", nth=3),
    Place("statement", "UPDATE shard SET .*finished_at", "after", nth=4),
    Place("commit", 'INSERT INTO "image_score', "half", nth=2),
    Place("write", "/heatmaps/", "half", nth=7),
    Place("replace", "/heatmaps/.*->", "before", nth=9),
    Place("replace", "/heatmaps/.*->", "after", nth=12),
    Place("commit", "INSERT INTO queue_item", "half"),
    Place("write", "/overlays/", "half", nth=2),
    Place("replace", r"-> \S*queues/round-\d+$", "after"),
)
SECOND_NIGHT: tuple[Place, ...] = (
    Place("commit", 'INSERT INTO "image_score', "before", nth=1),
    Place("commit", "UPDATE scoring_run SET summary", "after"),
    Place("commit", "UPDATE scoring_run SET finished_at", "half", nth=2),
)
RETRAINING: tuple[Place, ...] = (
    Place("commit", "INSERT INTO model_label", "before"),
    Place("write", "/models/r02/", "half", nth=1),
    Place("write", "/models/r02/", "half", nth=3),
    Place("replace", "-> .*resume.safetensors", "before", nth=2),
    Place("replace", "-> .*resume.safetensors", "after", nth=4),
    Place("write", "/models/r02/", "half", nth=6),
    Place("replace", "-> .*model.safetensors", "after"),
    Place("replace", "-> .*model.json", "after"),
    Place("commit", "UPDATE model SET status", "half"),
    Place("unlink", "resume.safetensors", "before"),
    Place("statement", "INSERT INTO calibration", "after"),
    Place("commit", "INSERT INTO metric", "half"),
)
HELD_OUT: tuple[Place, ...] = (
    Place("commit", "INSERT INTO queue_item", "before"),
    Place("commit", "INSERT INTO queue_item", "after"),
    Place("replace", r"-> \S*queues/test-01$", "before"),
    Place("replace", r"-> \S*queues/test-01$", "after"),
    Place("commit", "INSERT INTO label ", "before"),
    Place("commit", "INSERT INTO label ", "after"),
    Place("commit", "UPDATE image SET mask_uri", "half"),
)
POSTGRESQL_NIGHTS: tuple[Place, ...] = (
    Place("copy", "region_score", "half", nth=2),
    Place("statement", "UPDATE shard SET .*finished_at", "after", nth=2),
    Place("commit", "INSERT INTO queue_item", "half"),
)
POSTGRESQL_RETRAINING: tuple[Place, ...] = (
    Place("statement", "INSERT INTO model_label", "after"),
    Place("commit", "UPDATE model SET status", "half"),
    Place("commit", "INSERT INTO metric", "before"),
)


@dataclass(frozen=True)
class Case:
    """One killed run.

    Attributes:
        number: of the case, for `--case`-like selection by pytest's `-k`.
        work: which flow.
        start: which prepared project it starts from.
        moments: when the first run is killed, and the second one where there are two: a place, or a share of
            the time that an undisturbed run takes.
        again: which work finishes what the killed one has begun.
    """

    number: int
    backend: str
    work: str
    start: str
    moments: tuple[Place | float, ...]
    again: str = "nightly"

    def __str__(self) -> str:
        told = " then ".join(
            f"at {moment:.0%}" if isinstance(moment, float) else str(moment) for moment in self.moments
        )
        return f"{self.number:02d} {self.backend} {self.work} ({self.start}) {told}"


def all_cases(seed: int) -> list[Case]:
    """Every case of that seed: the same ones in the same order."""
    generator = np.random.default_rng(seed)
    cases: list[Case] = []

    def add(backend: str, work: str, start: str, *moments: Place | float, again: str = "nightly") -> None:
        cases.append(Case(len(cases) + 1, backend, work, start, moments, again))

    def at_random(backend: str, work: str, starts: tuple[str, ...], count: int) -> None:
        for index in range(count):
            moments = [float(generator.random()) for _ in range(2 if index % TWICE == TWICE - 1 else 1)]
            add(backend, work, starts[index % len(starts)], *moments)

    for place in FIRST_NIGHT:
        add("sqlite", "nightly", "first night", place)
    for place in SECOND_NIGHT:
        add("sqlite", "nightly", "second night", place)
    at_random("sqlite", "nightly", ("first night", "second night"), MOMENTS - len(cases))
    nights = len(cases)
    for place in RETRAINING:
        add("sqlite", "retrain", "labels", place)
    at_random("sqlite", "retrain", ("labels",), MOMENTS - (len(cases) - nights))
    for place in POSTGRESQL_NIGHTS:
        add("postgresql", "nightly", "first night", place)
    at_random("postgresql", "nightly", ("first night", "second night"), 2)
    for place in POSTGRESQL_RETRAINING:
        add("postgresql", "retrain", "labels", place)
    at_random("postgresql", "retrain", ("labels",), 2)
    for place in HELD_OUT:
        add("sqlite", "held_out", "unlabeled", place, again="held_out")
    return cases
