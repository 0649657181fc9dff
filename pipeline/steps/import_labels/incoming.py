"""The annotations that come in from labeling tools, each given to its queue.

Each source is read once, and each mask is decoded once: an annotation is stored when it comes, and what it
means is decided from the rows of its queue (`incoming_queue.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import queue_items, queues
from db.queries import rounds as round_queries
from db.tables import Queue
from pipeline import rounds
from pipeline.data.project import Project
from pipeline.errors import DataError
from pipeline.labeling.exchange import Annotation, Rejected, shown
from pipeline.labeling.manifest import MANIFEST, BadLine, manifest_of, read_manifest
from pipeline.labeling.names import OutsideQueue
from pipeline.steps.import_labels.incoming_queue import IncomingQueue, targets_of
from pipeline.steps.import_labels.report import ImportReport
from pipeline.summaries.queues import queue_or_newest

Origin = Literal["import", "simulation"]


class Incoming:
    """Takes annotations, opens their queues, and reports what it could not take.

    Args:
        sources: that are read; a manifest beside the first names the queue, and says what its images are.
        queue: of annotations that name none; without one and a manifest, the current round's.
        annotator: of annotations that name none.
        origin: `simulation` where unlabeled pixels have no class, and their regions count as labeled.
    """

    def __init__(
        self,
        project: Project,
        database: Database,
        sources: Sequence[Path],
        *,
        queue: str | None,
        annotator: str | None,
        origin: Origin,
    ) -> None:
        self._project = project
        self._database = database
        self._manifest = next(filter(None, map(manifest_of, sources)), None)
        self._queue = queue
        self._annotator = annotator
        self._origin: Origin = origin
        self._queues: dict[str, IncomingQueue] = {}
        self._default: IncomingQueue | None = None
        self._known_queues: frozenset[str] | None = None
        self._report = ImportReport(queue="")

    def take(self, annotation: Annotation | Rejected) -> None:
        """Match an annotation with its image and store its mask, or report why it is not taken.

        Raises:
            DataError: the sources are of no queue of this project.
            NotYourTurn: the queue has not been exported yet.
            UserError: the work folder cannot be written.
        """
        if isinstance(annotation, Rejected):
            self._report.reject(annotation)
            return
        queue = self.default_queue() if annotation.queue is None else None
        try:
            queue = queue or self._queue_named(str(annotation.queue))
            queue.take(annotation, annotator=self._annotator, all_labeled=self._origin == "simulation")
        except OutsideQueue:
            self._report.leave_out(annotation.subject)
        except DataError as error:
            self._report.reject(Rejected(subject=annotation.subject, reason=str(error)))

    def close(self) -> tuple[list[IncomingQueue], ImportReport]:
        """The queues, at least one of them, and the report so far."""
        if not self._queues:
            self.default_queue()
        for queue in self._queues.values():
            queue.close()
        self._report.queue = ", ".join(self._queues)
        return list(self._queues.values()), self._report

    def default_queue(self) -> IncomingQueue:
        """The queue that the manifest or the caller names, else the current round's.

        Raises:
            UserError: there is no such queue.
            DataError: the manifest is of another project, or of several queues.
            NotYourTurn: the queue has not been exported yet.
        """
        if self._default is None:
            if self._queue is not None:
                with self._database.session(write=False) as session:
                    queue_or_newest(session, self._queue)
            self._default = (
                self._open(self._queue) if self._manifest is None else self._read_manifest(self._manifest)
            )
        return self._default

    def _read_manifest(self, path: Path) -> IncomingQueue:
        """The queue that a manifest is of. An image that it contradicts is none of the queue any more."""
        queue: IncomingQueue | None = None
        agreeing = 0
        for entry in read_manifest(path):
            if isinstance(entry, BadLine):
                self._report.reject(Rejected(f"{MANIFEST} line {entry.number}", shown(entry.reason)))
                continue
            if self._queue not in (None, entry.queue) and queue is None:
                raise DataError(f"{path} is not of queue {self._queue!r}.", "Leave the queue's name out.")
            queue = queue or self._open(entry.queue)
            if entry.queue != queue.queue.name:
                raise DataError(f"{path} names several queues.", "Export the queue again.")
            if queue.agrees(entry):
                agreeing += 1
                continue
            reason = "The store's image of this id has another content, or is not in this queue."
            self._report.reject(Rejected(f"{MANIFEST} image {entry.image_id}", reason))
        if queue is None:
            raise DataError(f"{path} names no queue.", "Export the queue again.")
        if not agreeing:
            raise DataError(
                f"The {MANIFEST} of {queue.queue.name} was not exported from this project.",
                "Import it into the project that it was exported from.",
            )
        return queue

    def _queue_named(self, name: str) -> IncomingQueue:
        """The queue that an annotation names.

        Raises:
            OutsideQueue: the caller asks for another one.
            DataError: the project has no such queue.
        """
        if self._queue not in (None, name) and name in self._names():
            raise OutsideQueue(f"It is of queue {name}.")
        return self._queues.get(name) or self._open(name)

    def _names(self) -> frozenset[str]:
        """The names of all queues of the project."""
        if self._known_queues is None:
            with self._database.session(write=False) as session:
                self._known_queues = frozenset(queue.name for queue in queues.list_queues(session))
        return self._known_queues

    def _open(self, name: str | None) -> IncomingQueue:
        with self._database.session(write=False) as session:
            queue = _find_queue(session, name)
            if queue.name not in self._queues:
                targets = targets_of(queue_items.queued_boxes(session, queue_id=queue.id))
                self._queues[queue.name] = IncomingQueue(
                    self._project, self._database, queue, targets, self._report
                )
        return self._queues[queue.name]


def _find_queue(session: Session, name: str | None) -> Queue:
    """The queue of this name, or else the current round's, whose turn it must be.

    Raises:
        DataError: there is no queue of this name.
        NotYourTurn: the queue has not been exported yet.
    """
    current = round_queries.current_round(session)
    if name is not None:  # one that is not what it looks like is no queue's, and no text for a database
        found = queues.queue_by_name(session, name) if name == shown(name) else None
    else:
        current = rounds.require(session, "import")
        found = queues.round_queue(session, current.id)
    if found is None:
        raise DataError(
            f"It is of queue {shown(name)!r}, which this project does not have.",
            "Import it into the project that it was exported from.",
        )
    if current is not None and found.round_id == current.id:
        rounds.require(session, "import")
    return found
