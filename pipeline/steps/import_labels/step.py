"""Import: masks that came back become labels, and the round closes when its queue is labeled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import agreement as agreement_queries
from db.queries import failures, queue_items
from db.queries import labels as label_queries
from db.queries import rounds as round_queries
from db.tables import Queue
from pipeline import rounds
from pipeline.config import IGNORE, DataConfig
from pipeline.data.project import Project
from pipeline.errors import DataError
from pipeline.files import require_plain
from pipeline.labeling.encoding import LabelMap
from pipeline.labeling.exchange import Annotation, Rejected, Tool
from pipeline.labeling.tools import recognise, tool_named
from pipeline.leases import one_at_a_time
from pipeline.progress import Progress, silent
from pipeline.steps.import_labels.incoming import Incoming, Origin
from pipeline.steps.import_labels.incoming_queue import IncomingQueue
from pipeline.steps.import_labels.report import ImportReport
from pipeline.steps.ingest.held_out_labels import take_held_out_labels
from pipeline.steps.ingest.splits import note_open_splits

__all__ = ["ImportReport", "import_labels"]

HELD_OUT = "held_out"
"""The kind of the queues whose labels are masks of a split."""


@one_at_a_time("import")
def import_labels(
    project: Project,
    database: Database,
    *,
    source: Path | Sequence[Path],
    tool: str | None = None,
    annotator: str | None = None,
    close: bool = False,
    origin: Origin = "import",
    queue: str | None = None,
    known_as: str | None = None,
    progress: Progress = silent,
) -> ImportReport:
    """Take masks back into the queue that they were exported from.

    The same masks again change nothing; another mask of an image is the next version of its label, also in a
    round that is closed. What cannot be taken is rejected with its reason, and the rest goes in.

    Args:
        source: an exported folder, a folder of masks that are named after the export or the images, or what a
            labeling tool has exported; or several of these.
        tool: whose format it is; None to find out.
        annotator: who drew the masks, where they do not say themselves.
        close: release the items that got no label, and close the round.
        origin: `simulation` when the masks are known ones: what they leave unpainted has no class, and was
            looked at.
        queue: the queue that a source belongs to that does not say so; by default the current round's.
        known_as: what the failures call a source that a server has sent: a text that begins with the address;
            by default its path. A server sends each annotation once, so only the failures of annotations in
            this source are replaced. For files, all failures of the last import of files are replaced.

    Raises:
        DataError: the source is missing, holds no label, or is of no queue of this project.
        NotYourTurn: the queue has not been exported yet.
    """
    sources = [source] if isinstance(source, Path) else list(source)
    for path in sources:
        require_plain(path)
    readers = [(recognise(path) if tool is None else tool_named(tool), path) for path in sources]
    incoming = Incoming(project, database, sources, queue=queue, annotator=annotator, origin=origin)
    if close or queue is not None or any(reader.name == "folder" for reader, _ in readers):
        incoming.default_queue()
    done = 0
    subjects: set[str] = set()
    for done, annotation in enumerate(_annotations(readers, LabelMap(project.config.data)), start=1):
        progress("import", done, None)
        incoming.take(annotation)
        subjects.update(_with_containers(annotation.subject))
    if not (done or close):
        raise DataError(
            f"There is no mask in {', '.join(map(str, sources))}.",
            "Save the masks there, then import it again.",
        )
    opened, report = incoming.close()
    report.unclear = _unclear(project.config.data, report)
    with database.session() as session:
        for incoming_queue in opened:
            _record(session, incoming_queue, origin=origin, report=report)
            _close(session, incoming_queue.queue, close=close, report=report)
        if known_as is None:
            failures.clear_failures_of_files(session, "import")
        else:
            failures.clear_failures(session, "import", [f"{known_as}: {subject}" for subject in subjects])
        failures.record_failures(session, "import", _failures(project, sources, known_as, report))
    if any(incoming_queue.queue.kind == HELD_OUT for incoming_queue in opened):
        report.grown = take_held_out_labels(project, database)
        with database.session() as session:
            note_open_splits(session, project)
    return report


def _unclear(config: DataConfig, report: ImportReport) -> str:
    """That 255 may be a class, where it is ignored and the masks show only the first class beside it."""
    background, last = config.classes[0], config.classes[-1]
    if report.classes != {0} or not report.gaps or background is last:
        return ""
    if background.id not in (None, 0) or IGNORE not in config.ignore_index:
        return ""
    ignored = [value for value in config.ignore_index if value != IGNORE]
    return (
        f"The masks show only {background.name} and pixels that are not labeled, and 255 means not labeled. "
        f"If 255 is a class, write `{{name: {last.name}, id: 255}}` into `data.classes` and `ignore_index: "
        f"{ignored}`, run `segcurate ingest`, and import the masks again."
    )


def _annotations(readers: Sequence[tuple[Tool, Path]], labels: LabelMap) -> Iterator[Annotation | Rejected]:
    """What the sources hold; where one breaks off, what came before counts.

    Raises:
        DataError: nothing of them can be read.
    """
    begun = False
    for reader, source in readers:
        try:
            for annotation in reader.read(source, labels):
                begun = True
                yield annotation
        except DataError as error:
            if not begun and len(readers) == 1:
                raise
            yield Rejected(subject=source.name, reason=str(error).removeprefix(f"{source}: "))


def _with_containers(subject: str) -> Iterator[str]:
    """The subject `file, task 1, annotation 2` and what contains it: `file, task 1` and `file`."""
    while subject:
        yield subject
        subject = subject.rpartition(", ")[0]


def _record(session: Session, incoming: IncomingQueue, *, origin: Origin, report: ImportReport) -> None:
    """Record the labels of one queue, the regions that they cover, and the new status of its items."""
    queue = incoming.queue
    looked_at: set[int] = set()
    for new in sorted(incoming.labels, key=lambda new: new.labeled_at):
        if origin == "simulation":
            looked_at.update(new.target.item_ids)
        if not new.labeled_pixels:
            continue
        label = label_queries.record_label(
            session,
            image_id=new.target.image.id,
            queue_id=queue.id,
            mask_uri=new.mask_uri,
            mask_sha256=new.mask_sha256,
            labeled_pixels=new.labeled_pixels,
            source=origin,
            annotator=new.annotator,
            labeled_at=new.labeled_at,
            regions=new.regions(),
            seconds=new.seconds,
            origin=new.origin,
        )
        if label is None:
            report.unchanged += 1
            continue
        report.imported += 1
        report.labeled_pixels += new.labeled_pixels
        report.unpainted += new.unpainted()
        if new.overlapping:
            report.overlapping.append((new.subject, new.overlapping))
    report.skipped += _settle(session, incoming, looked_at)
    agreement_queries.set_agreement(session, incoming.agreement)
    report.missing += _unanswered(session, incoming)


def _unanswered(session: Session, incoming: IncomingQueue) -> list[str]:
    """The images of a queue without a label in force, that no annotator has labeled or skipped."""
    answered = label_queries.labeled_images(session, queue_id=incoming.queue.id) | incoming.skipped
    answered |= queue_items.skipped_images(session, incoming.queue.id)
    answered |= {new.target.image.id for new in incoming.labels}
    return [target.image.uri for image_id, target in incoming.targets.items() if image_id not in answered]


def _settle(session: Session, incoming: IncomingQueue, looked_at: set[int]) -> int:
    """Give the items of the answered images their status; how many images count as skipped.

    An item is labeled when a label in force covers it, whoever drew that. What is left of a round that is
    closed is released.
    """
    left = "queued" if _is_open(session, incoming.queue) else "released"
    before = queue_items.item_statuses(session, incoming.queue.id)
    chosen: dict[str, list[int]] = {"labeled": [], "skipped": [], left: []}
    skipped = 0
    for image_id in {new.target.image.id for new in incoming.labels} | incoming.skipped:
        target = incoming.targets[image_id]
        covered = label_queries.regions_in_force(session, queue_id=incoming.queue.id, image_id=image_id)
        whole = target.whole_image() in covered
        statuses = Counter[str]()
        for item_id, region in zip(target.item_ids, target.regions(), strict=True):
            if whole or region in covered or item_id in looked_at:
                status = "labeled"
            elif image_id in incoming.skipped or before[item_id] == "skipped":
                status = "skipped"
            else:
                status = left
            chosen[status].append(item_id)
            statuses[status] += before[item_id] != status
        skipped += bool(statuses["skipped"])
    for status, ids in chosen.items():
        queue_items.set_status(session, item_ids=ids, status=status)
    return skipped


def _close(session: Session, queue: Queue, *, close: bool, report: ImportReport) -> None:
    """Close the queue's round when nothing in it waits for a label, or when the caller says so. A queue of
    held-out images is finished then."""
    if not _is_open(session, queue):
        return
    statuses = queue_items.item_statuses(session, queue.id)
    if queue.kind == HELD_OUT and close:
        left = [item_id for item_id, status in statuses.items() if status == "queued"]
        queue_items.set_status(session, item_ids=left, status="released")
        report.unlabeled = len(left)
        return
    waiting = list(statuses.values()).count("queued")
    if waiting and not close:
        report.open_items, report.held_out = waiting, queue.kind == HELD_OUT
        return
    if queue.kind == HELD_OUT:
        return
    current = rounds.require(session, "import")
    report.released = rounds.close(session, current)
    report.closed = current.state == "closed"
    report.reopened = not report.closed


def _is_open(session: Session, queue: Queue) -> bool:
    if queue.kind == HELD_OUT:
        return "queued" in queue_items.count_items(session, queue.id)
    current = round_queries.current_round(session)
    return current is not None and current.id == queue.round_id and current.state == "import"


def _failures(
    project: Project, sources: Sequence[Path], known_as: str | None, report: ImportReport
) -> list[tuple[str, str]]:
    """What was rejected, as the store lists files: a file of a folder, or a part of a file."""
    if known_as is None and len(sources) == 1 and sources[0].is_dir():
        return [(project.uri(sources[0] / subject), reason) for subject, reason in report.rejected]
    where = known_as or ", ".join(map(project.uri, sources))
    return [(f"{where}: {subject}", reason) for subject, reason in report.rejected]
