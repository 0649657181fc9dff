"""Sync: push queues to a labeling tool's server, pull the finished labels from it and import them."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import queue_items, queues, rounds
from db.tables import Queue, utc_now
from pipeline.data.project import Project
from pipeline.errors import ConfigError, UserError
from pipeline.format import agree, counted
from pipeline.labeling.servers.base import LabelingServer, Pushed
from pipeline.leases import one_at_a_time
from pipeline.ownership import identity_of
from pipeline.progress import Progress, silent
from pipeline.steps.import_labels import import_labels
from pipeline.steps.import_labels.step import ImportReport
from pipeline.steps.ready import server_access
from pipeline.summaries.queues import queue_or_newest


@dataclass(frozen=True)
class PushReport(Pushed):
    """What a push of a queue to a server has done."""

    queue: str
    url: str

    def lines(self) -> list[str]:
        """The report as text."""
        return [
            f"{self.queue}: {counted(self.created, 'image')} pushed to {self.url}, "
            f"{self.unchanged} {agree(self.unchanged, 'was', 'were')} there already.",
            f"Label at {self.page}",
        ]


@dataclass(frozen=True)
class PullReport:
    """What a pull has done: the names of the queues, and a report for each that had anything new."""

    url: str
    queues: list[str]
    imported: list[ImportReport]

    @property
    def closed(self) -> bool:
        """Whether the round is closed, and the next one open."""
        return any(report.closed for report in self.imported)

    def lines(self) -> list[str]:
        """The report as text."""
        lines = [line for report in self.imported for line in report.lines()]
        return lines or [f"{', '.join(self.queues)}: nothing new at {self.url}."]


def open_server(project: Project, database: Database, tool: str, url: str | None = None) -> LabelingServer:
    """The server of a labeling tool, with the token from the environment.

    Args:
        url: instead of the configured address.

    Raises:
        ConfigError: the tool has no server, no address or token is set, or its client is not installed.
    """
    labeling = project.config.labeling
    address, token = server_access(labeling, tool, url)
    project_id = identity_of(project, database).id
    if tool == "cvat":
        return _cvat(project, project_id, address, token)
    from pipeline.labeling.servers.label_studio import LabelStudioServer

    settings = labeling.label_studio
    return LabelStudioServer(
        address,
        token,
        project=settings.project or project.config.name,
        project_id=project_id,
        images=settings.images,
        masks=settings.masks,
        sampling="Uncertainty sampling" if settings.sampling == "uncertainty" else "Sequential sampling",
        document_root=None if settings.document_root is None else project.path(settings.document_root),
        timeout=float(labeling.timeout_seconds),
    )


def _cvat(project: Project, project_id: str, url: str, token: str) -> LabelingServer:
    try:
        from pipeline.labeling.servers.cvat import CvatServer
    except ImportError as error:
        raise ConfigError(
            "CVAT's client is not installed.", "Run `pip install 'segcurate[cvat]'`."
        ) from error
    return CvatServer(
        url,
        token,
        project=project.config.name,
        project_id=project_id,
        batch=project.config.labeling.cvat.batch,
        timeout=float(project.config.labeling.timeout_seconds),
    )


@one_at_a_time("push")
def push(
    project: Project,
    database: Database,
    *,
    folder: Path,
    tool: str,
    url: str | None = None,
    queue: str | None = None,
    progress: Progress = silent,
) -> PushReport:
    """Push an exported queue to its tool's server. Pushing it again creates what is missing there.

    Queues on the server that wait for no label any more are retired: annotators would work on them in vain.

    Args:
        folder: as `export` has written it for this tool.
        queue: its name; by default the current round's.

    Raises:
        UserError: there is no such queue, or the server cannot be used.
    """
    server = open_server(project, database, tool, url)
    with database.session(write=False) as session:
        row = _find_queue(session, queue)
        known = [place.place for place in queues.places_of(session, row.id, tool=tool, url=server.url)]
        if not known and tool == "label-studio":  # one server project has all queues of a segcurate project
            known = [place.place for place in queues.places_on(session, tool=tool, url=server.url)[:1]]
    pushed = server.push(folder, places=known)
    with database.session() as session:
        before = queues.places_of(session, row.id, tool=tool, url=server.url)
        queues.forget_places(session, [place.id for place in before if place.place not in pushed.places])
        for name in pushed.places:
            queues.record_place(session, queue_id=row.id, tool=tool, url=server.url, place=name)
        finished = _finished_queues(session, row, tool, server.url) if pushed.created else {}
    for name, names in finished.items():
        server.retire(queue=name, places=names)
    return PushReport(**vars(pushed), queue=row.name, url=server.url)


def pull(
    project: Project,
    database: Database,
    *,
    tool: str,
    url: str | None = None,
    queue: str | None = None,
    close: bool = False,
    progress: Progress = silent,
) -> PullReport:
    """Pull what is finished on a tool's server, and import it: everything once, corrections as new versions.

    Args:
        queue: only this one; by default all that are on the server, so that late labels are imported too.
        close: end the round with the labels that have come.

    Raises:
        UserError: the server cannot be used, or has no queue of this project.
    """
    server = open_server(project, database, tool, url)
    with database.session(write=False) as session:
        current = rounds.current_round(session)
        on_server = {place.queue_id for place in queues.places_on(session, tool=tool, url=server.url)}
        rows = [
            row for row in queues.list_queues(session) if row.id in on_server and queue in (None, row.name)
        ]
    if not rows:
        raise UserError(
            f"No queue of this project is at {server.url}.", f"Run `segcurate export --to {tool}` first."
        )
    reports: list[ImportReport] = []
    for row in rows:
        ends = close and (queue is not None or (current is not None and row.round_id == current.id))
        report = _pull_queue(project, database, server, tool, row, close=ends, progress=progress)
        if report is not None:
            reports.append(report)
    return PullReport(url=server.url, queues=[row.name for row in rows], imported=reports)


def _pull_queue(
    project: Project,
    database: Database,
    server: LabelingServer,
    tool: str,
    queue: Queue,
    *,
    close: bool,
    progress: Progress,
) -> ImportReport | None:
    with database.session(write=False) as session:
        places = queues.places_of(session, queue.id, tool=tool, url=server.url)
    times = [place.pulled_until for place in places if place.pulled_until is not None]
    began = utc_now()
    with tempfile.TemporaryDirectory(prefix="segcurate-") as folder:
        pulled = server.pull(
            queue=queue.name,
            places=[place.place for place in places],
            into=Path(folder),
            since=min(times) if len(times) == len(places) else None,
        )
        if not pulled.files and not close:
            return None
        report = import_labels(
            project,
            database,
            source=pulled.files,
            tool=tool,
            queue=queue.name,
            close=close,
            known_as=f"{server.url}, {queue.name}",
            progress=progress,
        )
    if pulled.newest is not None:
        until = min(pulled.newest, began)  # a time in the future would hide the labels that come before it
        with database.session() as session:
            queues.mark_pulled(session, queue_id=queue.id, tool=tool, url=server.url, until=until)
    return report


def _finished_queues(session: Session, newest: Queue, tool: str, url: str) -> dict[str, list[str]]:
    """The other queues on a server that wait for no label any more: names, and their places there."""
    finished: dict[str, list[str]] = {}
    for place in reversed(queues.places_on(session, tool=tool, url=url)):
        queue = session.get_one(Queue, place.queue_id)
        if queue.id != newest.id and not queue_items.queue_items(session, queue.id, status="queued"):
            finished.setdefault(queue.name, []).append(place.place)
    return finished


def _find_queue(session: Session, name: str | None) -> Queue:
    if name is not None:
        return queue_or_newest(session, name)
    queue = queues.current_queue(session)
    if queue is None:
        raise UserError("No queue is active.", "Run `segcurate status`.")
    return queue
