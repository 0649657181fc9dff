"""Each queue and its first items: the rows of `segcurate queue`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from db.queries import queue_items, queues
from db.tables import Queue, QueueItem
from pipeline.errors import UserError

SHOWN = (
    *("rank", "measure", "score", "slice", "inclusion_probability"),
    *("status", "reason", "clicks", "annotators", "disagreement"),
)
"""Columns of a queue item that are shown as they are."""


@dataclass(frozen=True)
class HeadItem:
    """A region to label.

    Attributes:
        box: x, y, width, height in image pixels.
        score: of the queue's measure.
        inclusion_probability: of an audit draw.
        clicks: estimated effort, known from the export on.
        annotators: whose labels are in force, once there are two.
        disagreement: the share of pixels on which two of them, drawn at random, differ.
    """

    rank: int
    image: str
    box: tuple[int, int, int, int]
    class_name: str | None
    measure: str | None
    score: float | None
    slice: str
    inclusion_probability: float | None
    status: str
    reason: str
    clicks: float | None
    annotators: int | None
    disagreement: float | None


@dataclass(frozen=True)
class QueueSummary:
    """A queue at a glance.

    Attributes:
        kind: `selected`, `review`, or `initial` for the labels of the first set.
        by_class: by predicted class; `not predicted` where there was no model.
        candidates: number of candidates; None where the queue was not selected by scores.
        clicks: estimated for all its items together; None before the export.
        folder: where it is exported, relative to the project's folder.
        head: the first items, by rank.
    """

    name: str
    kind: str
    run_id: int | None
    strategy: str
    unit: str
    seed: int
    measure: str | None
    items: int
    candidates: int | None
    by_slice: dict[str, int]
    by_class: dict[str, int]
    by_status: dict[str, int]
    clicks: float | None
    warnings: list[str]
    folder: str | None
    created_at: datetime
    exported_at: datetime | None
    head: list[HeadItem]


def queue_or_newest(session: Session, name: str | None) -> Queue:
    """The queue of that name; the newest one without a name.

    Raises:
        UserError: there is no such queue.
    """
    queue = queues.newest_queue(session) if name is None else queues.queue_by_name(session, name)
    if queue is None:
        known = ", ".join(row.name for row in queues.list_queues(session)) or "none"
        problem = "No queue has been selected yet" if name is None else f"There is no queue {name!r}"
        raise UserError(f"{problem}; there are: {known}.", "Run `segcurate queue --all`.")
    return queue


def queue_summary(session: Session, queue: Queue, *, class_names: Sequence[str], head: int) -> QueueSummary:
    """Count a queue, and read its first `head` items."""

    def class_of(index: int | None) -> str | None:
        return None if index is None else class_names[index] if index < len(class_names) else f"class {index}"

    items = [
        HeadItem(
            image=image.uri,
            box=(item.x, item.y, item.w, item.h),
            class_name=class_of(item.predicted_class),
            **{name: getattr(item, name) for name in SHOWN},
        )
        for item, image in queue_items.queued_regions(session, queue_id=queue.id, limit=max(head, 1))
    ]
    by_status = queue_items.count_items(session, queue.id)
    by_class = queue_items.count_by(session, queue.id, QueueItem.predicted_class)
    return QueueSummary(
        name=queue.name,
        kind=queue.kind,
        run_id=queue.run_id,
        strategy=queue.strategy,
        unit=queue.unit,
        seed=queue.seed,
        measure=next((item.measure for item in items if item.measure), None),
        items=sum(by_status.values()),
        candidates=queue.spec.get("candidates"),
        by_slice=queue_items.count_by(session, queue.id, QueueItem.slice),
        by_class={class_of(index) or "not predicted": count for index, count in by_class.items()},
        by_status=by_status,
        clicks=queue_items.count_clicks(session, queue.id),
        warnings=list(queue.spec.get("warnings", [])),
        folder=queue.export_uri,
        created_at=queue.created_at,
        exported_at=queue.exported_at,
        head=items[:head],
    )
