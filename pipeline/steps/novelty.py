"""Novelty: does the pool resemble the held-out images, and are classes outside of the training detected?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import evaluations, models
from db.queries import images as image_queries
from db.tables import Image
from pipeline.calibration.calibrators import Calibrators
from pipeline.config import Sampler
from pipeline.data.project import Project
from pipeline.errors import UserError
from pipeline.format import evidence, number, table
from pipeline.model.checkpoints import read_card
from pipeline.progress import Progress, notes, silent
from pipeline.steps.held_out import assessed_images
from pipeline.steps.ready import chosen_model, require_held_out_classes
from pipeline.steps.served_model import offered_samplers, stored_calibrators
from pipeline.steps.train_without import train_without
from pipeline.studies.held_out import HeldOutImages, PlacedImage, spread
from pipeline.studies.novelty import SEED, ClassDetection, PoolComparison, compare_pool, detect_classes
from pipeline.uncertainty.served_model import open_model, open_samplers

MOST_IMAGES = 200
"""Held-out images that the pool is compared with."""
MOST_REFERENCES = 2000
"""Labeled images among which the nearest one is searched."""


@dataclass(frozen=True)
class NoveltyReport:
    """The result of a novelty study. `pool` is None where the pool has no unlabeled image, or nothing is held
    out; `held_out_classes` where no class was named. `failed` holds files that could not be used."""

    model: str
    pool: PoolComparison | None
    held_out_classes: ClassDetection | None
    failed: list[tuple[str, str]]

    def lines(self) -> Iterator[str]:
        """The report as text."""
        if self.pool is None:
            yield "The pool is compared with nothing: it has no unlabeled image, or nothing is held out."
        else:
            compared = {
                "confidence": self.pool.confidence,
                "distance to the nearest labeled image": self.pool.neighbours,
            }
            yield "Held-out and pool images, means over images:"
            yield from table(
                ("", "held-out", "pool", "difference"),
                [
                    (name, *(number(mean) for mean in found.means), found.difference.text())
                    for name, found in compared.items()
                ],
            )
            yield f"Measured on {self.pool.confidence.evidence}."
            if self.pool.farthest:
                yield "Pool images that are least like the labeled ones:"
                yield from table(
                    ("image", "distance", "more than"),
                    [
                        (
                            image.uri,
                            number(image.distance),
                            f"{image.percentile:.0f} % of the held-out images",
                        )
                        for image in self.pool.farthest[:3]
                    ],
                )
        if self.held_out_classes is not None:
            detection = self.held_out_classes
            yield (
                f"Detection of pixels of {', '.join(detection.classes)}, which a second model did not learn, "
                f"on {evidence(detection.images, detection.blocks)}:"
            )
            yield from table(
                ("sampler", "measure", "AUROC"),
                [
                    (row.sampler, row.measure, row.estimate.text())
                    for row in detection.rows
                    if row.metric == "auroc"
                ],
            )
        yield from notes(self.failed)


def novelty(
    project: Project,
    database: Database,
    *,
    classes: Sequence[str] = (),
    checkpoint: Path | None = None,
    model: str | None = None,
    pool_images: int = 200,
    progress: Progress = silent,
) -> NoveltyReport:
    """Compare the pool with the held-out images, and test whether a model detects classes that it was not
    trained on.

    Three diagnostics: confidence on held-out and on unlabeled pool images; the distance of both, in the
    encoder's features, to the labeled images; and, with `classes`, the out-of-distribution detection of a
    second model that is trained with these classes as void. Run again, it replaces what it wrote, except
    that the held-out classes stay where none are named.

    Args:
        classes: names of the classes to hold out.
        checkpoint: the folder of a model that was trained with these classes as void; else one is trained.
        model: its name; else the promoted one, or the newest where none is.
        pool_images: how many unlabeled pool images, drawn at random with a fixed seed.

    Raises:
        UserError: there is no such model or class, fewer than two classes are left, or a model cannot be
            trained or used.
    """
    names = project.config.data.class_names
    require_held_out_classes(classes, names)
    if checkpoint is not None and not classes:
        raise UserError(
            "A checkpoint was named, but no class.", "Name the classes that it was trained without."
        )
    with database.session(write=False) as session:
        row = chosen_model(session, model)
        before = evaluations.assessment_of(session, model_id=row.id, kind="novelty")
        images = _images(session, project, row.id, pool_images)
        calibrators = stored_calibrators(session, row.id, sampler=project.config.scoring.sampler)
    failed: list[tuple[str, str]] = []
    served = open_model(project, row.checkpoint_uri, calibrators=calibrators)
    compared = compare_pool(project, served, **images, failed=failed, progress=progress)
    detection = None
    if classes:
        indices = [names.index(name) for name in classes]
        folder = checkpoint or train_without(project, database, indices, progress=progress).folder
        detection = _detect(project, database, folder, classes, failed, progress)
    report = NoveltyReport(row.name, compared, detection, failed=list(dict(failed).items()))
    with database.session() as session:
        evaluations.put_assessment(
            session, model_id=row.id, kind="novelty", document=_document(report, before and before.document)
        )
    return report


def _images(
    session: Session, project: Project, model_id: int, pool_images: int
) -> dict[str, list[PlacedImage]]:
    """Held-out images, unlabeled pool images, and those that the model has learned from."""
    held_out = image_queries.split_images(session, "test") or image_queries.split_images(
        session, "calibration"
    )
    generator = np.random.default_rng(SEED)

    def placed(rows: Sequence[Image]) -> list[PlacedImage]:
        return [PlacedImage(project.ref(row), row.group_name, row.position) for row in rows]

    def drawn(ids: Sequence[int], most: int) -> list[PlacedImage]:
        chosen = generator.permutation(np.array(ids, dtype=np.int64))[:most]
        return placed(image_queries.images_by_id(session, sorted(chosen.tolist())))

    return {
        "held_out": placed([held_out[place] for place in spread(len(held_out), MOST_IMAGES)]),
        "pool": drawn(image_queries.unlabeled_ids(session), pool_images),
        "labeled": drawn(models.labeled_ids(session, model_id), MOST_REFERENCES),
    }


def _detect(
    project: Project,
    database: Database,
    folder: Path,
    classes: Sequence[str],
    failed: list[tuple[str, str]],
    progress: Progress,
) -> ClassDetection:
    """With every sampler but `ensemble`, whose other members were trained on the classes."""
    with database.session(write=False) as session:
        images = HeldOutImages(project, assessed_images(session, project)[1])
    samplers = offered_samplers(project.config, read_card(folder))
    calibrators: dict[Sampler, Calibrators] = {name: Calibrators() for name in samplers if name != "ensemble"}
    detection = detect_classes(
        open_samplers(project, folder, calibrators),
        images,
        name=folder.name,
        classes=classes,
        class_names=project.config.data.class_names,
        progress=progress,
    )
    failed += images.failed
    return detection


def _document(report: NoveltyReport, before: dict[str, Any] | None) -> dict[str, Any]:
    """As it is stored; without named classes, the held-out classes of the document before."""
    pool, detection = report.pool, report.held_out_classes
    return {
        "confidence": None if pool is None else pool.confidence.document(),
        "neighbours": None if pool is None else pool.neighbours.document(),
        "farthest": [] if pool is None else [image.document() for image in pool.farthest],
        "held_out_classes": (before or {}).get("held_out_classes")
        if detection is None
        else detection.document(),
    }
