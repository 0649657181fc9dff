"""Delivery of the active queue: to the folders that it is exported to, and to labeling servers.

A nightly run pulls labels first and pushes the queue last. Where the server cannot be reached, the run goes
on, and the next one tries again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import labels, queues
from db.queries import rounds as round_queries
from db.tables import Queue
from pipeline import rounds
from pipeline.data.project import Project
from pipeline.errors import UserError
from pipeline.files import require_space, writable_folder
from pipeline.labeling.manifest import MASKS
from pipeline.operation.runner import Runner

if TYPE_CHECKING:
    from pipeline.steps.sync import PullReport, PushReport

Moved = TypeVar("Moved")


def sync(
    runner: Runner, *, tool: str, url: str | None = None, close: bool = False
) -> tuple[PullReport | None, PushReport | None]:
    """Pull finished labels from a tool's server, then push the active queue to it.

    Args:
        url: of the server, instead of the configured one.
        close: end the round with the labels imported so far.

    Returns:
        The reports of the pull and the push; None where there was no queue for it.

    Raises:
        UserError: the server cannot be used, or the queue cannot be exported.
    """
    pulled = _pull(runner, tool, url, close=close)
    pushed = _push(runner, tool, url)
    if pulled is None and pushed is None:
        runner.log("No queue is active: nothing to pull, and nothing to push.")
    return pulled, pushed


def pull_labels(runner: Runner) -> int:
    """Import finished labels from the labeling server, where `labeling.sync` is on.

    Returns:
        How many masks could not be imported.

    Raises:
        UserError: nothing could be pulled.
    """
    pulled = _with_server(runner, _pull, "No labels were pulled")
    return 0 if pulled is None else sum(report.rejections for report in pulled.imported)


def push_queue(runner: Runner) -> None:
    """Push the active queue to the labeling server, where `labeling.sync` is on.

    Raises:
        UserError: it could not be pushed.
    """
    _with_server(runner, _push, "The queue was not pushed")


def _with_server(
    runner: Runner, transfer: Callable[[Runner, str, str | None], Moved | None], failed: str
) -> Moved | None:
    labeling = runner.project.config.labeling
    if not labeling.sync:
        return None
    try:
        return transfer(runner, labeling.tool, None)
    except UserError as error:
        raise UserError(f"{failed}: {error.problem}", error.remedy) from error


def _pull(runner: Runner, tool: str, url: str | None, *, close: bool = False) -> PullReport | None:
    from pipeline.steps.sync import open_server, pull

    server = open_server(runner.project, runner.database, tool, url)
    with runner.database.session(write=False) as session:
        if not queues.places_on(session, tool=tool, url=server.url):
            return None
    return runner.run(pull, tool=tool, url=url, close=close)


def _push(runner: Runner, tool: str, url: str | None) -> PushReport | None:
    """Push the current round's queue; where it was not exported for the tool yet, export it first."""
    from pipeline.steps.sync import push

    with runner.database.session(write=False) as session:
        current, queue = round_queries.current_round(session), queues.current_queue(session)
        if current is None or queue is None or current.state not in ("export", "import"):
            return None
        places = queues.places_of(session, queue.id, tool=tool, url="")
    folder = runner.project.path(places[-1].place) if places else None
    if folder is None or not folder.is_dir():
        from pipeline.steps.export import export

        folder = runner.run(export, to=tool).folder
    return runner.run(push, folder=folder, tool=tool, url=url)


def is_begun(project: Project, database: Database, queue: Queue) -> bool:
    """Whether labeling of a queue has begun.

    It has begun when a label was imported, when a file is in the folder of its masks, or when a server has
    annotations or drafts of it. A queue in a labeling tool's folder counts as begun: its state is unknown.

    Raises:
        UserError: a server does not answer.
    """
    with database.session(write=False) as session:
        if labels.has_labels(session, queue_id=queue.id):
            return True
        servers = _servers_of(session, queue)
        folders = [
            (place.tool, place.place) for place in queues.places_of(session, queue.id) if not place.url
        ]
    if not folders and queue.export_uri is not None:
        folders = [("folder", queue.export_uri)]  # exported before deliveries were recorded
    on_servers = {tool for tool, _ in servers}
    for tool, folder in folders:
        if tool == "folder":
            if any(path.is_file() for path in (project.path(folder) / MASKS).rglob("*")):
                return True
        elif tool not in on_servers:
            return True
    if not servers:
        return False
    from pipeline.steps.sync import open_server

    return any(
        open_server(project, database, tool, url).is_begun(queue=queue.name, places=names)
        for (tool, url), names in servers.items()
    )


def check_export(project: Project) -> None:
    """Find what would stop an export, before the active queue is withdrawn for it.

    Raises:
        UserError: the export folder cannot be written, or its disk is nearly full.
    """
    require_space(writable_folder(project.path(project.config.export.folder)))


def withdraw(project: Project, database: Database, queue: Queue) -> int:
    """Withdraw an active queue whose labeling has not begun, in the database and on its servers.

    Returns:
        How many of its regions went back to the pool.

    Raises:
        UserError: a server does not answer, or labels were imported meanwhile; nothing is withdrawn.
    """
    with database.session(write=False) as session:
        servers = _servers_of(session, queue)
    if servers:
        from pipeline.steps.sync import open_server

        for (tool, url), names in servers.items():
            open_server(project, database, tool, url).retire(queue=queue.name, places=names)
    with database.session() as session:
        if labels.has_labels(session, queue_id=queue.id):
            raise UserError(f"Labels for {queue.name} were imported meanwhile.")
        return rounds.reopen(session, rounds.require(session, "import"))


def _servers_of(session: Session, queue: Queue) -> dict[tuple[str, str], list[str]]:
    """A queue's projects or tasks on servers, by tool and address."""
    servers: dict[tuple[str, str], list[str]] = {}
    for place in queues.places_of(session, queue.id):
        if place.url:
            servers.setdefault((place.tool, place.url), []).append(place.place)
    return servers
