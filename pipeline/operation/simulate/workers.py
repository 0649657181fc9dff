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
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection

import cv2
import torch

from db.engine import Database
from db.queries import simulations
from db.queries.simulations import CellKey
from pipeline.errors import Busy, UserError
from pipeline.leases import LEASE_SECONDS
from pipeline.operation.simulate.arms import Arm
from pipeline.processes import end_with_parent
from pipeline.progress import Progress, silent

POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Work:
    """What a process needs to compute an arm; `url` is of the user's store."""

    arm: Arm
    url: str
    simulation_id: int


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
    """Compute arms in this order, each after the `initial` one of its seed; yields each when it is done.

    A single worker is this process. The processes end when this one ends, however it does.

    Args:
        tick: called about once a second.
        progress: of the steps, with a single worker.

    Raises:
        UserError: a step cannot be done, or a process has died.
    """
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
