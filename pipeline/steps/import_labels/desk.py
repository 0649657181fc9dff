"""The inboxes of one import, opened as annotations for their queues come."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import queues
from db.queries import rounds as round_queries
from db.tables import Queue
from pipeline import rounds
from pipeline.data.project import Project
from pipeline.errors import DataError
from pipeline.labeling.exchange import Annotation, Rejected, shown
from pipeline.labeling.manifest import ManifestImage, manifest_of, read_manifest
from pipeline.steps.import_labels.incoming import Inbox
from pipeline.steps.import_labels.report import ImportReport

Origin = Literal["import", "simulation"]
_LISTED = 8


class Desk:
    """Takes annotations, opens the inboxes of their queues, and reports what it could not take.

    Args:
        sources: that are read; a manifest beside the first tells the queue, and what its images are.
        queue: of annotations that name none; without one and a manifest, the current round's.
        annotator: of annotations that do not say theirs.
        origin: `simulation` where what is not painted has no class, and counts as labeled all the same.
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
        self._inboxes: dict[str, Inbox] = {}
        self._default: str | None = None
        self._ambiguous: dict[str, str] = {}
        self._report = ImportReport(queue="")

    def learn_names(self, names: Sequence[str]) -> None:
        """Find out which images these names of the sources mean; of an image with several, none is taken.

        Raises:
            DataError: the sources are of no queue of this project.
            NotYourTurn: the queue has not been exported yet.
        """
        inbox = self._default_inbox()
        with self._database.session(write=False) as session:
            inbox.learn_names(session, names)
        of_image: dict[int, list[str]] = {}
        for name in names:
            with suppress(DataError):
                of_image.setdefault(inbox.image_named(name), []).append(name)
        for several in of_image.values():
            if len(several) > 1:
                files = ", ".join(map(shown, several[:_LISTED]))
                reason = f"One image has several masks: {files}. Leave the one that counts."
                self._ambiguous.update(dict.fromkeys(several, reason))

    def take(self, annotation: Annotation | Rejected) -> None:
        """Put an annotation into its queue's inbox, or what is wrong with it into the report.

        Raises:
            DataError: the sources are of no queue of this project.
            NotYourTurn: the queue has not been exported yet.
            UserError: the work folder cannot be written.
        """
        if isinstance(annotation, Rejected):
            self._report.reject(annotation)
            return
        inbox = self._default_inbox() if annotation.queue is None else None
        try:
            inbox = inbox or self._inbox_named(str(annotation.queue))
            target = inbox.target_of(annotation)
            if annotation.image in self._ambiguous:
                raise DataError(self._ambiguous[str(annotation.image)])
            inbox.take(
                self._project,
                annotation,
                target,
                annotator=self._annotator,
                looked_at_all=self._origin == "simulation",
            )
        except DataError as error:
            self._report.reject(Rejected(subject=annotation.subject, reason=str(error)))

    def close(self) -> tuple[list[Inbox], ImportReport]:
        """The inboxes, at least one of them, and the report so far."""
        if not self._inboxes:
            self._default_inbox()
        self._report.queue = ", ".join(self._inboxes)
        return list(self._inboxes.values()), self._report

    def _default_inbox(self) -> Inbox:
        """The inbox of the queue that the manifest or the caller names, or else of the current round's."""
        if self._default is None:
            inbox = self._open(_named_queue(self._manifest, self._queue))
            if self._manifest is not None:
                for rejection in inbox.check_manifest(read_manifest(self._manifest)):
                    self._report.reject(rejection)
            self._default = inbox.queue.name
        return self._inboxes[self._default]

    def _inbox_named(self, name: str) -> Inbox:
        if self._queue not in (None, name):
            raise DataError(f"It is of queue {shown(name)}.", "Leave the queue's name out.")
        return self._inboxes.get(name) or self._open(name)

    def _open(self, name: str | None) -> Inbox:
        with self._database.session(write=False) as session:
            inbox = Inbox.of(session, _find_queue(session, name))
        return self._inboxes.setdefault(inbox.queue.name, inbox)


def _named_queue(manifest: Path | None, name: str | None) -> str | None:
    """The queue that a manifest is of, which must be the one that the caller names.

    Raises:
        DataError: the manifest is of no queue, of several, or of another one.
    """
    if manifest is None:
        return name
    entries = (entry for entry in read_manifest(manifest) if isinstance(entry, ManifestImage))
    named = next(entries, None)
    if named is None or any(entry.queue != named.queue for entry in entries):
        raise DataError(
            f"{manifest} names {'no queue' if named is None else 'several queues'}.",
            "Export the queue again.",
        )
    if name not in (None, named.queue):
        raise DataError(f"{manifest} is not of queue {name!r}.", "Leave the queue's name out.")
    return named.queue


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
