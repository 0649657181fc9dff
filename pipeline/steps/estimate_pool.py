"""How good the model is on what is not labeled yet: what the newest labeled audit says about its pool.

The model is the one whose scores made the queue: it was trained before any label of this queue came in, so
that the audit is new to it. The labels with certainty, those that were there when the queue was drawn, are
not: it was trained on most of them. So the numbers of what is not labeled are of unseen regions, and those
of the whole pool are of the pool as it is, with what the model has learned from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import audits, pool_estimates
from db.queries import models as model_queries
from db.queries.audits import AuditRegion, AuditSlice
from db.queries.labels import LabeledRegion
from db.tables import Image, Model, Queue, Round
from pipeline.config import IGNORE
from pipeline.config.base import content_hash
from pipeline.data.labels import compose_labels
from pipeline.data.masks import Mask, MaskCodec
from pipeline.data.project import Project
from pipeline.errors import UserError
from pipeline.evaluation.pool_estimate import Audit, Counts, PoolEstimate, estimate_pool, stacked
from pipeline.evaluation.statistics import image_statistics
from pipeline.progress import Progress
from pipeline.regions.outlines import paint_regions
from pipeline.steps.held_out import predicting_models
from pipeline.steps.served_model import stored_calibrators
from pipeline.studies.held_out import HeldOut, HeldOutImages
from pipeline.summaries.models import model_confidence
from pipeline.summaries.pool import PoolSummary
from pipeline.uncertainty.served_model import open_model

SEED = 0
"""Of every resampling."""


@dataclass(frozen=True)
class PoolImage(HeldOut):
    """An image of the pool of which some regions are labeled.

    Attributes:
        masks: its labels in force, in the order in which they are painted.
        certain: regions that had a label when the queue was drawn.
        audited: labeled regions of the audit.
    """

    masks: tuple[Any, ...]
    certain: tuple[LabeledRegion, ...]
    audited: tuple[AuditRegion, ...]

    def label(self, codec: MaskCodec) -> Mask:
        composed = compose_labels(self.masks, (self.ref.width, self.ref.height))
        composed[~(self.pixels(self.certain) | self.pixels(self.audited))] = IGNORE
        return composed

    def pixels(self, regions: Sequence[LabeledRegion] | Sequence[AuditRegion]) -> npt.NDArray[np.bool_]:
        """Which pixels [H, W] lie in these regions."""
        canvas = np.zeros((self.ref.height, self.ref.width), dtype=bool)
        boxes = np.array([(one.x, one.y, one.w, one.h) for one in regions], dtype=np.int64).reshape(-1, 4)
        paint_regions(canvas, boxes, [one.outline for one in regions])
        return canvas


@dataclass(frozen=True)
class PoolPlan:
    """The labels that an estimate rests on, and the model whose errors it is about; `labels_hash` is of both
    and of the settings."""

    audit: AuditSlice
    model: Model
    images: list[PoolImage]
    skipped: int
    labels_hash: str


@dataclass(frozen=True)
class PoolReport:
    """The stored estimate, None where there is none, with the files that could not be used and warnings."""

    document: dict[str, Any] | None = None
    failed: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    warnings: list[str] = field(default_factory=list[str])

    def lines(self) -> Iterator[str]:
        """The estimate as text."""
        if self.document is not None:
            yield from PoolSummary.from_document(self.document).lines()


def update_pool_estimate(project: Project, database: Database, *, progress: Progress) -> PoolReport:
    """Estimate the pool from the newest closed queue with a labeled audit, unless the stored estimate rests
    on the same labels, all of them read, with the same settings. Run again, it replaces what it stored.

    A model that cannot be opened any more gives a warning and no estimate.
    """
    with database.session(write=False) as session:
        plan = plan_estimate(session, project)
        if plan is None:
            return PoolReport()
        known = pool_estimates.estimate_of(session, plan.audit.queue_id)
        if known is not None and known.labels_hash == plan.labels_hash:
            return PoolReport(known.document)
    try:
        document, failed = _estimate(project, database, plan, progress)
    except UserError as error:
        return PoolReport(
            warnings=[f"The audit of {plan.audit.queue} gives no estimate of the pool. {error.problem}"]
        )
    if document is None:
        reason = f"None of the audited regions of {plan.audit.queue} could be read: no estimate of the pool."
        return PoolReport(failed=failed, warnings=[reason])
    with database.session() as session:
        pool_estimates.put_estimate(
            session,
            queue_id=plan.audit.queue_id,
            model_id=plan.model.id,
            labels_hash=plan.labels_hash if not failed else "",  # the files may be back next time
            document=document,
        )
    return PoolReport(document, failed)


def plan_estimate(session: Session, project: Project) -> PoolPlan | None:
    """The newest audit that says something about the pool; None where there is none.

    Its queue belongs to a round that is closed and its scores kept all regions; regions that nobody labeled,
    and any that the model has learned from, count as not labeled.
    """
    regions = audits.audit_regions(session)
    for audit in reversed(audits.audit_slices(session)):
        if audit.model_id is None or not audit.of_pool or not _is_closed(session, audit):
            continue
        mine = [region for region in regions if region.queue_id == audit.queue_id]
        models = predicting_models(session, project, audit.model_id)
        unseen = audits.unseen(session, mine, model_ids=models)
        if unseen:
            return _plan(session, project, audit, session.get_one(Model, audit.model_id), unseen)
    return None


def _is_closed(session: Session, audit: AuditSlice) -> bool:
    """Whether the round of the audit's queue is over."""
    queue = session.get_one(Queue, audit.queue_id)
    return queue.round_id is not None and session.get_one(Round, queue.round_id).state == "closed"


def _plan(
    session: Session, project: Project, audit: AuditSlice, model: Model, regions: Sequence[AuditRegion]
) -> PoolPlan:
    certain = pool_estimates.labeled_before(session, audit.drawn_at)
    audited: dict[int, list[AuditRegion]] = {}
    for region in regions:
        audited.setdefault(region.image_id, []).append(region)
    images: list[PoolImage] = []
    evaluation = project.config.evaluation
    identity: list[Any] = [model.checkpoint_sha256, audit.drawn, audit.population]
    identity += [project.config.scoring.sampler]
    identity += [evaluation.bins, evaluation.resamples, evaluation.confidence]
    for labeled in model_queries.training_labels(session):
        if labeled.id not in certain and labeled.id not in audited:
            continue
        row = session.get_one(Image, labeled.id)
        masks = tuple(project.path(label.mask_uri) for label in labeled.labels)
        images.append(
            PoolImage(
                ref=project.ref(row),
                group=row.group_name,
                position=row.position,
                mask=masks[-1],
                masks=masks,
                certain=tuple(sorted(certain.get(labeled.id, ()), key=lambda one: one[:5])),
                audited=tuple(audited.get(labeled.id, ())),
            )
        )
        identity.append(
            [
                labeled.uri,
                *(label.mask_sha256 for label in labeled.labels),
                *([one.x, one.y, one.w, one.h, one.outline] for one in images[-1].certain),
                "audit",
                *([one.x, one.y, one.w, one.h, one.outline] for one in images[-1].audited),
            ]
        )
    skipped = pool_estimates.count_skipped_before(session, audit.queue_id)
    return PoolPlan(audit, model, images, skipped, content_hash(identity))


def _estimate(
    project: Project, database: Database, plan: PoolPlan, progress: Progress
) -> tuple[dict[str, Any] | None, list[tuple[str, str]]]:
    """The document of an estimate; None where no audited region can be read."""
    config = project.config
    sampler = config.scoring.sampler
    with database.session(write=False) as session:
        calibrators = stored_calibrators(session, plan.model.id, sampler=sampler)
        confidence = model_confidence(session, plan.model.id, sampler=sampler)
    served = open_model(project, plan.model.checkpoint_uri, calibrators=calibrators, sampler=sampler)
    images = HeldOutImages(project, plan.images)
    kept = {image.ref.id: image for image in plan.images}
    certain = Counts.none(classes=config.data.num_classes, bins=config.evaluation.bins)
    audited: list[Counts] = []
    regions: list[int] = []
    for batch in images.read(served, title=f"audit {plan.audit.queue}", progress=progress):
        prediction = served.predictor.predict(batch.images, batch.progress)
        for row, image_id in enumerate(batch.ids):
            image = kept[image_id]
            known = torch.from_numpy(image.pixels(image.certain))
            found_here = [Counts.none(classes=config.data.num_classes, bins=config.evaluation.bins)] * 2
            for rows, (probability,) in prediction.bands_of([prediction.probability], batch.size, row=row):
                label, sure = (
                    whole.to(probability.device) for whole in (batch.label[row, rows], known[rows])
                )
                for index, part in enumerate((label.where(sure, IGNORE), label.where(~sure, IGNORE))):
                    record = image_statistics(
                        probability, part, {}, bins={}, class_bins=config.evaluation.bins
                    )
                    counts = Counts.of(record, bins=config.evaluation.bins)
                    found_here[index] = found_here[index].plus(counts)
            certain = certain.plus(found_here[0])
            if image.audited:
                audited.append(found_here[1])
                regions.append(len(image.audited))
    if not regions:
        return None, images.failed
    slice_ = plan.audit
    audit = Audit(stacked(audited), np.array(regions, dtype=float), slice_.population, slice_.drawn)
    found: PoolEstimate = estimate_pool(certain, audit, config.evaluation, seed=SEED)
    return {
        "queue": slice_.queue,
        "model": plan.model.name,
        "sampler": sampler,
        "confidence": confidence.name,
        "skipped": plan.skipped,
        "class_names": config.data.class_names,
        **found.document(),
    }, images.failed
