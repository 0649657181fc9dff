"""The audit slices: labeled regions that were drawn at random from what was unlabeled in the pool."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import and_, func, select
from sqlalchemy.orm import Session

from db.queries.labels import is_version, newest_versions
from db.tables import Image, Label, Model, ModelLabel, Queue, QueueItem, ScoringRun

HELD_OUT = "held_out"
"""The key of a model's config that is `audit` where the audit regions were left out of its training."""


class AuditSlice(NamedTuple):
    """The audit of a queue.

    Attributes:
        model_id: the model whose scores made the queue; None for a queue without scores.
        drawn: its regions, labeled or not.
        population: regions that it was drawn from: those of the pool without a label at `drawn_at`.
        of_round: the queue is the one of its round; a withdrawn queue has none.
        of_all_regions: False where the scores kept only some regions of each image, so that the others could
            not be drawn.
    """

    queue_id: int
    queue: str
    model_id: int | None
    drawn: int
    population: int
    drawn_at: datetime
    of_round: bool
    of_all_regions: bool

    @property
    def of_pool(self) -> bool:
        """Whether it is a sample of all that was unlabeled then, and its queue was not withdrawn."""
        return self.of_round and self.of_all_regions


class AuditRegion(NamedTuple):
    """A labeled region of an audit slice, and the labels in force of its image in its queue, in the order in
    which they are composed; a later one, of another annotator, may not cover the region."""

    image_id: int
    x: int
    y: int
    w: int
    h: int
    outline: str | None
    queue_id: int
    drawn_at: datetime
    mask_uris: tuple[str, ...]


def audit_slices(session: Session) -> list[AuditSlice]:
    """The audit of every queue that has one, oldest first."""
    item = QueueItem
    probability = func.min(item.inclusion_probability)
    statement = (
        select(Queue, ScoringRun, func.count(item.id), probability)
        .join(item, item.queue_id == Queue.id)
        .outerjoin(ScoringRun, ScoringRun.id == Queue.run_id)
        .where(item.slice == "audit", item.inclusion_probability.is_not(None))
        .group_by(Queue.id, ScoringRun.id)
        .order_by(Queue.id)
    )
    return [
        AuditSlice(
            queue_id=queue.id,
            queue=queue.name,
            model_id=run.model_id if run is not None else None,
            drawn=drawn,
            population=max(drawn, round(drawn / probability)),
            drawn_at=queue.created_at,
            of_round=queue.round_id is not None,
            of_all_regions=queue.unit == "image" or _all_regions(run),
        )
        for queue, run, drawn, probability in session.execute(statement)
    ]


def audit_regions(session: Session) -> list[AuditRegion]:
    """Every labeled audit region of a pool image, of all rounds, by image and queue."""
    newest = newest_versions()
    item = QueueItem
    statement = (
        select(
            *(item.id, item.image_id, item.x, item.y, item.w, item.h),
            *(item.outline, item.queue_id, Queue.created_at, Label.mask_uri),
        )
        .join(Queue, Queue.id == item.queue_id)
        .join(Image, Image.id == item.image_id)
        .join(Label, and_(Label.image_id == item.image_id, Label.queue_id == item.queue_id))
        .join(newest, is_version(newest))
        .where(
            item.slice == "audit",
            item.status == "labeled",
            item.inclusion_probability.is_not(None),
            Image.split == "pool",
            Image.duplicate_of.is_(None),
        )
        .order_by(item.image_id, item.queue_id, item.rank, Label.version)
    )
    found: dict[int, AuditRegion] = {}
    for item_id, *region, mask_uri in session.execute(statement):
        before = found[item_id].mask_uris if item_id in found else ()
        found[item_id] = AuditRegion(*region, mask_uris=(*before, mask_uri))
    return list(found.values())


def unseen(
    session: Session, regions: Sequence[AuditRegion], *, model_ids: Iterable[int]
) -> list[AuditRegion]:
    """The audit regions that none of these models has learned from: neither it nor a model that it started
    from was trained on a label of their image that is newer than their queue, unless the audit regions were
    left out of that training. Labels that the image had before are of other regions."""
    newest: dict[int, datetime] = {}
    left = [session.get(Model, model_id) for model_id in model_ids]
    while left:
        model = left.pop()
        if model is None:
            continue
        if model.config.get(HELD_OUT) != "audit":
            trained = (
                select(Label.image_id, func.max(Label.created_at))
                .join(ModelLabel, ModelLabel.label_id == Label.id)
                .where(ModelLabel.model_id == model.id)
                .group_by(Label.image_id)
            )
            for image_id, at in session.execute(trained):
                newest[image_id] = max(at, newest.get(image_id, at))
        if model.parent_id is not None:
            left.append(session.get(Model, model.parent_id))
    return [region for region in regions if newest.get(region.image_id, region.drawn_at) <= region.drawn_at]


def _all_regions(run: ScoringRun | None) -> bool:
    """Whether a run has kept the scores of all regions."""
    return run is None or run.scorer.get("keep_regions", "all") == "all"
