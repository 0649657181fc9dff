"""What calibrators are fitted on: the calibration split or, where there is none, the audit slices.

A calibrator that is fitted on pixels that the network has learned from believes it as sure as it is there.
So where the audit slices serve, their regions are left out of training, from the first labeled audit on;
the price is that share of the labels (`selection.audit_fraction`). Labels that a strategy has selected never
serve: they were chosen because the network is unsure there, and say nothing about the pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from sqlalchemy.orm import Session

from db.queries import audits
from db.queries import images as image_queries
from db.queries.audits import AuditRegion
from db.queries.models import TrainingImage
from db.tables import Image
from pipeline.data.project import Project
from pipeline.errors import UserError
from pipeline.studies.held_out import AuditedImage, AuditedRegion, HeldOut

Source = Literal["calibration", "audit"]
HEAVIEST = 10.0
"""A region's weight, 1 / inclusion probability, is cut at this many times the median weight: one region of a
thin slice shall not speak for all others. Cut weights are biased towards equal ones."""


def calibration_source(session: Session, project: Project) -> Source:
    """Where the project's calibrators come from, by `calibration.source`."""
    configured = project.config.calibration.source
    if configured == "auto":
        images = image_queries.split_images(session, "calibration")
        return "calibration" if any(image.mask_uri for image in images) else "audit"
    return "audit" if configured == "audit" else "calibration"


def without_audit(session: Session, images: Sequence[TrainingImage]) -> list[TrainingImage]:
    """What may be trained on where the audit slices calibrate: without the labels of their regions."""
    regions: dict[int, list[AuditRegion]] = {}
    for region in audits.audit_regions(session):
        regions.setdefault(region.image_id, []).append(region)
    return [image._replace(held_out=tuple(regions.get(image.id, ()))) for image in images]


def held_out_images(session: Session, project: Project, split: str) -> list[HeldOut]:
    """The images of a locked split that have a mask."""
    return [
        HeldOut(
            ref=project.ref(row),
            mask=project.path(row.mask_uri),
            group=row.group_name,
            position=row.position,
        )
        for row in image_queries.split_images(session, split)
        if row.mask_uri is not None
    ]


def judging_images(session: Session, project: Project) -> tuple[str, list[HeldOut]]:
    """The split that a model's uncertainty is judged on, `test` where it has masks, and its images.

    Raises:
        UserError: no held-out image has a mask.
    """
    for split in ("test", "calibration"):
        images = held_out_images(session, project, split)
        if images:
            return split, images
    raise UserError(
        "No image of the test or calibration split has a mask.",
        "Put masks in `data.masks` and run `segcurate ingest`.",
    )


def audited_images(session: Session, project: Project, model_id: int) -> list[AuditedImage]:
    """The images with labeled audit regions, of all rounds, that this model has not learned from."""
    regions = audits.unseen_audit_regions(session, model_id)
    weights = horvitz_thompson([region.inclusion_probability for region in regions])
    by_image: dict[int, list[AuditedRegion]] = {}
    for region, weight in zip(regions, weights, strict=True):
        by_image.setdefault(region.image_id, []).append(_audited(project, region, weight))
    images = [session.get_one(Image, image_id) for image_id in by_image]
    return [
        AuditedImage(
            ref=project.ref(row),
            mask=by_image[row.id][0].masks[-1],
            group=row.group_name,
            position=row.position,
            regions=tuple(by_image[row.id]),
        )
        for row in images
    ]


def horvitz_thompson(probabilities: Sequence[float]) -> list[float]:
    """1 / inclusion probability (Horvitz & Thompson 1952), cut at 10 times the median weight.

    >>> horvitz_thompson([0.5, 0.25, 0.5, 0.01])
    [2.0, 4.0, 2.0, 30.0]
    """
    weights = 1 / np.asarray(probabilities, dtype=np.float64)
    return np.minimum(weights, HEAVIEST * np.median(weights)).tolist() if len(weights) else []


def _audited(project: Project, region: AuditRegion, weight: float) -> AuditedRegion:
    return AuditedRegion(
        box=(region.x, region.y, region.w, region.h),
        outline=region.outline,
        weight=weight,
        masks=tuple(map(project.path, region.mask_uris)),
    )
