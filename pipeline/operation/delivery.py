"""Delivery of the active queue: to the folders that it is exported to, and to labeling servers.

A nightly run pulls labels first and pushes the queue last. Where the server cannot be reached, the run goes
on, and the next one tries again.
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import labels, queues
from db.queries import rounds as round_queries
from db.tables import Queue
from pipeline import rounds
from pipeline.data.project import Project
from pipeline.errors import UserError
from pipeline.labeling.manifest import MASKS
from pipeline.operation.runner import Runner


def pull_labels(runner: Runner) -> str:
    """Import what is finished on the labeling server, where `labeling.sync` is on.

    Returns:
        Why nothing could be pulled; empty otherwise.
    """
    if not runner.project.config.labeling.sync:
        return ""
    from pipeline.steps.sync import open_server, pull

    tool = runner.project.config.labeling.tool
    try:
        url = open_server(runner.project, tool).url
        with runner.database.session(write=False) as session:
            if not queues.places_on(session, tool=tool, url=url):
                return ""
        runner.run(pull, tool=tool)
    except UserError as error:
        runner.log(str(error))
        return f"No labels were pulled: {error.problem}"
    return ""


def push_queue(runner: Runner) -> str:
    """Push the active queue to the labeling server, where `labeling.sync` is on.

    Returns:
        Why it could not be pushed; empty otherwise.
    """
    if not runner.project.config.labeling.sync:
        return ""
    from pipeline.steps.sync import exported_folder, push

    tool = runner.project.config.labeling.tool
    with runner.database.session(write=False) as session:
        current, queue = round_queries.current_round(session), queues.current_queue(session)
        if current is None or queue is None or current.state != "import":
            return ""
        folder = exported_folder(session, runner.project, queue, tool)
    try:
        if folder is None:  # it was exported before the server was configured
            from pipeline.steps.export import export

            folder = runner.run(export).folder
        runner.run(push, folder=folder, tool=tool)
    except UserError as error:
        runner.log(str(error))
        return f"{queue.name} was not pushed: {error.problem}"
    return ""


def is_begun(project: Project, database: Database, queue: Queue) -> bool:
    """Whether anybody has begun to label a queue.

    So it is when a label was imported, when a file is in the folder of its masks, or when a server has work
    on it, drafts included. A folder for a labeling tool does not tell: its queue counts as begun.

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
        folders = [("folder", queue.export_uri)]  # exported before deliveries were recorded
    asked = {tool for tool, _ in servers}
    for tool, folder in folders:
        if tool == "folder":
            if any(path.is_file() for path in (project.path(folder) / MASKS).rglob("*")):
                return True
        elif tool not in asked:
            return True
    if not servers:
        return False
    from pipeline.steps.sync import open_server

    return any(
        open_server(project, tool, url).is_begun(queue=queue.name, places=names)
        for (tool, url), names in servers.items()
    )


def withdraw(project: Project, database: Database, queue: Queue) -> int:
    """Withdraw an active queue that nobody has begun, in the database and on its servers.

    Returns:
        How many of its regions went back to the pool.

    Raises:
        UserError: a server cannot be asked, and nothing is withdrawn; or labels have come meanwhile.
    """
    with database.session(write=False) as session:
        servers = _servers_of(session, queue)
    if servers:
        from pipeline.steps.sync import open_server

        for (tool, url), names in servers.items():
            open_server(project, tool, url).retire(queue=queue.name, places=names)
    with database.session() as session:
        if labels.has_labels_of(session, queue_id=queue.id):
            raise UserError(f"Labels for {queue.name} have come meanwhile.")
        return rounds.reopen(session, rounds.require(session, "import"))


def _servers_of(session: Session, queue: Queue) -> dict[tuple[str, str], list[str]]:
    """A queue's projects or tasks on servers, by tool and address."""
    servers: dict[tuple[str, str], list[str]] = {}
    for place in queues.places_of(session, queue.id):
        if place.url:
            servers.setdefault((place.tool, place.url), []).append(place.place)
    return servers
