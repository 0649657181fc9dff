"""The processes that compute the arms of a simulation.

Each arm computes with one thread, whatever the number of processes: the last digits of sums depend on the
number of threads, and a simulation gives the same numbers with any number of workers.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

import cv2
import torch

from db.engine import Database
from db.queries import simulations
from db.queries.simulations import CellKey
from pipeline.data.project import Project
from pipeline.errors import Busy, UserError
from pipeline.leases import LEASE_SECONDS
from pipeline.operation.simulate.arms import Arm
from pipeline.operation.simulate.settings import Simulated
from pipeline.processes import end_with_parent
from pipeline.progress import Progress, silent
from pipeline.steps.score.local_workers import visible_devices

POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Work:
    """What a process needs to compute an arm; `url` is of the user's store."""

    arm: Arm
    url: str
    simulation_id: int


class Engine(Protocol):
    """Computes arms in this order, each after the `initial` one of its seed; yields each when it is done.

    Args:
        workers: how many at once.
        tick: called about once a second.
        progress: of the steps, where a single worker is this process.

    Raises:
        UserError: a step cannot be done, or a process has died.
    """

    def __call__(
        self,
        works: Sequence[Work],
        *,
        workers: int,
        tick: Callable[[], None],
        progress: Progress = silent,
    ) -> Iterator[Work]: ...


@dataclass(frozen=True)
class SeedWork:
    """The arms of a seed as another machine is told of them: it reads the project from its file, so that no
    secret is sent.

    Attributes:
        strategies: of the arms, in their order.
        folder: of the simulation, which that machine may share or have for itself.
        iterations: of each training.
    """

    asked: Simulated
    seed: int
    strategies: tuple[str, ...]
    folder: Path
    iterations: int
    simulation_id: int

    @classmethod
    def of(cls, works: Sequence[Work]) -> list[SeedWork]:
        """The works, seed by seed."""
        found: list[SeedWork] = []
        for seed, group in groupby(works, key=lambda work: work.arm.seed):
            mine = list(group)
            arm = mine[0].arm
            names = tuple(work.arm.strategy for work in mine)
            iterations = arm.project.config.training.iterations
            found.append(cls(arm.asked, seed, names, arm.folder, iterations, mine[0].simulation_id))
        return found

    def compute(self, project: Project) -> None:
        """Compute the arms one after the other, on the first device of this machine."""
        training = project.config.training.model_copy(update={"iterations": self.iterations})
        project = replace(project, config=project.config.model_copy(update={"training": training}))
        device = visible_devices(project.config)[0]
        for name in self.strategies:
            arm = Arm(project, self.asked, self.folder, name, self.seed, device)
            compute(Work(arm, project.database_url, self.simulation_id))


def compute(work: Work, *, progress: Progress = silent) -> None:
    """Compute an arm with one thread, and store its cells in the user's project."""
    with one_thread(), closing(Database(work.url)) as database:

        def record(key: CellKey, document: dict[str, object]) -> None:
            database.transact(
                lambda session: simulations.put_cell(session, work.simulation_id, key, document)
            )

        waited_until = time.monotonic() + LEASE_SECONDS
        while True:
            try:
                return work.arm.run(database, record, progress=progress)
            except Busy:  # a process of a killed simulation, which has not ended yet
                if time.monotonic() > waited_until:
                    raise
                time.sleep(POLL_SECONDS)


def compute_all(
    works: Sequence[Work], *, workers: int, tick: Callable[[], None], progress: Progress = silent
) -> Iterator[Work]:
    """The engine of this machine: processes, or this one where a single worker is asked for. The processes
    end when this one ends, however it does."""
    if workers == 1:
        for work in works:
            compute(work, progress=progress)
            tick()
            yield work
        return
    with _processes(workers) as pool:
        yield from _schedule(pool, list(works), workers=workers, tick=tick)


def _schedule(
    pool: ProcessPoolExecutor, waiting: list[Work], *, workers: int, tick: Callable[[], None]
) -> Iterator[Work]:
    running: dict[Future[None], Work] = {}
    while waiting or running:
        for work in list(waiting):
            if len(running) == workers:
                break
            if _is_ready(work, [*waiting, *running.values()]):
                waiting.remove(work)
                running[pool.submit(compute, work)] = work
        done, _ = wait(running, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
        tick()
        for future in done:
            work = running.pop(future)
            try:
                future.result()
            except BrokenProcessPool:
                raise UserError(
                    "A process of the simulation was ended, by hand or by the system when memory ran out.",
                    "Run the same command again, with fewer `--workers`; what is finished is kept.",
                ) from None
            yield work


def _is_ready(work: Work, unfinished: Sequence[Work]) -> bool:
    """Whether what the arm begins with is there."""
    needed = work.arm.initial.home
    return work.arm.is_begun_anew or all(other.arm.home != needed for other in unfinished)


@contextmanager
def one_thread() -> Generator[None]:
    """Compute with one thread."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


@contextmanager
def _processes(count: int) -> Generator[ProcessPoolExecutor]:
    """Processes that end at once when the block is left by an error, or when this process ends."""
    spawn = get_context("spawn")  # a fork would inherit the store's connections, and CUDA
    theirs, ours = spawn.Pipe(duplex=False)
    pool = ProcessPoolExecutor(count, mp_context=spawn, initializer=_begin, initargs=(theirs,))
    try:
        yield pool
    except BaseException:
        ours.close()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    ours.close()


def _begin(stopped: Connection) -> None:
    """The beginning of a process: Ctrl-C is the parent's, and so is the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(stopped)
