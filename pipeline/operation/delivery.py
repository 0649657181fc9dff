"""A queue that is out: in the folders that it was exported to, and on labeling servers.

A night fetches labels before it looks, and sends the queue after; a server that cannot be reached tonight is
asked tomorrow, and the night goes on.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import labels, queues
from db.queries import rounds as round_queries
from db.tables import Queue
from pipeline import rounds
from pipeline.data.project import Project
from pipeline.errors import UserError
from pipeline.labeling.manifest import MASKS
from pipeline.operation.runner import Perform, Say, directly, unheard
from pipeline.progress import Progress, silent


def fetch(
    project: Project,
    database: Database,
    *,
    perform: Perform = directly,
    say: Say = unheard,
    progress: Progress = silent,
) -> str:
    """Import what is finished on the labeling server, where `labeling.sync` says so.

    Returns:
        Why nothing could be fetched; empty otherwise.
    """
    if not project.config.labeling.sync:
        return ""
    from pipeline.steps.sync import open_server, pull

    tool = project.config.labeling.tool
    try:
        url = open_server(project, tool).url
        with database.session(write=False) as session:
            if not queues.places_on(session, tool=tool, url=url):
                return ""
        for line in perform(pull, project, database, tool=tool, progress=progress).lines():
            say(line)
    except UserError as error:
        say(str(error))
        return f"No labels were fetched: {error.problem}"
    return ""


def send(
    project: Project,
    database: Database,
    *,
    perform: Perform = directly,
    say: Say = unheard,
    progress: Progress = silent,
) -> str:
    """Bring the queue that is out onto the labeling server, where `labeling.sync` says so.

    Returns:
        Why it could not be sent; empty otherwise.
    """
    if not project.config.labeling.sync:
        return ""
    from pipeline.steps.sync import exported_folder, push

    tool = project.config.labeling.tool
    with database.session(write=False) as session:
        current = round_queries.current_round(session)
        queue = None if current is None else queues.round_queue(session, current.id)
        if current is None or queue is None or current.state != "import":
            return ""
        folder = exported_folder(session, project, queue, tool)
    try:
        if folder is None:  # it went out before the server was configured
            from pipeline.steps.export import export

            folder = perform(export, project, database, progress=progress)
        for line in perform(push, project, database, folder=folder, tool=tool, progress=progress).lines():
            say(line)
    except UserError as error:
        say(str(error))
        return f"{queue.name} was not sent: {error.problem}"
    return ""


def is_begun(project: Project, database: Database, queue: Queue) -> bool:
    """Whether anybody has begun a queue: a label has come, or lies in the folder of its masks; or a server
    that it lies on says so, drafts included. Of a folder for a labeling tool that cannot be told: it counts
    as begun.

    Raises:
        UserError: a server cannot be asked.
    """
    with database.session(write=False) as session:
        if labels.has_labels_of(session, queue_id=queue.id):
            return True
        servers = _servers_of(session, queue)
        folders = [
            (place.tool, place.place) for place in queues.places_of(session, queue.id) if not place.url
        ]
    if not folders and queue.export_uri is not None:
        folders = [("folder", queue.export_uri)]  # exported before places were written down
    asked = {tool for tool, _ in servers}
    for tool, folder in folders:
        if _holds_masks(project.path(folder)) if tool == "folder" else tool not in asked:
            return True
    if not servers:
        return False
    from pipeline.steps.sync import open_server

    return any(
        open_server(project, tool, url).is_begun(queue=queue.name, places=there)
        for (tool, url), there in servers.items()
    )


def take_back(project: Project, database: Database, queue: Queue) -> int:
    """Take a queue that nobody has begun back, here and on the servers that it lies on.

    Returns:
        How many of its regions went back to the pool.

    Raises:
        UserError: a server cannot be asked; nothing is taken back then.
    """
    with database.session(write=False) as session:
        servers = _servers_of(session, queue)
    if servers:
        from pipeline.steps.sync import open_server

        for (tool, url), there in servers.items():
            open_server(project, tool, url).retire(queue=queue.name, places=there)
    with database.session() as session:
        if labels.has_labels_of(session, queue_id=queue.id):
            raise UserError(f"Labels for {queue.name} have come meanwhile.")
        return rounds.reopen(session, rounds.require(session, "import"))


def _servers_of(session: Session, queue: Queue) -> dict[tuple[str, str], list[str]]:
    """The places of a queue on servers, by tool and address."""
    found: dict[tuple[str, str], list[str]] = {}
    for place in queues.places_of(session, queue.id):
        if place.url:
            found.setdefault((place.tool, place.url), []).append(place.place)
    return found


def _holds_masks(folder: Path) -> bool:
    return any(path.is_file() for path in (folder / MASKS).rglob("*"))
