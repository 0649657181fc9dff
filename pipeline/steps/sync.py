"""Sync: queues are sent to a labeling tool's server, and what is finished there is fetched and imported."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import queue_items, rounds
from db.queries import queues as queue_queries
from db.tables import Queue, QueuePlace
from pipeline.data.project import Project
from pipeline.errors import ConfigError, UserError
from pipeline.labeling.servers.base import LabelingServer
from pipeline.leases import one_at_a_time
from pipeline.progress import Progress, silent
from pipeline.steps.import_labels import import_labels
from pipeline.steps.import_labels.step import ImportReport

TOKENS = {"label-studio": "LABEL_STUDIO_API_KEY", "cvat": "CVAT_ACCESS_TOKEN"}
"""The tools that have servers, and the environment's variable that holds the token of each."""


@dataclass(frozen=True)
class PushReport:
    """What was sent."""

    queue: str
    url: str
    created: int
    unchanged: int
    page: str

    def lines(self) -> list[str]:
        """The report in words."""
        return [
            f"{self.queue}: {self.created} images sent to {self.url}, {self.unchanged} were there already.",
            f"Label at {self.page}",
        ]


@dataclass(frozen=True)
class PullReport:
    """What was fetched: the queues that were asked for, and a report for each that had anything new."""

    url: str
    queues: list[str]
    imported: list[ImportReport]

    @property
    def closed(self) -> bool:
        """Whether the round is closed, and the next one open."""
        return any(report.closed for report in self.imported)

    def lines(self) -> list[str]:
        """The report in words."""
        said = [line for report in self.imported for line in report.lines()]
        return said or [f"{', '.join(self.queues)}: nothing new at {self.url}."]


def open_server(project: Project, tool: str, url: str | None = None) -> LabelingServer:
    """The server of a labeling tool, with its token from the environment.

    Args:
        url: instead of the configured one.

    Raises:
        ConfigError: the tool has no server, no address or token is set, or its client is not installed.
    """
    if tool not in TOKENS:
        raise ConfigError(
            f"`{tool}` is no tool with a server.",
            f"Name one of {', '.join(TOKENS)}, or leave the server out.",
        )
    labeling = project.config.labeling
    address = url or labeling.server_of(tool)
    if address is None:
        raise ConfigError(
            f"The address of the {tool} server is not known.",
            f"Add `--url`, or set `labeling.{tool.replace('-', '_')}.url`.",
        )
    token = os.environ.get(TOKENS[tool], "")
    if not token:
        raise ConfigError(f"There is no token for {address}.", f"Set {TOKENS[tool]} in the environment.")
    if tool == "cvat":
        return _cvat(project, address, token)
    from pipeline.labeling.servers.label_studio import LabelStudioServer

    settings = labeling.label_studio
    return LabelStudioServer(
        address,
        token,
        project=settings.project or project.config.name,
        images=settings.images,
        masks=settings.masks,
        sampling="Uncertainty sampling" if settings.sampling == "uncertainty" else "Sequential sampling",
        document_root=None if settings.document_root is None else project.path(settings.document_root),
        timeout=float(labeling.timeout_seconds),
    )


def _cvat(project: Project, url: str, token: str) -> LabelingServer:
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
    """Send an exported queue to its tool's server. Sending it again sends what is missing there.

    Args:
        folder: as `export` has written it for this tool.
        queue: its name; by default the current round's.

    Raises:
        UserError: there is no such queue, or the server cannot be used.
    """
    server = open_server(project, tool, url)
    with database.session(write=False) as session:
        found = _find_queue(session, queue)
        known = [
            place.place
            for place in queue_queries.places_of(session, found.id)
            if _is_on(place, tool, server.url)
        ]
        if not known and tool == "label-studio":  # one project there holds all queues of a project here
            known = [place.place for place in queue_queries.places_on(session, tool=tool, url=server.url)[:1]]
    pushed = server.push(folder, places=known)
    with database.session() as session:
        gone = [
            place.id
            for place in queue_queries.places_of(session, found.id)
            if _is_on(place, tool, server.url) and place.place not in pushed.places
        ]
        queue_queries.forget_places(session, gone)
        for place in pushed.places:
            queue_queries.record_place(session, queue_id=found.id, tool=tool, url=server.url, place=place)
        older = _over(session, found, tool, server.url) if pushed.created else {}
    for name, there in older.items():  # or annotators would go on with what nobody waits for
        server.retire(queue=name, places=there)
    return PushReport(
        queue=found.name,
        url=server.url,
        created=pushed.created,
        unchanged=pushed.unchanged,
        page=pushed.page,
    )


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
    """Fetch what is finished on a tool's server, and import it: everything once, corrections as new versions.

    Args:
        queue: only this one; by default all that lie there, so that late labels come in too.
        close: end the round with the labels that are there.

    Raises:
        UserError: the server cannot be used, or holds no queue of this project.
    """
    server = open_server(project, tool, url)
    with database.session(write=False) as session:
        current = rounds.current_round(session)
        lying = [
            (row, there)
            for row in queue_queries.list_queues(session)
            if queue in (None, row.name)
            and (
                there := [
                    place
                    for place in queue_queries.places_of(session, row.id)
                    if _is_on(place, tool, server.url)
                ]
            )
        ]
    if not lying:
        raise UserError(
            f"No queue of this project lies at {server.url}.", f"Run `segcurate export --to {tool}` first."
        )
    reports: list[ImportReport] = []
    for row, there in lying:
        ends = close and current is not None and row.round_id == current.id
        report = _pull_queue(project, database, server, tool, row, there, close=ends, progress=progress)
        if report is not None:
            reports.append(report)
    return PullReport(url=server.url, queues=[row.name for row, _ in lying], imported=reports)


def _pull_queue(
    project: Project,
    database: Database,
    server: LabelingServer,
    tool: str,
    queue: Queue,
    there: Sequence[QueuePlace],
    *,
    close: bool,
    progress: Progress,
) -> ImportReport | None:
    times = [place.pulled_until for place in there if place.pulled_until is not None]
    since = min(times) if len(times) == len(there) else None
    with tempfile.TemporaryDirectory(prefix="segcurate-") as folder:
        ids = [place.place for place in there]
        pulled = server.pull(queue=queue.name, places=ids, into=Path(folder), since=since)
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
        with database.session() as session:
            queue_queries.mark_pulled(
                session, queue_id=queue.id, tool=tool, url=server.url, until=pulled.newest
            )
    return report


@dataclass(frozen=True)
class SyncReport:
    """What came and what went; `pushed` is None where no queue is out."""

    pulled: PullReport | None
    pushed: PushReport | None

    def lines(self) -> list[str]:
        """The report in words."""
        said = [
            line for report in (self.pulled, self.pushed) if report is not None for line in report.lines()
        ]
        return said or ["No queue is out: nothing to fetch, and nothing to send."]


def sync(
    project: Project,
    database: Database,
    *,
    tool: str,
    url: str | None = None,
    close: bool = False,
    progress: Progress = silent,
) -> SyncReport:
    """Fetch what is finished on a tool's server, then send the current round's queue there if it is out, or
    if it is its turn to go.

    Raises:
        UserError: the server cannot be used, or the queue cannot be exported.
    """
    server = open_server(project, tool, url)
    with database.session(write=False) as session:
        known = queue_queries.places_on(session, tool=tool, url=server.url)
    pulled = None
    if known:
        pulled = pull(project, database, tool=tool, url=url, close=close, progress=progress)
    with database.session(write=False) as session:
        current = rounds.current_round(session)
        queue = None if current is None else queue_queries.round_queue(session, current.id)
        if current is None or queue is None or current.state not in ("export", "import"):
            return SyncReport(pulled=pulled, pushed=None)
        folder = exported_folder(session, project, queue, tool)
    if folder is None:
        from pipeline.steps.export import export

        folder = export(project, database, to=tool, progress=progress)
    pushed = push(project, database, folder=folder, tool=tool, url=url, progress=progress)
    return SyncReport(pulled=pulled, pushed=pushed)


def exported_folder(session: Session, project: Project, queue: Queue, tool: str) -> Path | None:
    """The newest folder that a queue was exported to for a tool; None where there is none any more."""
    written = [place.place for place in queue_queries.places_of(session, queue.id) if _is_on(place, tool, "")]
    folder = project.path(written[-1]) if written else None
    return folder if folder is not None and folder.is_dir() else None


def _over(session: Session, newest: Queue, tool: str, url: str) -> dict[str, list[str]]:
    """The queues on a server of which nothing is waited for any more, with their places."""
    found: dict[str, list[str]] = {}
    for queue in queue_queries.list_queues(session):
        there = [
            place.place for place in queue_queries.places_of(session, queue.id) if _is_on(place, tool, url)
        ]
        if (
            there
            and queue.id != newest.id
            and not queue_items.queue_items(session, queue.id, status="queued")
        ):
            found[queue.name] = there
    return found


def _is_on(place: QueuePlace, tool: str, url: str) -> bool:
    return (place.tool, place.url) == (tool, url)


def _find_queue(session: Session, name: str | None) -> Queue:
    current = rounds.current_round(session)
    if name is not None:
        found = queue_queries.queue_by_name(session, name)
    else:
        found = None if current is None else queue_queries.round_queue(session, current.id)
    if found is None:
        raise UserError(
            "No queue is out." if name is None else f"There is no queue {name!r}.", "Run `segcurate status`."
        )
    return found
