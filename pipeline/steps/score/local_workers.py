"""Score a run on this machine, with one worker process for each device.

The parent process scores nothing. It starts the workers, reads their progress, and replaces a worker that has
died; the store says which shard that worker had begun. Workers end when their parent ends.
"""

from __future__ import annotations

import logging
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from logging.handlers import QueueHandler
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from time import monotonic
from typing import Any

import cv2
import torch

from db.engine import Database
from db.queries import shards
from pipeline.config import ProjectConfig
from pipeline.data.project import Project
from pipeline.errors import UserError
from pipeline.model.device import pick_device
from pipeline.processes import end_with_parent, this_process
from pipeline.progress import Progress, apart_from_tiles, silent
from pipeline.steps.score.scorer import Scorer
from pipeline.steps.score.worker import score_shards
from pipeline.steps.score.writer import ScoringTotals

logger = logging.getLogger(__name__)

MOST_RESTARTS = 3
"""How often the worker of one device is replaced after it has died."""
GRACE_SECONDS = 10.0
"""How long a stopped worker may take to release its shard."""
REPORT_SECONDS = 0.25


def visible_devices(config: ProjectConfig) -> list[str]:
    """The devices to score on: with `device: auto` every CUDA device that this process sees, else the CPU."""
    if config.device != "auto":
        return [config.device]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [f"cuda:{index}" for index in range(count)] or ["cpu"]


def score_on_devices(
    project: Project,
    database: Database,
    *,
    run_id: int,
    scorer: Scorer | None = None,
    progress: Progress = silent,
) -> ScoringTotals:
    """Score a run with one worker for each visible device, or with `scale.workers` workers.

    A single worker runs in this process; several are processes, which share the devices and the CPU's
    threads. If one is killed, the others go on, a new one replaces it, and its shard is scored again.

    Args:
        scorer: for a worker in this process; opened here if None.

    Raises:
        UserError: as `score_shards`, in any worker, which stops all; or workers die again and again.
    """
    devices = visible_devices(project.config)
    workers = project.config.scale.workers if project.config.scale.engine == "local" else None
    of_workers = [devices[number % len(devices)] for number in range(workers or len(devices))]
    if len(of_workers) == 1:
        return score_shards(project, database, run_id=run_id, scorer=scorer, progress=progress)
    return _Workers(project=project, database=database, run_id=run_id, devices=of_workers).run(progress)


@dataclass
class _Worker:
    """The parent's record of a worker process.

    Attributes:
        restarts: workers that this one replaces, one after the other.
        name: the owner of its shards; empty while it starts.
        images: images that it has scored or failed to read.
        totals: its result; None until it has finished.
    """

    device: str
    process: SpawnProcess
    pipe: Connection
    restarts: int
    name: str = ""
    images: int = 0
    totals: ScoringTotals | None = None


@dataclass
class _Workers:
    """The worker processes of one call, and the totals of those that have ended."""

    project: Project
    database: Database
    run_id: int
    devices: Sequence[str]
    """One for each worker."""
    running: list[_Worker] = field(default_factory=list)
    totals: ScoringTotals = field(default_factory=ScoringTotals)

    def run(self, progress: Progress) -> ScoringTotals:
        total = self.database.transact(
            lambda session: shards.count_to_score(session, run_id=self.run_id), write=False
        )
        try:
            for device in self.devices[: self.open_shards()]:
                self.start(device)
            while self.running:
                for pipe in connection.wait([worker.pipe for worker in self.running]):
                    (worker,) = (worker for worker in self.running if worker.pipe is pipe)
                    self.receive(worker)
                images = (
                    self.totals.images + self.totals.failed + sum(worker.images for worker in self.running)
                )
                progress("score", min(images, total), total)
        finally:
            self.stop()
        return self.totals

    def start(self, device: str, *, restarts: int = 0) -> None:
        config = self.project.config.model_copy(update={"device": device})
        spawn = get_context("spawn")  # a fork would inherit the store's connections, and CUDA
        ours, theirs = spawn.Pipe(duplex=False)
        process = spawn.Process(
            target=_work,
            kwargs={
                "project": replace(self.project, config=config),
                "url": self.database.engine.url.render_as_string(hide_password=False),
                "run_id": self.run_id,
                "threads": max(1, torch.get_num_threads() // len(self.devices)),
                "log_level": logging.getLogger("pipeline").getEffectiveLevel(),
                "pipe": theirs,
            },
            name=f"score on {device}",
            daemon=True,
        )
        process.start()
        theirs.close()  # so that the pipe closes when the worker dies
        self.running.append(_Worker(device, process, ours, restarts))

    def receive(self, worker: _Worker) -> None:
        """Read one message of a worker, or notice that it has ended."""
        try:
            message: str | int | ScoringTotals | logging.LogRecord | Exception = worker.pipe.recv()
        except (EOFError, OSError):
            self.end(worker)
            return
        if isinstance(message, str):
            worker.name = message
        elif isinstance(message, int):
            worker.images = message
        elif isinstance(message, ScoringTotals):
            worker.totals = message
        elif isinstance(message, logging.LogRecord):
            logging.getLogger(message.name).handle(message)
        else:
            raise message

    def end(self, worker: _Worker) -> None:
        """Remove a worker that has ended; replace it if it has died."""
        self.running.remove(worker)
        worker.pipe.close()
        worker.process.join()
        if worker.totals is not None:  # every shard is done, so workers that still start are not needed
            self.totals += worker.totals
            for starting in (other for other in self.running if not other.name):
                starting.totals = ScoringTotals()
                starting.process.terminate()
            return
        written = self.database.transact(
            lambda session: shards.workers(session, run_id=self.run_id), write=False
        )
        death = _death(worker)
        logger.warning("%s", death)
        self.totals += ScoringTotals(
            remarks=(f"warning: {death} The shard that it had begun is scored again.",)
        )
        for row in (row for row in written if row.owner == worker.name):
            self.totals += ScoringTotals(row.images, row.regions, row.failed, workers=(row.owner,))
        if self.open_shards() == 0:
            return
        if worker.restarts < MOST_RESTARTS:
            self.start(worker.device, restarts=worker.restarts + 1)
        elif not self.running:
            raise UserError(
                f"The processes that score die again and again; the last: {death}",
                "Most often the memory is too small: set a lower `scale.workers`, `scoring.batch_size` or "
                "`scoring.workers`. What is scored is kept; run the command again to go on.",
            )

    def open_shards(self) -> int:
        """The number of shards that are not done."""
        return sum(
            self.database.transact(
                lambda session: shards.open_shards(session, run_id=self.run_id), write=False
            )
        )

    def stop(self) -> None:
        """Stop every worker that still runs; it releases its shard first."""
        for worker in self.running:
            worker.process.terminate()
        give_up_at = monotonic() + GRACE_SECONDS
        for worker in self.running:
            worker.process.join(max(0.0, give_up_at - monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()


def _death(worker: _Worker) -> str:
    code = worker.process.exitcode or 0
    if code < 0:
        end = f"was ended by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            end += ", by hand or by the system when memory ran out"
    else:
        end = f"ended with exit code {code}"
    return f"Process {worker.process.pid}, which scored on {worker.device}, {end}."


def _work(*, project: Project, url: str, run_id: int, threads: int, log_level: int, pipe: Connection) -> None:
    """Score shards in a worker process; send progress, log records and totals to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent stops its workers
    signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit(128 + signal.SIGTERM))
    end_with_parent()
    lock = threading.Lock()

    def send(message: Any) -> None:
        with lock:
            pipe.send(message)

    logging.basicConfig(level=log_level, handlers=[_Forward(send)])
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    device = pick_device(project.config.device)
    if device.index is not None:
        torch.cuda.set_device(device)  # else this process would also take memory on the first device
    sent_at = 0.0

    def progress(title: str, done: int, total: int | None, note: str = "") -> None:
        nonlocal sent_at
        if monotonic() - sent_at > REPORT_SECONDS:
            send(done)
            sent_at = monotonic()

    send(this_process())
    try:
        send(score_shards(project, Database(url), run_id=run_id, progress=apart_from_tiles(progress)))
    except Exception as error:
        send(_portable(error))


def _portable(error: Exception) -> Exception:
    """An error that can be pickled, with the worker's traceback as a note unless it is a UserError."""
    if isinstance(error, UserError):
        return error
    trace = traceback.format_exc()
    try:
        error = pickle.loads(pickle.dumps(error))
    except Exception:  # a class may fail in any way when it is pickled
        error = RuntimeError(str(error))
    error.add_note(f"In a worker:\n{trace}")
    return error


class _Forward(QueueHandler):
    """Sends log records to the parent, which has the handlers."""

    def __init__(self, send: Callable[[logging.LogRecord], None]) -> None:
        super().__init__(send)  # pyright: ignore[reportArgumentType]  (its `enqueue` alone uses it)
        self.send = send

    def enqueue(self, record: logging.LogRecord) -> None:
        self.send(record)
