"""Review: labels that the serving model confidently contradicts, as a queue of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import failures, models, queue_items, queues
from db.queries.models import TrainingImage
from db.queries.runs import newest_run
from pipeline.config import Sampler
from pipeline.data.project import Project
from pipeline.format import count, counted
from pipeline.progress import Progress, notes, silent
from pipeline.steps.export import export
from pipeline.steps.ready import require_positive, reviewed_labels, serving_model
from pipeline.steps.served_model import stored_calibrators
from pipeline.studies.label_review import DoubtedRegion, LabeledImage, LabelReview
from pipeline.uncertainty.served_model import open_model

MEASURE = "label_margin"
"""What `score` of a review's items is: see `evaluation.label_errors`."""


@dataclass(frozen=True)
class ReviewReport:
    """The result of a review. `failed` holds files that could not be used, with the reason."""

    model: str
    sampler: str
    images: int
    """Labeled images that were compared with a prediction."""
    learned: int
    """Those whose labels the model was trained on."""
    doubted: int
    """Regions that the model doubts; `items` holds the first of them."""
    queue: str | None
    """None when nothing is doubted."""
    folder: Path | None
    """Where the queue was exported to."""
    items: list[DoubtedRegion]
    class_names: list[str]
    failed: list[tuple[str, str]]

    def lines(self) -> Iterator[str]:
        """The report as text."""
        yield (
            f"{self.model} ({self.sampler}) doubts the labels of {counted(self.doubted, 'region')} in "
            f"{counted(self.images, 'labeled image')}."
        )
        if self.queue is not None:
            yield f"{self.queue}: the first {count(len(self.items))} of them, in {self.folder}"
        for rank, item in enumerate(self.items[:10], start=1):
            yield f"  {rank:4d}  {item.uri}  {item.reason(self.class_names)}"
        if len(self.items) > 10:
            yield f"  … and {count(len(self.items) - 10)} more"
        if self.learned:
            yield (
                f"note: {self.model} was trained on the labels of {count(self.learned)} of these images and "
                "has partly learned their errors; a model that was trained without them would find more."
            )
        yield from notes(self.failed)


def review(
    project: Project,
    database: Database,
    *,
    budget: int = 50,
    folder: Path | None = None,
    progress: Progress = silent,
) -> ReviewReport:
    """Find the labels that the serving model doubts most, and export them as a queue of their own.

    The labels are those in force, composed as for training. Regions of earlier reviews, labeled or not,
    are left out. The round is not touched; corrected masks come back by `import`.

    Args:
        budget: regions of the queue.
        folder: as for `export`.

    Raises:
        UserError: the budget is not positive, no model serves, nothing is labeled, no labeled image can be
            read, or the folder cannot be written.
    """
    require_positive("--budget", budget)
    with database.session(write=False) as session:
        model, images = serving_model(session), reviewed_labels(session)
        learned = {label.id for label in models.model_labels(session, model.id)}
        run = newest_run(session, model.id, finished=True)
        sampler: Sampler = project.config.scoring.sampler
        sampler = "mc_dropout" if sampler == "none" else sampler
        calibrators = stored_calibrators(session, model.id, sampler=sampler)
        labeled = _labeled(session, project, images)
    served = open_model(project, model.checkpoint_uri, calibrators=calibrators, sampler=sampler)
    study = LabelReview(project, served)
    thresholds = study.thresholds(labeled, progress)
    best, doubted = study.doubts(labeled, thresholds, most=budget, progress=progress)
    spec = {"sampler": sampler, "thresholds": thresholds.round(6).tolist(), "doubted": doubted}
    with database.session() as session:
        queue = None
        if best:
            queue = queues.put_review(
                session,
                run_id=run.id if run else None,
                strategy=MEASURE,
                unit="image" if project.config.scoring.regions.kind == "image" else "region",
                spec={"model": model.name, **spec},
                items=[
                    _row(rank, item, project.config.data.class_names) for rank, item in enumerate(best, 1)
                ],
            ).name
        failures.clear_failures(session, "review")
        failures.record_failures(session, "review", study.failed)
    return ReviewReport(
        model=model.name,
        sampler=sampler,
        images=len(images) - len(study.failed),
        learned=sum(any(label.id in learned for label in image.labels) for image in images),
        doubted=doubted,
        queue=queue,
        folder=export(project, database, queue=queue, folder=folder, progress=progress).folder
        if queue
        else None,
        items=best,
        class_names=project.config.data.class_names,
        failed=study.failed,
    )


def _labeled(session: Session, project: Project, images: Sequence[TrainingImage]) -> list[LabeledImage]:
    """The images with their labels in force, and the regions of earlier reviews."""
    reviewed = queue_items.reviewed_regions(session)
    return [
        LabeledImage(
            ref=project.ref(image),
            masks=tuple(project.path(label.mask_uri) for label in image.labels),
            reviewed=tuple((region[:4], region.outline) for region in reviewed.get(image.id, ())),
        )
        for image in images
    ]


def _row(rank: int, item: DoubtedRegion, class_names: Sequence[str]) -> dict[str, Any]:
    """The columns of a queue item."""
    x, y, w, h = item.box
    return {
        "rank": rank,
        "image_id": item.image_id,
        "region_index": item.region_index,
        "x": x,
        "y": y,
        "w": w,
        "h": h,
        "outline": item.outline,
        "measure": MEASURE,
        "score": item.score,
        "predicted_class": item.predicted,
        "slice": "review",
        "reason": item.reason(class_names),
    }
