"""Draining a scoring run on every device of this machine: a process a device, none of which is irreplaceable.

The parent scores nothing. It starts the workers, hears how far they are, and starts another one where one has
died; whose shard that was is known from the store alone. Workers end with their parent, whatever ends it.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from logging.handlers import QueueHandler
from multiprocessing import connection, get_context, parent_process
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
from pipeline.processes import this_process
from pipeline.progress import Progress, silent
from pipeline.steps.score.scorer import Scorer
from pipeline.steps.score.worker import Drained, drain_shards

logger = logging.getLogger(__name__)

MOST_RESTARTS = 3
"""How often a worker that has died is replaced, for each place."""
GRACE_SECONDS = 10.0
"""For how long a worker that is stopped may give its shard back."""
REPORT_SECONDS = 0.25


def visible_devices(config: ProjectConfig) -> list[str]:
    """The devices to score on: with `device: auto` every CUDA device that this process sees, else the CPU."""
    if config.device != "auto":
        return [config.device]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [f"cuda:{index}" for index in range(count)] or ["cpu"]


def drain_everywhere(
    project: Project,
    database: Database,
    *,
    run_id: int,
    scorer: Scorer | None = None,
    progress: Progress = silent,
) -> Drained:
    """Drain a run on every visible device, or in as many processes as `scale.workers` says.

    One process scores right here; several are started, and share the devices and the CPU's threads. One that
    is killed costs a repeat of what it had begun: the others go on, and another one takes its place.

    Args:
        scorer: for the scoring in this process, where it is open already.

    Raises:
        UserError: as `drain_shards` does, in any of them, which ends all; or they die again and again.
    """
    devices = visible_devices(project.config)
    workers = project.config.scale.workers if project.config.scale.engine == "local" else None
    places = [devices[number % len(devices)] for number in range(workers or len(devices))]
    if len(places) == 1:
        return drain_shards(project, database, run_id=run_id, scorer=scorer, progress=progress)
    crew = _Crew(project=project, database=database, run_id=run_id, places=places)
    return crew.drain(progress)


@dataclass
class _Worker:
    """A process that drains, as its parent sees it.

    Attributes:
        restarts: how many have died in this place before.
        name: as shards know it; empty while it starts.
        images: how many it has scored or failed to read.
        drained: what it has done, once it is through.
    """

    device: str
    process: SpawnProcess
    pipe: Connection
    restarts: int
    name: str = ""
    images: int = 0
    drained: Drained | None = None


@dataclass
class _Crew:
    """The workers of one call, and what has become of those that ended."""

    project: Project
    database: Database
    run_id: int
    places: Sequence[str]
    workers: list[_Worker] = field(default_factory=list)
    done: Drained = field(default_factory=Drained)

    def drain(self, progress: Progress) -> Drained:
        total = self.database.transact(lambda session: shards.count_to_score(session, run_id=self.run_id))
        try:
            for device in self.places[: self.left()]:
                self.start(device)
            while self.workers:
                for pipe in connection.wait([worker.pipe for worker in self.workers]):
                    (worker,) = (worker for worker in self.workers if worker.pipe is pipe)
                    self.hear(worker)
                images = self.done.images + self.done.failed + sum(worker.images for worker in self.workers)
                progress("score", min(images, total), total)
        finally:
            self.stop()
        return self.done

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
                "threads": max(1, torch.get_num_threads() // len(self.places)),
                "log_level": logging.getLogger("pipeline").getEffectiveLevel(),
                "pipe": theirs,
            },
            name=f"score on {device}",
            daemon=True,
        )
        process.start()
        theirs.close()  # so that its death closes the pipe
        self.workers.append(_Worker(device, process, ours, restarts))

    def hear(self, worker: _Worker) -> None:
        """Take in a message of a worker, or its end."""
        try:
            message: str | int | Drained | logging.LogRecord | Exception = worker.pipe.recv()
        except (EOFError, OSError):
            self.part(worker)
            return
        if isinstance(message, str):
            worker.name = message
        elif isinstance(message, int):
            worker.images = message
        elif isinstance(message, Drained):
            worker.drained = message
        elif isinstance(message, logging.LogRecord):
            logging.getLogger(message.name).handle(message)
        else:
            raise message

    def part(self, worker: _Worker) -> None:
        """See off a worker that has ended, and replace it if it has died."""
        self.workers.remove(worker)
        worker.pipe.close()
        worker.process.join()
        if worker.drained is not None:  # so all is done, and who has not begun need not
            self.done += worker.drained
            for late in (other for other in self.workers if not other.name):
                late.drained = Drained()
                late.process.terminate()
            return
        found = self.database.transact(lambda session: shards.workers(session, run_id=self.run_id))
        death = _death(worker)
        logger.warning("%s", death)
        self.done += Drained(remarks=(f"warning: {death} What it had begun is scored again.",))
        for it in (other for other in found if other.owner == worker.name):
            self.done += Drained(it.images, it.regions, it.failed, workers=(it.owner,))
        if self.left() == 0:
            return
        if worker.restarts < MOST_RESTARTS:
            self.start(worker.device, restarts=worker.restarts + 1)
        elif not self.workers:
            raise UserError(
                f"The processes that score die again and again; the last: {death}",
                "Most often the memory is too small: set a lower `scale.workers`, `scoring.batch_size` or "
                "`scoring.workers`. What is scored is kept; run the command again to go on.",
            )

    def left(self) -> int:
        """How many shards are not done."""
        return sum(self.database.transact(lambda session: shards.open_shards(session, run_id=self.run_id)))

    def stop(self) -> None:
        """End every worker that is left, after it has given its shard back."""
        for worker in self.workers:
            worker.process.terminate()
        give_up_at = monotonic() + GRACE_SECONDS
        for worker in self.workers:
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
    """A worker's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends its workers in order
    signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit(128 + signal.SIGTERM))
    threading.Thread(target=_end_with_parent, name="end with parent", daemon=True).start()
    lock = threading.Lock()

    def tell(message: Any) -> None:
        with lock:
            pipe.send(message)

    logging.basicConfig(level=log_level, handlers=[_Forward(tell)])
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    device = pick_device(project.config.device)
    if device.index is not None:
        torch.cuda.set_device(device)  # else this process would take memory of the first one too
    told_at = 0.0

    def progress(title: str, done: int, total: int | None) -> None:
        nonlocal told_at
        if monotonic() - told_at > REPORT_SECONDS:
            tell(done)
            told_at = monotonic()

    tell(this_process())
    try:
        tell(drain_shards(project, Database(url), run_id=run_id, progress=progress))
    except Exception as error:
        tell(_portable(error))


def _portable(error: Exception) -> Exception:
    """An error as it can cross a pipe, with the place where it was raised unless that is the user's."""
    if isinstance(error, UserError):
        return error
    trace = traceback.format_exc()
    try:
        error = pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its class has made of pickling
        error = RuntimeError(str(error))
    error.add_note(f"In a worker:\n{trace}")
    return error


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)  # its shards are seen to be nobody's, as after any other death


class _Forward(QueueHandler):
    """Sends log records to the parent, which has the handlers."""

    def __init__(self, tell: Callable[[logging.LogRecord], None]) -> None:
        super().__init__(tell)  # pyright: ignore[reportArgumentType]  (its `enqueue` alone uses it)
        self.tell = tell

    def enqueue(self, record: logging.LogRecord) -> None:
        self.tell(record)
