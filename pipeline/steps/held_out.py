"""What calibrators are fitted on: the calibration split or, where there is none, the audit slices.

A calibrator that is fitted on pixels that the network has learned from believes it as sure as it is there.
So where the audit slices serve, their regions are left out of training, from the first labeled audit on;
the price is that share of the labels (`selection.audit_fraction`). `selection.audit_training` can leave them
out everywhere, or nowhere; a model that was trained on an audit has seen it for good. Labels that a strategy
has selected never serve: they were chosen because the network is unsure there, and say nothing about the
pool.
"""

from __future__ import annotations

from typing import Literal

from sqlalchemy.orm import Session

from db.queries import audits, models
from db.queries import images as image_queries
from db.queries.audits import HELD_OUT, AuditRegion
from db.queries.models import TrainingImage
from db.tables import Image
from pipeline.data.project import Project
from pipeline.errors import UserError
from pipeline.format import none_can
from pipeline.steps.mask_values import require_known_meaning
from pipeline.studies.held_out import AuditedImage, AuditedRegion, HeldOut, HeldOutImages, LabeledImage

Source = Literal["calibration", "audit"]


def calibration_source(session: Session, project: Project) -> Source:
    """Where the project's calibrators come from, by `calibration.source`."""
    configured = project.config.calibration.source
    if configured == "auto":
        return "calibration" if image_queries.measured_images(session, "calibration") else "audit"
    return "audit" if configured == "audit" else "calibration"


def labels_to_train_on(session: Session, project: Project) -> tuple[list[TrainingImage], dict[str, str]]:
    """The labels in force that a training takes, by `selection.audit_training`.

    Returns:
        Images with their labels, and the entries of the training's configuration that say what was left out.

    Raises:
        ConfigError: the values of masks mean something else than when they were read.
    """
    require_known_meaning(session, project)
    images = models.training_labels(session)
    setting = project.config.selection.audit_training
    if setting == "always" or (setting == "auto" and calibration_source(session, project) != "audit"):
        return images, {}
    regions: dict[int, list[AuditRegion]] = {}
    for region in audits.audit_regions(session):
        regions.setdefault(region.image_id, []).append(region)
    return [image._replace(held_out=tuple(regions.get(image.id, ()))) for image in images], {
        HELD_OUT: "audit"
    }


def held_out_images(session: Session, project: Project, split: str) -> list[HeldOut]:
    """The images with a mask in the newest version of a split; none while the split has no version.

    Raises:
        ConfigError: the values of masks mean something else than when they were read.
    """
    require_known_meaning(session, project)
    return [
        (LabeledImage if project.is_label(row.mask_uri) else HeldOut)(
            ref=project.ref(row),
            mask=project.path(row.mask_uri),
            group=row.group_name,
            position=row.position,
        )
        for row in image_queries.measured_images(session, split)
        if row.mask_uri is not None
    ]


def open_splits(session: Session) -> dict[str, str]:
    """For each held-out split without a version, what it still needs, as `ingest` found it."""
    row = image_queries.project_row(session)
    return {} if row is None else dict(row.open_splits or {})


def assessed_images(session: Session, project: Project) -> tuple[str, list[HeldOut]]:
    """The split that a model is assessed on, `test` where it has masks, and its images.

    Raises:
        UserError: no held-out image has a mask.
    """
    for split in ("test", "calibration"):
        images = held_out_images(session, project, split)
        if images:
            return split, images
    raise UserError(
        "No image with a mask is in the test or calibration split.",
        "Run `segcurate ingest`: it says what the splits need.",
    )


def none_usable(images: HeldOutImages, split: str) -> UserError:
    """The error where none of the images of a split can be used."""
    return UserError(
        f"{none_can(len(images), f'{split} image', 'be used')}: {images.failed[0][1]}",
        "Put the files back, or give them masks and run `segcurate ingest`.",
    )


def predicting_models(session: Session, project: Project, model_id: int) -> list[int]:
    """A model and, with `scoring.sampler: ensemble`, the project's other models in the ensemble."""
    scoring = project.config.scoring
    names = scoring.ensemble if scoring.sampler == "ensemble" else []
    folders = {project.path(name).resolve() for name in names}
    members = [
        model.id
        for model in models.list_models(session)
        if model.name in names or project.path(model.checkpoint_uri).resolve() in folders
    ]
    return [model_id, *members]


def audited_images(session: Session, project: Project, model_id: int) -> list[AuditedImage]:
    """The images with labeled audit regions that this model has not learned from, nor another member of its
    ensemble, weighed as the part of the pool that it has not learned from.

    Each region of the newest audit stands for as many regions as were unlabeled for each one that was
    audited and labeled. Regions of earlier audits are known with certainty by then, and stand for themselves:
    several audits are no sample of one pool. An audit of a withdrawn queue, or one that could not draw from
    all regions, is never the newest.
    """
    regions = audits.unseen(
        session, audits.audit_regions(session), model_ids=predicting_models(session, project, model_id)
    )
    usable = {region.queue_id for region in regions}
    current = [one for one in audits.audit_slices(session) if one.of_pool and one.queue_id in usable]
    if not current:
        return []
    newest = current[-1]
    answered = sum(region.queue_id == newest.queue_id for region in regions)
    by_image: dict[int, list[AuditedRegion]] = {}
    of_newest = {region.image_id for region in regions if region.queue_id == newest.queue_id}
    for region in regions:
        if region.queue_id <= newest.queue_id:
            weight = newest.population / answered if region.queue_id == newest.queue_id else 1.0
            by_image.setdefault(region.image_id, []).append(_audited(project, region, weight))
    images = [session.get_one(Image, image_id) for image_id in by_image]
    return [
        AuditedImage(
            ref=project.ref(row),
            mask=by_image[row.id][0].masks[-1],
            group=row.group_name,
            position=row.position,
            regions=tuple(by_image[row.id]),
            newest=row.id in of_newest,
        )
        for row in images
    ]


def _audited(project: Project, region: AuditRegion, weight: float) -> AuditedRegion:
    return AuditedRegion(
        box=(region.x, region.y, region.w, region.h),
        outline=region.outline,
        weight=weight,
        masks=tuple(map(project.path, region.mask_uris)),
    )
