"""The artifacts of a flow run in Prefect's pages: scoring progress, queue, round, exported folder.

Outside a flow run nothing is written. An artifact that cannot be written is a warning in the log and never
ends a run, because the database holds all results.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import copy_context
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import ParamSpec, cast
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging import get_run_logger

from db.engine import Database
from db.queries.leases import store_time
from db.queries.queues import newest_round_queue
from db.queries.shards import images_done
from flows.deployments import slug
from flows.markdown import code, harmless, plain
from pipeline.data.project import Project
from pipeline.format import out_of
from pipeline.ownership import identity_of
from pipeline.progress import Progress, apart_from_tiles, silent
from pipeline.summaries.queues import queue_summary

Arguments = ParamSpec("Arguments")

QUEUE_HEAD = 50
SHOWN_FILES = 20
UPDATE_SECONDS = 1.0
POLL_SECONDS = 3.0
"""Seconds between two queries for the images that other processes have scored."""
PATIENCE = 15.0
"""Seconds that a finished run waits for its last update to be sent."""


def in_a_run() -> bool:
    """Whether a flow or a task of Prefect runs this code."""
    return FlowRunContext.get() is not None or TaskRunContext.get() is not None


def never_fails(show: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Show an artifact in a run, and only there; an error becomes a warning in the log."""

    @wraps(show)
    def shown(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        if not in_a_run():
            return
        try:
            show(*args, **kwargs)
        except Exception as error:  # the server, the store, or a drawing; none may end the run
            get_run_logger().warning("An artifact was left out, %s failed: %s", show.__name__, error)

    return shown


@contextmanager
def scoring_progress(project: Project, database: Database, *, run_id: int, total: int) -> Generator[Progress]:
    """A progress that is shown as an artifact of this scoring run, once a second at most.

    It may be called from any thread. Other processes may score, too: the number of finished images is read
    from the database every few seconds, and the larger number is shown. It ends at 100 %, or at the share
    that was reached.

    Args:
        total: images to score, by all processes together.
    """
    if not in_a_run():
        yield silent
        return
    shown = _ShownProgress(project, database, run_id=run_id, total=total)
    thread = threading.Thread(target=copy_context().run, args=(shown.keep_updating,), daemon=True)
    thread.start()
    try:
        yield apart_from_tiles(shown.report)
    finally:
        shown.ended.set()
        thread.join(PATIENCE)


@never_fails
def show_queue(project: Project, database: Database) -> None:
    """The head of the round's queue as a table: the regions to label, and why."""
    with database.session(write=False) as session:
        queue = newest_round_queue(session)
        if queue is None:
            return
        summary = queue_summary(session, queue, class_names=project.config.data.class_names, head=QUEUE_HEAD)
    rows = [
        {
            "rank": item.rank,
            "image": harmless(item.image),
            "box": f"{item.box[0]}, {item.box[1]} · {item.box[2]} × {item.box[3]}",
            "class": harmless(item.class_name or "–"),
            (summary.measure or "score").replace("_", " "): "–"
            if item.score is None
            else f"{item.score:.3f}",
            "slice": item.slice,
            "reason": harmless(item.reason),
        }
        for item in summary.head
    ]
    where = f" In {code(project.path(summary.folder))}." if summary.folder else ""
    create_table_artifact(
        rows,
        key=_key("queue", project, database),
        description=f"**{plain(summary.name)}**: the first {len(rows)} of {summary.items} {summary.unit}s by "
        f"{plain(summary.strategy)}; the box is x, y · width × height in pixels.{where}",
    )


@never_fails
def show_round(project: Project, database: Database) -> None:
    """The newest round as a page: the model, its metrics, the queue, problems, and the next command."""
    from flows.round_report import round_report

    report = round_report(project, database)
    if report is not None:
        create_markdown_artifact(
            report.page, key=_key("round", project, database), description=report.headline
        )


@never_fails
def link_export(project: Project, database: Database, folder: Path) -> None:
    """The path of the exported queue, to be copied: browsers open no `file:` link from a page of another
    origin, and Prefect's newer pages drop it."""
    path = folder.resolve()
    listed = "\n".join(f"- {code(entry.name)}" for entry in sorted(path.iterdir())[:SHOWN_FILES])
    create_markdown_artifact(
        f"# Exported queue {plain(path.name)}\n\nOn {code(socket.gethostname())}:\n\n{code(path)}\n\n"
        f"In the address bar of a browser on that machine:\n\n{code(path.as_uri())}\n\n{listed}\n\n"
        f"Put the masks into its {code('masks')} folder, then run {code(f'segcurate import {path}')}.\n",
        key=_key("export", project, database),
        description=f"In {code(path)}",
    )


def _key(what: str, project: Project, database: Database) -> str:
    """An artifact's key: lower-case letters, digits and dashes, with the project's name and the start of its
    id, as one server may serve several projects."""
    identity = identity_of(project, database)
    return f"{what}-{slug(identity)}-{identity.id[:8]}"


class _ShownProgress:
    """The artifact of a scoring run, kept up to date by one thread; `report` may be called from any."""

    def __init__(self, project: Project, database: Database, *, run_id: int, total: int) -> None:
        self.project, self.database, self.run_id, self.total = project, database, run_id, total
        self.ended = threading.Event()
        self._reported = 0
        self._stored = 0
        self._began = time.monotonic()
        self._since: datetime | None = None
        self._query_next_at = 0.0
        self._artifact: UUID | None = None
        self._shown = -1

    def report(self, title: str, done: int, total: int | None, note: str = "") -> None:
        """A `Progress`. Only its largest number of images counts."""
        self._reported = max(self._reported, done)

    def keep_updating(self) -> None:
        """Update the artifact until the work has ended, and then once more."""
        warned = False
        while True:
            over = self.ended.is_set()
            try:
                self._query(force=over)
                self._show(over=over)
            except Exception as error:  # the next update may come through
                if not warned:
                    get_run_logger().warning("Progress of run %d is not shown: %s", self.run_id, error)
                warned = True
            if over:
                return
            self.ended.wait(UPDATE_SECONDS)

    def _query(self, *, force: bool) -> None:
        now = time.monotonic()
        if not force and now < self._query_next_at:
            return
        self._query_next_at = now + POLL_SECONDS
        with self.database.session(write=False) as session:
            if self._since is None:
                self._since = store_time(session)
            self._stored = images_done(session, run_id=self.run_id, since=self._since)

    def _show(self, *, over: bool) -> None:
        done = min(max(self._reported, self._stored), self.total)
        if done == self._shown and not over:
            return
        self._shown = done
        percent = 100.0 if self.total == 0 else math.floor(1000 * done / self.total) / 10
        words = self._words(done, over=over)
        if self._artifact is None:
            key = f"{_key('scoring', self.project, self.database)}-run-{self.run_id}"
            created = create_progress_artifact(percent, key, words)
            self._artifact = cast(UUID, created)  # a coroutine only inside an event loop, which this is not
        else:
            update_progress_artifact(self._artifact, percent, words)

    def _words(self, done: int, *, over: bool) -> str:
        if self.total == 0:
            return "Nothing was left to score."
        seconds = time.monotonic() - self._began
        rate = done / seconds if seconds > 0 else 0.0
        words = out_of(done, self.total, "image")
        if over:
            return f"{words} in {seconds:.1f} s, {rate:.1f} images/s."
        left = f", about {(self.total - done) / rate:.0f} s left" if rate else ""
        return f"{words}, {rate:.1f} images/s{left}."
