"""Run a simulation: every strategy with every seed, and what the comparison says."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from db.queries import simulations
from db.queries.images import PoolSizes
from db.queries.simulations import FULL, INITIAL, CellKey
from db.tables import Image
from pipeline.config import content_hash
from pipeline.data.project import Project
from pipeline.errors import UserError
from pipeline.files import require_space, writable_folder
from pipeline.format import count, counted, duration
from pipeline.leases import alone
from pipeline.operation.runner import Runner
from pipeline.operation.simulate.arms import Arm
from pipeline.operation.simulate.settings import (
    Simulated,
    counts_clicks,
    parse_budgets,
    parse_cold_starts,
    parse_strategies,
    settings_document,
)
from pipeline.operation.simulate.workers import Engine, Work, compute_all
from pipeline.progress import Progress, silent
from pipeline.steps.ingest.initial_regions import InitialRegions
from pipeline.steps.ready import require_positive
from pipeline.steps.score.local_workers import visible_devices
from pipeline.steps.select.features import features_for
from pipeline.steps.train import CHECKPOINT_SHARE, weights_size
from pipeline.summaries.simulations import SimulationSummary, simulation_summary

SCORE_BYTES = 400
"""On disk for a region's score."""


def run_simulate(
    runner: Runner,
    *,
    strategies: str,
    seeds: int,
    budgets: str,
    workers: int | None = None,
    reference: bool = False,
    cold_start: str = "random",
    audit: bool = False,
    iterations: int | None = None,
    engine: Engine = compute_all,
) -> SimulationSummary:
    """Compute the cells that are missing, then summarise all that were asked for.

    Nothing of the project itself changes but its rows of simulations: rounds, queues and labels stay. A
    killed simulation goes on when it is started again, also with other workers, and gives the same numbers.
    More strategies or seeds are added to a simulation of the same budgets and settings.

    Args:
        strategies: names, separated by commas, each with settings of its own where it has some
            (`entropy:noise_beta=4`).
        seeds: from 0 on.
        budgets: labels in all, such as `1%,2%,4%,8%`, or clicks in all, such as `200clicks,400clicks`; the
            first ones are shared.
        workers: processes; None for one a core, or one a GPU where there are some.
        reference: also train on all labels, once a seed.
        cold_start: how the first labels are chosen, separated by commas: strategies start from those of the
            first one, and the others are compared with it.
        audit: give every queue the audit slice of the project's settings.
        iterations: of each training, instead of `training.iterations`: a quick look with worse models.
        engine: what computes the arms; by default processes of this machine.

    Raises:
        Busy: another process runs a simulation of this project.
        UserError: the project has too few masks, an option is wrong, or a step cannot be done.
    """
    for option, given in (("--seeds", seeds), ("--workers", workers), ("--iterations", iterations)):
        if given is not None:
            require_positive(option, given)
    if iterations is not None:
        runner = _shortened(runner, iterations)
    project, database = runner.project, runner.database
    names = parse_strategies(strategies, project.config)
    with database.session(write=False) as session:
        images = list(simulations.images_to_simulate(session))
        session.expunge_all()
    _check(images)
    unit = project.config.selection.unit
    available = count_labels(project, images, progress=runner.progress)
    cold_starts = parse_cold_starts(cold_start)
    asked = Simulated(
        names,
        seeds,
        parse_budgets(budgets, available, unit=unit),
        reference,
        cold_starts,
        audit,
        in_clicks=counts_clicks(budgets),
    )
    for one in asked.selections(project.config.selection):
        features_for(project, database, one, silent)  # refuses random weights
    settings = settings_document(project, asked, images)
    with alone(database, "simulate"):
        with database.session() as session:
            row = simulations.open_simulation(
                session, hash=content_hash(settings), settings={**settings, "available": available}
            )
        folder = project.workdir / "simulations" / row.hash[:16]
        devices = visible_devices(project.config)
        run = _Run(runner, asked, row.id, folder, devices=devices, available=available, engine=engine)
        run.compute(workers or run.default_workers())
    with database.session(write=False) as session:
        return simulation_summary(session, row.id, project.config, strategies=names, seeds=range(seeds))


def _shortened(runner: Runner, iterations: int) -> Runner:
    """The runner with other trainings, said in its log."""
    config = runner.project.config
    runner.log(
        f"Each training has {counted(iterations, 'iteration')}; the project's have "
        f"{count(config.training.iterations)}."
    )
    training = config.training.model_copy(update={"iterations": iterations})
    project = replace(runner.project, config=config.model_copy(update={"training": training}))
    return replace(runner, project=project)


def count_labels(project: Project, images: Sequence[Image], *, progress: Progress) -> int:
    """How many regions, or images, of the pool have a mask; segments are counted as cells of their size."""
    pool = [image for image in images if image.split == "pool"]
    if project.config.selection.unit == "image":
        return len(pool)
    initial = project.config.splits.initial.model_copy(update={"unit": "region"})
    splits = project.config.splits.model_copy(update={"initial": initial})
    config = project.config.model_copy(update={"splits": splits})
    sizes = PoolSizes(
        ids=np.array([image.id for image in pool], dtype=np.int64),
        widths=np.array([image.width for image in pool], dtype=np.int32),
        heights=np.array([image.height for image in pool], dtype=np.int32),
        has_mask=np.ones(len(pool), dtype=np.bool_),
    )
    with ThreadPoolExecutor(1) as threads, TemporaryFile() as file:
        regions = InitialRegions(replace(project, config=config), file)
        regions.prepare([pool], threads, progress)
        return int(regions.counts(sizes).sum())


def _check(images: Sequence[Image]) -> None:
    """Whether there is something to play with, and something to measure on."""
    splits = {image.split for image in images}
    if "pool" not in splits:
        raise UserError(
            "No image of the pool has a mask: a simulation needs masks to play the annotator with.",
            "Set `data.masks` to a folder with masks of many images, and run `segcurate ingest`.",
        )
    if "test" not in splits:
        raise UserError(
            "The test split has no images with masks yet: there is nothing to measure on.",
            "Run `segcurate ingest`: it says what the splits need.",
        )


@dataclass
class _Run:
    """The missing cells of a simulation, and how far it is; `available` labels are in the pool's masks."""

    runner: Runner
    asked: Simulated
    simulation_id: int
    folder: Path
    devices: Sequence[str]
    available: int
    engine: Engine
    began: float = field(default_factory=time.monotonic)

    def default_workers(self) -> int:
        """One a core, or one a GPU; no more than there are arms."""
        if self.devices[0] != "cpu":
            return len(self.devices)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(cores, self.asked.seeds * len(self.asked.strategies))

    def compute(self, workers: int) -> None:
        """Compute every arm that lacks a cell, seed by seed; what is done with is deleted."""
        finished = self.finished()
        arms = self.missing_arms(finished)
        if not arms:
            self.runner.log(f"All {counted(len(self.asked.cells), 'cell')} are finished.")
            self.tidy(range(self.asked.seeds))
            return
        writable_folder(self.folder)
        workers = min(workers, len(arms))
        self.announce(finished, arms, workers)
        url = self.runner.project.database_url
        works = [Work(arm, url, self.simulation_id) for arm in arms]
        shown = _Shown(self, len(self.asked.cells), len(finished))
        left = list(works)
        for work in self.engine(works, workers=workers, tick=shown.tick, progress=self.runner.progress):
            left.remove(work)
            if work.arm.strategy != INITIAL:
                work.arm.forget()
            if all(other.arm.seed != work.arm.seed for other in left):
                self.tidy([work.arm.seed])

    def tidy(self, seeds: Iterable[int]) -> None:
        """Delete the folders of finished seeds. Arms that were begun and are not asked for now stay."""
        for seed in seeds:
            for name in (*self.asked.strategies, *self.asked.first_arms[1:], FULL):
                self.arm(name, seed).forget()
            first = self.arm(INITIAL, seed)
            if not [path for path in first.home.parent.glob("*") if path != first.home]:
                first.forget()
            for folder in (first.home.parent, self.folder, self.folder.parent):
                with suppress(OSError):  # others are unfinished
                    folder.rmdir()

    def finished(self) -> set[CellKey]:
        """The finished ones of the cells that are asked for."""
        with self.runner.database.session(write=False) as session:
            return simulations.cell_keys(session, self.simulation_id) & set(self.asked.cells)

    def missing_arms(self, finished: set[CellKey]) -> list[Arm]:
        """The arms with a missing cell, each seed's `initial` first where an arm begins with it."""
        found: list[Arm] = []
        for seed in range(self.asked.seeds):
            asked = self.asked
            names = [*asked.first_arms[1:], *asked.strategies, *([FULL] if asked.reference else [])]
            arms = [arm for name in names if not set((arm := self.arm(name, seed)).cells) <= finished]
            first = self.arm(INITIAL, seed)
            if any(not arm.is_begun_anew for arm in arms) or not set(first.cells) <= finished:
                found.append(first)
            found += arms
        return found

    def arm(self, strategy: str, seed: int) -> Arm:
        turn = [*self.asked.strategies, FULL, *self.asked.first_arms].index(strategy) + seed
        device = self.devices[turn % len(self.devices)]
        return Arm(self.runner.project, self.asked, self.folder, strategy, seed, device)

    def announce(self, finished: set[CellKey], arms: Sequence[Arm], workers: int) -> None:
        """Say how much there is to do and what disk it needs, and refuse what does not fit.

        Raises:
            UserError: the disk is too full, or the network cannot be built.
        """
        asked, config = self.asked, self.runner.project.config
        self.runner.log(
            f"{counted(len(asked.cells), 'cell')}, each a training: {counted(asked.seeds, 'seed')} × "
            f"{counted(len(asked.strategies), 'strategy')} × {counted(len(asked.budgets) - 1, 'budget')}, "
            f"and {count(len(asked.first_arms) + asked.reference)} a seed beside them. "
            f"{count(len(finished))} are finished."
        )
        of = "clicks" if asked.in_clicks else f"of {count(self.available)} {config.selection.unit}s"
        self.runner.log(f"Budgets: {', '.join(map(count, asked.budgets))} {of}. Processes: {workers}.")
        at_once = min(len(arms), workers + len({arm.seed for arm in arms[: workers + 1]}))
        weights = weights_size(self.runner.project)
        arm_size = (CHECKPOINT_SHARE + len(asked.budgets)) * weights
        arm_size += len(asked.budgets) * self.available * SCORE_BYTES
        self.runner.log(f"At most {_megabytes(at_once * arm_size)} on disk at a time, in {self.folder}.")
        require_space(self.folder, at_once * arm_size)


@dataclass
class _Shown:
    """The progress in cells, and once how long it will take."""

    run: _Run
    total: int
    before: int
    said: bool = False

    def tick(self) -> None:
        """Called about once a second."""
        done = len(self.run.finished())
        self.run.runner.progress("cells", done, self.total)
        fresh = done - self.before
        if not self.said and fresh >= 2 and done < self.total:
            self.said = True
            seconds = (time.monotonic() - self.run.began) / fresh
            self.run.runner.log(
                f"After {fresh} cells: about {duration(seconds * (self.total - done))} for the other "
                f"{count(self.total - done)}."
            )


def _megabytes(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
