"""An arm of a simulation: one strategy with one seed, as a project beside the user's own.

It has a store and a workdir of its own below `<workdir>/simulations`, with the project's images and splits
and none of its labels. The project's steps run in it, so a killed arm goes on as a killed project does. The
first labels and their model are the same for every strategy of a seed: they are made once, in the folder
`initial`, whose store each arm begins as a copy of.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any
from urllib.parse import quote

from db.engine import Database, connect
from db.migrations import current, head
from db.queries import images as image_queries
from db.queries import rounds as round_queries
from db.queries import simulations
from db.queries.simulations import FULL, INITIAL, OTHER_INITIAL, CellKey
from pipeline.config.data import InitialSplit
from pipeline.config.labeling import LabelingConfig
from pipeline.config.operation import ScaleConfig
from pipeline.config.project import SQLITE, DatabaseConfig
from pipeline.config.scoring import HeatmapConfig
from pipeline.data.project import Project
from pipeline.errors import UserError
from pipeline.files import PARTIAL, writable_folder
from pipeline.operation.played_labels import current_round, take_step
from pipeline.operation.runner import Runner
from pipeline.operation.simulate.settings import Simulated, selection_of
from pipeline.ownership import open_database
from pipeline.progress import Progress, silent
from pipeline.rounds import WITHOUT_MODEL, open_without_labels
from pipeline.steps.ingest.initial_labels import label_initial
from pipeline.steps.label_costs import cut_queue, label_costs
from pipeline.steps.measure_cell import measure_cell, use_model

STORE = "store.db"

Record = Callable[[CellKey, dict[str, Any]], None]
"""Stores a finished cell in the user's project."""


@dataclass(frozen=True)
class Arm:
    """Strategy and seed; `initial` for what a seed's strategies share, `initial:coverage` and the like for
    other first labels, `full` for all labels.

    Attributes:
        folder: of the simulation.
    """

    project: Project
    asked: Simulated
    folder: Path
    strategy: str
    seed: int
    device: str

    @property
    def cells(self) -> list[CellKey]:
        """The cells that it computes."""
        if self.is_first:
            return [CellKey(self.strategy, self.seed, self.asked.budgets[0])]
        if self.strategy == FULL:
            return [CellKey(FULL, self.seed, 0)]
        return self.asked.cells_of_arm(self.strategy, self.seed)

    @property
    def is_first(self) -> bool:
        """Whether it makes first labels."""
        return self.strategy == INITIAL or self.strategy.startswith(OTHER_INITIAL)

    @property
    def is_begun_anew(self) -> bool:
        """Whether it begins without labels, and not as a copy of the shared first ones."""
        return self.is_first or self.strategy == FULL

    @property
    def calibrator(self) -> str:
        """The configured one; `temperature` for `auto`, which compares all of them and takes its time."""
        configured = self.project.config.calibration.calibrator
        return "temperature" if configured == "auto" else configured

    @property
    def home(self) -> Path:
        """Its own folder."""
        return self.folder / f"seed-{self.seed:03d}" / quote(self.strategy, safe="=")

    @property
    def initial(self) -> Arm:
        """The arm that makes the first labels and their model."""
        return replace(self, strategy=INITIAL)

    def simulated_project(self) -> Project:
        """The user's project as this arm plays it: same images, network and settings, other labels."""
        config = self.project.config
        first = InitialSplit()
        if self.strategy != FULL and not self.asked.in_clicks:
            first = InitialSplit(unit=config.selection.unit, count=self.asked.budgets[0])
        own = config.selection if self.is_begun_anew else selection_of(self.strategy, config.selection)
        changes: dict[str, Any] = {
            "workdir": str(self.home),
            "device": self.device,
            "database": DatabaseConfig(url=_url(self.home / STORE)),
            "splits": _with(config.splits, initial=first, seed=self.seed),
            "calibration": _with(config.calibration, calibrator=self.calibrator),
            "training": _with(config.training, seed=self.seed, workers=0),
            "scoring": _with(
                config.scoring, seed=self.seed, workers=0, heatmaps=HeatmapConfig(images="none", measures=[])
            ),
            "selection": _with(
                own,
                budget_unit=None,
                audit_fraction=config.selection.audit_fraction if self.asked.audit else 0.0,
                audit_training="always",
                seed=self.seed,
            ),
            "export": _with(config.export, folder=str(self.home / "queues"), overlays=False, images="link"),
            "labeling": LabelingConfig(),
            "scale": ScaleConfig(workers=1),
        }
        caches = self.project.caches or self.project.workdir  # shared by all arms
        return replace(self.project, config=config.model_copy(update=changes), caches=caches)

    def run(self, source: Database, record: Record, *, progress: Progress = silent) -> None:
        """Compute the arm's cells, or those that are still missing; killed and run again, it goes on.

        Args:
            source: the user's store, which images and splits are read from.

        Raises:
            UserError: a step cannot be done; or the pool has too few regions for the last budget.
        """
        project = self.simulated_project()
        self._open_store(source)
        with closing(open_database(project)) as database:
            runner = Runner(project, database, progress=progress)
            if self.is_begun_anew:
                wanted = self.asked.budgets[0] if self.is_first else None
                cold_start = self.asked.cold_start(self.strategy)
                by_queue = cold_start not in (None, "random") or (self.is_first and self.asked.in_clicks)
                _label_first(project, database, wanted, by_queue=by_queue)
            self._play(runner, record)

    def forget(self) -> None:
        """Delete the arm's folder."""
        shutil.rmtree(self.home, ignore_errors=True)

    def _play(self, runner: Runner, record: Record) -> None:
        """The steps until the last cell is recorded; of the first labels, until their model has scored."""
        cells = self.cells
        begun = 1 if self.is_begun_anew else 2
        while True:
            current = current_round(runner)
            turn = current.number - begun
            if current.state == "evaluate":
                record(cells[turn], measure_cell(runner.project, runner.database, progress=runner.progress))
                use_model(runner.database)
            elif turn == len(cells) - 1 and current.state in ("score", "select"):
                if self.strategy != INITIAL or current.state == "select":
                    return
                take_step(runner, current)
            else:
                chosen: dict[str, Any] = {}
                if current.state == "select":
                    chosen = {"budget": self._queue_size(runner, current.number)}
                if current.state == "export" and self.asked.in_clicks:
                    budget = self.asked.budgets[current.number]
                    cut_queue(runner.project, runner.database, clicks=budget)
                if current.number == WITHOUT_MODEL:
                    chosen["strategy"] = self.asked.cold_start(self.strategy)
                take_step(
                    runner,
                    current,
                    calibrate={"only": [self.calibrator]},
                    select={"overrides": chosen, "force": True},
                )

    def _queue_size(self, runner: Runner, number: int) -> int:
        """The labels of the queue of a round. With a budget of clicks, as many as it can pay for, as each
        costs one at least: where the annotator stops is found in the queue, after it has been selected."""
        budgets = self.asked.budgets
        if self.asked.in_clicks:
            spent = label_costs(runner.project, runner.database).clicks
            return max(1, ceil(budgets[number] - spent))
        return budgets[number] - (budgets[number - 1] if number else 0)

    def _open_store(self, source: Database) -> None:
        """Make the arm's store where it is missing, whole or not at all. One that another version of the
        program began is made anew: all that it held is computed again."""
        path = self.home / STORE
        if path.is_file():
            if _is_current(path):
                return
            self.forget()
        writable_folder(self.home)
        fresh = path.with_name(STORE + PARTIAL)
        for rest in self.home.glob(f"{STORE}*"):
            rest.unlink()
        if self.is_begun_anew:
            _fill(fresh, source)
        else:
            with (
                closing(sqlite3.connect(self.initial.home / STORE)) as first,
                closing(sqlite3.connect(fresh)) as mine,
            ):
                first.backup(mine)
        fresh.replace(path)


def _url(path: Path) -> str:
    return SQLITE + str(path).replace("%", "%25").replace("?", "%3F")


def _is_current(path: Path) -> bool:
    """Whether a store is of this version of segcurate."""
    engine = connect(_url(path))
    try:
        return current(engine) == head()
    finally:
        engine.dispose()


def _with(section: Any, **changes: Any) -> Any:
    return section.model_copy(update=changes)


def _fill(path: Path, source: Database) -> None:
    """A store with the images and the splits of another, and nothing else."""
    with source.session(write=False) as session:
        project = image_queries.project_row(session)
        rows = [*([project] if project is not None else []), *simulations.images_to_simulate(session)]
        session.expunge_all()
    with closing(Database(_url(path))) as store, store.session() as session:
        simulations.copy_rows(session, rows)


def _label_first(project: Project, database: Database, wanted: int | None, *, by_queue: bool) -> None:
    """The first labels, unless they are recorded: a random draw, or with None every mask of the pool;
    `by_queue` leaves them to the queue of round 0."""
    with database.session() as session:
        if round_queries.current_round(session) is not None:
            return
        if by_queue:
            open_without_labels(session)
            return
    label_initial(project, database, named=[], workers=1, progress=silent)
    with database.session(write=False) as session:
        if round_queries.current_round(session) is None:
            raise UserError(
                f"None of the {wanted or ''} first labels holds a class.".replace("  ", " "),
                "Give a larger first budget with `--budgets`.",
            )
