"""Export: a queue in the format of a labeling tool."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import failures as failure_queries
from db.queries import labels as label_queries
from db.queries import models, queue_items, queues
from db.queries import rounds as round_queries
from db.queries import scores as score_queries
from db.queries.queue_items import QueuedRegion
from db.tables import Image, ImageScore, Model, Queue, QueueItem, Round, utc_now
from pipeline import rounds
from pipeline.calibration.calibrators import Calibrators
from pipeline.data.labels import compose_labels
from pipeline.data.loading import Unreadable
from pipeline.data.masks import Mask
from pipeline.data.project import Project
from pipeline.errors import DataError, UserError
from pipeline.files import atomic_folder
from pipeline.format import count
from pipeline.labeling.effort import estimated_clicks
from pipeline.labeling.encoding import LabelMap, only_inside
from pipeline.labeling.exchange import OutgoingImage, OutgoingQueue
from pipeline.labeling.manifest import (
    MANIFEST,
    MASKS,
    README,
    BadLine,
    ManifestImage,
    ManifestRegion,
    export_name,
    read_manifest,
)
from pipeline.labeling.proposals import Proposal, propose
from pipeline.labeling.tools import tool_named
from pipeline.leases import one_at_a_time
from pipeline.progress import Progress, silent
from pipeline.regions.outlines import polygons
from pipeline.steps.served_model import stored_calibrators
from pipeline.uncertainty.measures import MEASURES
from pipeline.uncertainty.served_model import open_model

_SAME_MOMENT = 2.0
"""Seconds by which the times of files that were written together may differ."""


@dataclass(frozen=True)
class _Work:
    """What is exported: read from the store at once, so that it fits together."""

    current: Round | None
    """The round whose turn it is; None for a queue that is exported beside the loop."""
    round_number: int | None
    """Of the queue."""
    queue: Queue
    regions: list[QueuedRegion]
    scores: dict[int, ImageScore]
    model: Model
    calibrators: Calibrators
    labels: dict[int, list[Path]] | None
    """With a review: the labels in force of each image, oldest first."""


@dataclass(frozen=True)
class _Entry:
    """An image of the queue with its queue items, best rank first; `place` counts images from 0 on."""

    image: Image
    items: list[QueueItem]
    name: str
    place: int

    @property
    def boxes(self) -> npt.NDArray[np.int32]:
        return np.array([(item.x, item.y, item.w, item.h) for item in self.items], dtype=np.int32)

    @property
    def outlines(self) -> list[str | None]:
        return [item.outline for item in self.items]


@dataclass(frozen=True)
class ExportReport:
    """The exported folder, and the images that could not be read, with the reason."""

    folder: Path
    images: int
    failed: list[tuple[str, str]]

    def lines(self) -> Iterator[str]:
        """The report as text."""
        for subject, reason in self.failed:
            yield f"not exported: {subject}: {reason}"
        yield f"Exported {count(self.images)} images to {self.folder}."


@one_at_a_time("export")
def export(
    project: Project,
    database: Database,
    *,
    queue: str | None = None,
    folder: Path | None = None,
    to: str | None = None,
    progress: Progress = silent,
) -> ExportReport:
    """Write a queue as a folder in a labeling tool's format, all of it or nothing.

    A proposed mask says something only inside the queued regions, so that a corrected one brings no unchecked
    prediction back. Of a review it is the label in force instead, and the pictures show the model's doubt of
    it. An image that cannot be read is left out, and recorded as a failure.

    Args:
        queue: its name; by default the current round's, which then goes on. The export of another one leaves
            the round as it is.
        folder: the exported folder itself. By default it is in `export.folder` and called as the queue is,
            with the tool's name behind it for any but `folder`. An earlier export there is replaced, unless
            something was put into it.
        to: the tool's name; `labeling.tool` by default.

    Raises:
        NotYourTurn: no queue has been selected.
        UserError: there is no such queue or tool, the folder cannot be written, holds masks or something
            else, or no image can be read.
    """
    tool = tool_named(to or project.config.labeling.tool)
    with database.session(write=False) as session:
        work = _read_work(session, project, queue)
    name = work.queue.name if tool.name == "folder" else f"{work.queue.name}-{tool.name}"
    default = project.path(project.config.export.folder) / name
    target = Path(os.path.abspath(folder if folder is not None else default))
    _refuse_occupied(target)
    entries = _entries(work.regions)
    failures: list[tuple[str, str]] = []
    clicks: dict[int, float] = {}
    written = 0
    with atomic_folder(target) as fresh:
        writer = tool.writer(fresh, _outgoing_queue(project, work))
        proposals = propose(
            [project.ref(entry.image) for entry in entries.values()],
            model=open_model(project, work.model.checkpoint_uri, calibrators=work.calibrators),
            label_of=None if work.labels is None else partial(_label_in_force, entries, work.labels),
        )
        for done, proposal in enumerate(proposals):
            progress("export", done, len(entries))
            entry = entries[proposal.image_id if isinstance(proposal, Proposal) else proposal.id]
            if isinstance(proposal, Unreadable):
                failures.append((entry.image.uri, proposal.reason))
                continue
            effort = estimated_clicks(proposal.mask, entry.boxes, entry.outlines)
            of_image = {item.id: float(of_item) for item, of_item in zip(entry.items, effort, strict=True)}
            try:
                writer.add(_outgoing_image(project, entry, proposal, work, of_image))
            except DataError as error:
                failures.append((entry.image.uri, str(error)))
                continue
            clicks.update(of_image)
            written += 1
        progress("export", len(entries), len(entries))
        if not written:
            raise UserError(
                f"None of the {len(entries)} images of queue {work.queue.name} can be read: {failures[0][1]}",
                "Put the files back, then run `segcurate export` again.",
            )
        writer.finish()
        _check_complete(fresh, written, target=target)
    with database.session() as session:
        _mark_exported(session, project, work, tool.name, target=target, failures=failures, clicks=clicks)
    return ExportReport(target, written, failures)


def _read_work(session: Session, project: Project, name: str | None) -> _Work:
    current, queue = _find_queue(session, name)
    model = models.promoted_model(session)
    if model is None:
        raise UserError("No model has been promoted yet.", "Run `segcurate status`.")
    regions = queue_items.queued_regions(session, queue_id=queue.id)
    if not regions:
        raise UserError(f"Queue {queue.name} is empty.", "Run `segcurate select` again.")
    scores: dict[int, ImageScore] = {}
    if queue.run_id is not None:
        image_ids = sorted({region.image.id for region in regions})
        scores = score_queries.scores_of_images(session, run_id=queue.run_id, image_ids=image_ids)
    of_round = None if queue.round_id is None else session.get_one(Round, queue.round_id)
    return _Work(
        current=current,
        round_number=None if of_round is None else of_round.number,
        queue=queue,
        regions=regions,
        scores=scores,
        model=model,
        calibrators=stored_calibrators(session, model.id, sampler=project.config.scoring.sampler),
        labels=None if queue.kind != "review" else _labels_in_force(session, project, regions),
    )


def _find_queue(session: Session, name: str | None) -> tuple[Round | None, Queue]:
    """The queue of this name; the current round only where it is the round's, whose turn it must be."""
    queue = None if name is None else queues.queue_by_name(session, name)
    if name is not None and queue is None:
        raise UserError(f"There is no queue {name!r}.", "Run `segcurate status`.")
    current = round_queries.current_round(session)
    if queue is not None and (current is None or queue.round_id != current.id):
        return None, queue
    current = rounds.require(session, "export")
    queue = queues.round_queue(session, current.id)
    if queue is None:
        raise UserError(f"Round {current.number} has no queue.", "Run `segcurate status`.")
    return current, queue


def _labels_in_force(
    session: Session, project: Project, regions: Sequence[QueuedRegion]
) -> dict[int, list[Path]]:
    """Masks in the order in which they are painted, by image id."""
    return {
        image_id: [
            project.path(label.mask_uri)
            for label in label_queries.labels_in_force(session, image_id=image_id)
        ]
        for image_id in {region.image.id for region in regions}
    }


def _label_in_force(entries: dict[int, _Entry], labels: dict[int, list[Path]], image_id: int) -> Mask:
    image = entries[image_id].image
    return compose_labels(labels[image_id], (image.width, image.height))


def _refuse_occupied(target: Path) -> None:
    """Never replace what is not an export, nor an export in which somebody has worked."""
    if not target.exists() and not target.is_symlink():
        return
    if target.is_symlink() or not target.is_dir():
        raise UserError(f"{target} is not a folder.", "Move it away, or name another folder with `--folder`.")
    if not any(target.iterdir()):
        return
    if not (target / MANIFEST).is_file():
        raise UserError(f"{target} holds something else.", "Name another folder with `--folder`.")
    if any(path.is_file() for path in (target / MASKS).rglob("*")):
        raise UserError(
            f"{target / MASKS} holds masks already.",
            f"Import them with `segcurate import {target}`, or name another folder with `--folder`.",
        )
    added = _newest_addition(target)
    if added is not None:
        raise UserError(
            f"{added} was put there after the export.",
            "Import it or move it away, or name another folder with `--folder`.",
        )


def _newest_addition(target: Path) -> Path | None:
    """A file that is younger than the README, which is written last."""
    readme = target / README
    if not readme.is_file():
        return None
    files = (path for path in target.rglob("*") if path.is_file() and not path.is_symlink())
    written = readme.stat().st_mtime
    return next((path for path in files if path.stat().st_mtime > written + _SAME_MOMENT), None)


def _entries(regions: Sequence[QueuedRegion]) -> dict[int, _Entry]:
    """The images of a queue by id, best rank first."""
    items: dict[int, list[QueueItem]] = defaultdict(list)
    images = {image.id: image for _, image in regions}
    for item, image in regions:
        items[image.id].append(item)
    return {
        image_id: _Entry(
            image=images[image_id],
            items=of_image,
            name=export_name(rank=of_image[0].rank, image_id=image_id, uri=images[image_id].uri),
            place=place,
        )
        for place, (image_id, of_image) in enumerate(items.items())
    }


def _outgoing_queue(project: Project, work: _Work) -> OutgoingQueue:
    return OutgoingQueue(
        name=work.queue.name,
        round=work.round_number,
        kind=work.queue.kind,
        project=project.config.name,
        model=work.model.name,
        labels=LabelMap(project.config.data),
        how=project.config.export.images,
        overlays=project.config.export.overlays,
    )


def _outgoing_image(
    project: Project, entry: _Entry, proposal: Proposal, work: _Work, clicks: dict[int, float]
) -> OutgoingImage:
    image, score = entry.image, work.scores.get(entry.image.id)
    class_names = project.config.data.class_names
    return OutgoingImage(
        image_id=image.id,
        uri=image.uri,
        sha256=image.sha256,
        width=image.width,
        height=image.height,
        name=entry.name,
        rank=entry.items[0].rank,
        place=entry.place,
        source=project.image(image.uri),
        scores={} if score is None else {measure: getattr(score, measure) for measure in MEASURES},
        mask=only_inside(proposal.mask, entry.boxes, entry.outlines),
        map=proposal.map,
        title=proposal.title,
        regions=[_region(item, clicks[item.id], class_names=class_names) for item in entry.items],
    )


def _region(item: QueueItem, clicks: float, *, class_names: list[str]) -> ManifestRegion:
    return ManifestRegion(
        item=item.id,
        rank=item.rank,
        x=item.x,
        y=item.y,
        w=item.w,
        h=item.h,
        outline=item.outline,
        polygons=[] if item.outline is None else polygons(item.outline, (item.x, item.y, item.w, item.h)),
        measure=item.measure,
        score=item.score,
        predicted_class=None if item.predicted_class is None else class_names[item.predicted_class],
        slice=item.slice,
        inclusion_probability=item.inclusion_probability,
        reason=item.reason,
        clicks=clicks,
    )


def _check_complete(folder: Path, written: int, *, target: Path) -> None:
    """Two exports at once clear each other's unfinished folder away: the loser must not publish the rest."""
    manifest = folder / MANIFEST
    entries = read_manifest(manifest) if manifest.is_file() else iter(())
    if sum(_is_complete(folder, entry) for entry in entries) != written:
        raise UserError(f"Another export to {target} is running.", "Wait for it, or name another folder.")


def _is_complete(folder: Path, entry: ManifestImage | BadLine) -> bool:
    if isinstance(entry, BadLine):
        return False
    files = (entry.image, entry.premask, entry.overlay, entry.heatmap)
    return all(path is None or os.path.lexists(folder / path) for path in files)


def _mark_exported(
    session: Session,
    project: Project,
    work: _Work,
    tool: str,
    *,
    target: Path,
    failures: list[tuple[str, str]],
    clicks: dict[int, float],
) -> None:
    current = rounds.require(session, "export") if work.current is not None else None
    queue = queues.queue_by_name(session, work.queue.name)
    ids = {region.item.id for region in work.regions}
    if queue is None or {item.id for item in queue_items.queue_items(session, queue.id)} != ids:
        raise UserError(
            f"Queue {work.queue.name} was made anew while it was exported.",
            "Run `segcurate export` again.",
        )
    if queue.export_uri is None or tool == project.config.labeling.tool:
        queue.export_uri = project.uri(target)
    queue.exported_at = utc_now()
    queues.record_place(session, queue_id=queue.id, tool=tool, url="", place=project.uri(target))
    queue_items.set_clicks(session, clicks)
    failure_queries.clear_failures(session, "export")
    failure_queries.record_failures(session, "export", failures)
    if current is not None:
        rounds.advance(session, current, "export")
