"""The status of a project, and the next command."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.queries import images as image_queries
from db.queries import leases, models, queues, rounds
from db.queries import queue_items as item_queries
from db.queries import shards as shard_queries
from db.queries.failures import count_failures
from db.queries.leases import owners, store_time
from db.queries.queues import places_of
from db.queries.runs import newest_run
from db.queries.shards import count_to_score, open_shards
from db.tables import Image, Label, Model, Queue
from pipeline.data.project import Project
from pipeline.format import agree, counted
from pipeline.leases import dead_owners
from pipeline.rounds import WITHOUT_MODEL


@dataclass(frozen=True)
class HeldOutQueue:
    """A queue of held-out images that wait for labels, and the command that goes on with it."""

    name: str
    images: int
    command: str


@dataclass(frozen=True)
class Status:
    """A project at a glance.

    Attributes:
        images: images by split; exact duplicates are counted apart, under `duplicate`.
        labeled_images: pool images with at least one label.
        round_number: None before the first ingest that found an image of the pool; 0 for the first queue of a
            project without labels.
        next_command: the next command, ready to be typed.
        reason: why it comes next.
        split_versions: of the held-out splits; 0 before the first.
        open_splits: for each split without a version, what it still needs.
        held_out: the queues of held-out images that wait for labels.
    """

    images: dict[str, int]
    labeled_images: int
    failures: int
    round_number: int | None
    state: str | None
    promoted_model: str | None
    queue: str | None
    queue_items: dict[str, int]
    export_folder: str | None
    next_command: str
    reason: str
    split_versions: dict[str, int] = field(default_factory=dict)
    open_splits: dict[str, str] = field(default_factory=dict)
    held_out: list[HeldOutQueue] = field(default_factory=list)


@dataclass(frozen=True)
class RunningProcess:
    """A process that runs, or that has died.

    Attributes:
        work: such as `train`, `nightly`, or `scoring run 3`.
        owner: `host:pid:start`.
        since: when it took its lease; None for shards, of which it may have several.
        alive: False for a process that died or whose lease has expired: another may take its work.
    """

    work: str
    owner: str
    since: datetime | None
    alive: bool


@dataclass(frozen=True)
class MasksToTake:
    """Masks that exist already of images that wait for labels, which are not read as labels by themselves.

    Attributes:
        queue: that asks for the images.
        images: those that have a mask.
        command: that imports them.
        key: of the configuration, that names the masks.
    """

    queue: str
    images: int
    command: str
    key: str = "data.masks"

    def __str__(self) -> str:
        return (
            f"{counted(self.images, 'image')} that {self.queue} asks for {agree(self.images, 'has', 'have')} "
            f"a mask in `{self.key}` now. Take {agree(self.images, 'it as its label', 'them as its labels')}"
            f": `{self.command}`."
        )


@dataclass(frozen=True)
class Scoring:
    """The newest scoring run of the promoted model.

    Attributes:
        images_to_score: pool images without a score; before the first run, all of them.
        open_shards: of the run; 0 once it is finished.
    """

    images_to_score: int
    run_id: int | None
    started_at: datetime | None
    finished_at: datetime | None
    open_shards: int


def running_processes(session: Session) -> list[RunningProcess]:
    """The running processes, and those that died without ending their work."""
    now, dead = store_time(session), dead_owners(owners(session))
    found = [
        RunningProcess(lease.name, lease.owner, lease.taken_at, lease.owner not in dead and lease.until > now)
        for lease in leases.list_leases(session)
    ]
    shards = shard_queries.running_shards(session)
    return found + [
        RunningProcess(f"scoring run {run_id}", owner, None, owner not in dead and until > now)
        for run_id, owner, until in shards
    ]


def masks_to_take(session: Session, project: Project, *, since: datetime | None = None) -> list[MasksToTake]:
    """The masks that `data.masks` or `data.labels` has got of images that wait for labels, since then, or
    since their queue was drawn; each queue with such masks once."""
    key, path = project.config.data.existing_labels
    return [
        MasksToTake(name, images, f"segcurate import {path} --queue {name}", key)
        for name, images in item_queries.masked_since(session, since).items()
    ]


def scoring_status(session: Session) -> Scoring | None:
    """The scoring progress of the pool; None before a model is promoted. Reads every image of the pool."""
    model = models.promoted_model(session)
    if model is None:
        return None
    run = newest_run(session, model.id, finished=False)
    if run is None:
        return Scoring(count_to_score(session, run_id=0), None, None, None, 0)
    left = open_shards(session, run_id=run.id)
    return Scoring(
        images_to_score=count_to_score(session, run_id=run.id),
        run_id=run.id,
        started_at=run.created_at,
        finished_at=run.finished_at,
        open_shards=left.pending + left.running,
    )


def project_status(session: Session) -> Status:
    """The status of a project. Writes nothing."""
    images, settings = _images_by_split(session), image_queries.project_row(session)
    of_pool = select(func.count(func.distinct(Label.image_id))).join(Image, Image.id == Label.image_id)
    labeled = session.scalar(of_pool.where(Image.split == "pool")) or 0
    failures = count_failures(session)
    promoted = models.promoted_model(session)
    current = rounds.current_round(session)
    queue = None if current is None else queues.round_queue(session, current.id)
    items = item_queries.count_items(session, queue.id) if queue else {}
    if current is not None:
        next_command, reason = _next(
            session, state=current.state, number=current.number, queue=queue, items=items
        )
    else:
        next_command = "segcurate ingest"
        reason = "No image of the pool is known yet."
    return Status(
        images=images,
        labeled_images=labeled,
        failures=failures,
        round_number=current.number if current else None,
        state=current.state if current else None,
        promoted_model=promoted.name if promoted else None,
        queue=queue.name if queue else None,
        queue_items=items,
        export_folder=queue.export_uri if queue else None,
        next_command=next_command,
        reason=reason,
        split_versions=image_queries.split_versions(session),
        open_splits={} if settings is None else dict(settings.open_splits or {}),
        held_out=list(_held_out(session)),
    )


def _held_out(session: Session) -> Iterator[HeldOutQueue]:
    for queue in queues.held_out_queues(session):
        waiting = item_queries.count_items(session, queue.id).get("queued", 0)
        if waiting and queue.exported_at is None:
            yield HeldOutQueue(queue.name, waiting, f"segcurate export --queue {queue.name}")
        elif waiting:
            yield HeldOutQueue(queue.name, waiting, _import_command(session, queue)[0])


def import_command(session: Session, name: str) -> str | None:
    """The command that imports the labels of a queue from its last delivery; None where it waits for none."""
    queue = queues.queue_by_name(session, name)
    if queue is None or not item_queries.count_items(session, queue.id).get("queued"):
        return None
    return _import_command(session, queue)[0]


def _images_by_split(session: Session) -> dict[str, int]:
    kept = select(Image.split, func.count()).where(Image.duplicate_of.is_(None)).group_by(Image.split)
    counts = dict(session.execute(kept).tuples().all())
    duplicates = session.scalar(
        select(func.count()).select_from(Image).where(Image.duplicate_of.is_not(None))
    )
    if duplicates:
        counts["duplicate"] = duplicates
    return counts


def _import_command(session: Session, queue: Queue | None) -> tuple[str, str]:
    """The command that imports a queue's labels from its last delivery, and what to do first."""
    places = [] if queue is None else places_of(session, queue.id)
    newest = max(places, key=lambda place: (place.pushed_at, place.id), default=None)
    if queue is None or newest is None or newest.tool == "folder":
        folder = "FOLDER" if queue is None else queue.export_uri if newest is None else newest.place
        return f"segcurate import {folder or 'FOLDER'}", "First put the masks into its `masks` folder."
    current = rounds.current_round(session)
    of_round = current is not None and queue.round_id == current.id
    named = "" if of_round else f" --queue {queue.name}"  # not every tool's files name their queue
    if newest.url:
        return (
            f"segcurate import --from {newest.tool} --url {newest.url}{named}",
            f"They are labeled at {newest.url}.",
        )
    return (
        f"segcurate import --from {newest.tool} FILE{named}",
        f"First export them from the tool that {newest.place} was written for.",
    )


def _next(
    session: Session, *, state: str, number: int, queue: Queue | None, items: dict[str, int]
) -> tuple[str, str]:
    if state == "import":
        waiting = items.get("queued", 0)
        done = items.get("labeled", 0)
        skipped = f", {items['skipped']} skipped" if items.get("skipped") else ""
        command, first = _import_command(session, queue)
        return (
            command,
            f"{counted(waiting, 'region')} of the queue {agree(waiting, 'waits', 'wait')} for labels, "
            f"{done} {agree(done, 'is', 'are')} labeled{skipped}. {first}",
        )
    reasons = {
        "train": f"Round {number} trains on every label so far.",
        "calibrate": "The new model's softmax scores are not probabilities yet.",
        "evaluate": "The new model is not measured yet.",
        "score": "The pool is not scored by the promoted model yet.",
        "select": "The pool is scored.",
        "export": "The queue is ready.",
    }
    if state in ("score", "select") and shard_queries.is_pool_labeled(session):
        return (
            "segcurate ingest",
            "Every image of the pool is labeled. Put new images into `data.images` first.",
        )
    if number == WITHOUT_MODEL:
        reasons["select"] = "No image has a label yet: it chooses the first ones to label, without a model."
    if state == "train":
        model = session.scalars(select(Model).where(Model.status == "training")).first()
        if model is not None:
            return (
                "segcurate train",
                f"The training of {model.name} was interrupted; it continues from its checkpoint.",
            )
    return f"segcurate {state}", reasons[state]
