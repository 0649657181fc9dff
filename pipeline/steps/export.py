"""Export: a queue in the format of a labeling tool."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import failures as failure_queries
from db.queries import labels as label_queries
from db.queries import queue_items, queues
from db.queries import scores as score_queries
from db.tables import Image, ImageScore, Model, Queue, QueueItem, Round, utc_now
from pipeline import rounds
from pipeline.calibration.calibrators import Calibrators
from pipeline.config import HeatmapSize
from pipeline.data.labels import compose_labels
from pipeline.data.loading import Unreadable
from pipeline.data.masks import Mask
from pipeline.data.project import Project
from pipeline.errors import DataError, UserError
from pipeline.files import atomic_folder
from pipeline.format import counted, none_can
from pipeline.labeling.effort import estimated_clicks
from pipeline.labeling.encoding import LabelMap, only_inside
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
from pipeline.labeling.outgoing import OutgoingImage, OutgoingQueue
from pipeline.labeling.proposals import Proposal, empty_proposals, propose
from pipeline.labeling.tools import tool_named
from pipeline.leases import one_at_a_time
from pipeline.progress import Progress, silent
from pipeline.regions.outlines import polygons
from pipeline.steps.ready import model_of_queue, queue_to_export
from pipeline.steps.served_model import stored_calibrators
from pipeline.uncertainty.measures import MEASURES
from pipeline.uncertainty.served_model import open_model

_SAME_MOMENT = 2.0
"""Seconds by which the times of files that were written together may differ."""


_ITEM_FIELDS = (
    *("rank", "x", "y", "w", "h", "outline", "measure", "score"),
    *("slice", "inclusion_probability", "reason"),
)
"""Columns of a queue item that the manifest has under the same name."""


@dataclass(frozen=True)
class _QueuedImage:
    """An image of the queue with its items, best rank first; `position` counts images from 0 on."""

    image: Image
    items: list[QueueItem]
    position: int


@dataclass(frozen=True)
class _Work:
    """The data of an export, read in one transaction.

    Attributes:
        current: the round that goes on afterwards; None for a queue that is exported beside the loop.
        round_number: of the queue.
        images: by id, best rank first.
        model: whose masks are proposed; None where they are empty.
        calibrators: the model's.
        labels: of a review, the masks of the labels in force by image id, oldest first.
    """

    current: Round | None
    round_number: int | None
    queue: Queue
    images: dict[int, _QueuedImage]
    scores: dict[int, ImageScore]
    model: Model | None
    calibrators: Calibrators | None
    labels: dict[int, list[Path]] | None

    @property
    def why_empty(self) -> str | None:
        """Why no masks are proposed; None where they are."""
        if self.queue.kind == "held_out":
            return "a model's proposal would sway the labels that it is measured on"
        return "there is no model yet" if self.model is None else None

    def label(self, image_id: int) -> Mask:
        """The label in force of an image of a review."""
        image = self.images[image_id].image
        return compose_labels((self.labels or {})[image_id], (image.width, image.height))


@dataclass(frozen=True)
class ExportReport:
    """The exported folder, and the images that could not be read, with the reason.

    Attributes:
        why_empty: where the masks to correct are empty, why.
        masks: the folder in it that takes the masks; None where a labeling tool has them.
    """

    folder: Path
    images: int
    failed: list[tuple[str, str]]
    why_empty: str | None = None
    masks: str | None = None

    def lines(self) -> Iterator[str]:
        """The report as text."""
        for subject, reason in self.failed:
            yield f"not exported: {subject}: {reason}"
        yield f"Exported {counted(self.images, 'image')} to {self.folder}."
        if self.why_empty is not None:
            yield f"The masks to start from are empty: {self.why_empty}."
        if self.masks is not None:
            yield f"Put the painted masks into its folder `{self.masks}`, then import it; see its README.md."


@one_at_a_time("export")
def export(
    project: Project,
    database: Database,
    *,
    queue: str | None = None,
    folder: Path | None = None,
    to: str | None = None,
    heatmaps: HeatmapSize | None = None,
    progress: Progress = silent,
) -> ExportReport:
    """Write a queue as a folder in a labeling tool's format, completely or not at all.

    A proposed mask is void outside of the queued regions, so that a corrected one contains no unchecked
    prediction. For a review it is the label in force, and the pictures show the model's doubt of it. Before
    there is a model it is empty, and so it is for held-out images. An image
    that cannot be read is left out, and recorded as a failure.

    Args:
        queue: its name; by default the current round's queue, and then the round goes on. The export of
            another queue leaves the round as it is.
        folder: the exported folder itself. By default it is in `export.folder` and has the queue's name,
            followed by the tool's unless that is `folder`. An earlier export there is replaced, unless files
            were added to it.
        to: the tool's name; `labeling.tool` by default.
        heatmaps: instead of `export.heatmaps`.

    Raises:
        NotYourTurn: no queue has been selected.
        UserError: there is no such queue or tool, the folder cannot be written, contains masks or other
            files, or no image can be read.
    """
    tool = tool_named(to or project.config.labeling.tool)
    with database.session(write=False) as session:
        work = _read_work(session, project, queue)
    name = work.queue.name if tool.name == "folder" else f"{work.queue.name}-{tool.name}"
    default = project.path(project.config.export.folder) / name
    target = Path(os.path.abspath(folder if folder is not None else default))
    _refuse_occupied(target)
    failures: list[tuple[str, str]] = []
    clicks: dict[int, float] = {}
    total = len(work.images)
    with atomic_folder(target) as fresh:
        writer = tool.writer(fresh, _outgoing_queue(project, work, heatmaps))
        for done, proposal in enumerate(_proposals(project, work, progress)):
            progress("export", done, total)
            queued = work.images[proposal.image_id if isinstance(proposal, Proposal) else proposal.id]
            try:
                if isinstance(proposal, Unreadable):
                    raise DataError(proposal.reason)
                outgoing = _outgoing_image(project, work, queued, proposal)
                writer.add(outgoing)
            except DataError as error:
                failures.append((queued.image.uri, str(error)))
            else:
                known = ((region.item, region.clicks) for region in outgoing.regions)
                clicks.update((item, effort) for item, effort in known if effort is not None)
        progress("export", total, total)
        written = total - len(failures)
        if not written:
            raise UserError(
                f"{none_can(total, f'image of {work.queue.name}', 'be read')}: {failures[0][1]}",
                "Put the files back, then run `segcurate export` again.",
            )
        writer.finish()
        _check_complete(fresh, written, target=target)
    with database.session() as session:
        _mark_exported(session, project, work, tool.name, target=target, failures=failures, clicks=clicks)
    masks = MASKS if tool.name == "folder" else None
    return ExportReport(target, written, failures, why_empty=work.why_empty, masks=masks)


def _proposals(project: Project, work: _Work, progress: Progress) -> Iterator[Proposal | Unreadable]:
    images = [project.ref(queued.image) for queued in work.images.values()]
    if work.model is None or work.calibrators is None:
        return empty_proposals(images)
    return propose(
        images,
        model=open_model(project, work.model.checkpoint_uri, calibrators=work.calibrators),
        label_of=None if work.labels is None else work.label,
        progress=progress,
    )


def _read_work(session: Session, project: Project, name: str | None) -> _Work:
    current, queue = queue_to_export(session, name)
    model = model_of_queue(session, queue)
    regions = queue_items.queued_regions(session, queue_id=queue.id)
    if not regions:
        raise UserError(f"Queue {queue.name} is empty.", "Run `segcurate select` again.")
    items: dict[int, list[QueueItem]] = defaultdict(list)
    for item, image in regions:
        items[image.id].append(item)
    images = {image.id: image for _, image in regions}
    scores: dict[int, ImageScore] = {}
    if queue.run_id is not None:
        scores = score_queries.scores_of_images(session, run_id=queue.run_id, image_ids=sorted(images))
    labels = {
        image_id: [
            project.path(label.mask_uri)
            for label in label_queries.labels_in_force(session, image_id=image_id)
        ]
        for image_id in images
        if queue.kind == "review"
    }
    of_round = None if queue.round_id is None else session.get_one(Round, queue.round_id)
    return _Work(
        current=current,
        round_number=None if of_round is None else of_round.number,
        queue=queue,
        images={
            image_id: _QueuedImage(images[image_id], of_image, position)
            for position, (image_id, of_image) in enumerate(items.items())
        },
        scores=scores,
        model=model,
        calibrators=None
        if model is None
        else stored_calibrators(session, model.id, sampler=project.config.scoring.sampler),
        labels=labels or None,
    )


def _refuse_occupied(target: Path) -> None:
    """Never replace a folder that is no export, nor an export that files were added to."""
    if not target.exists() and not target.is_symlink():
        return
    if target.is_symlink() or not target.is_dir():
        raise UserError(f"{target} is not a folder.", "Move it away, or name another folder with `--folder`.")
    if not any(target.iterdir()):
        return
    if not (target / MANIFEST).is_file():
        raise UserError(f"{target} contains other files.", "Name another folder with `--folder`.")
    if any(path.is_file() for path in (target / MASKS).rglob("*")):
        raise UserError(
            f"{target / MASKS} contains masks already.",
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


def _outgoing_queue(project: Project, work: _Work, heatmaps: HeatmapSize | None) -> OutgoingQueue:
    return OutgoingQueue(
        name=work.queue.name,
        round=work.round_number,
        kind=work.queue.kind,
        project=project.config.name,
        root=project.root,
        model=None if work.model is None else work.model.name,
        labels=LabelMap(project.config.data),
        how=project.config.export.images,
        overlays=project.config.export.overlays,
        heatmaps=heatmaps or project.config.export.heatmaps,
    )


def _outgoing_image(project: Project, work: _Work, queued: _QueuedImage, proposal: Proposal) -> OutgoingImage:
    image, items, score = queued.image, queued.items, work.scores.get(queued.image.id)
    boxes = np.array([(item.x, item.y, item.w, item.h) for item in items], dtype=np.int32)
    outlines = [item.outline for item in items]
    effort: list[float | None] = [None] * len(items)
    if work.model is not None:  # an empty mask tells no effort
        effort = estimated_clicks(proposal.mask, boxes, outlines).tolist()
    return OutgoingImage(
        image_id=image.id,
        uri=image.uri,
        sha256=image.sha256,
        width=image.width,
        height=image.height,
        name=export_name(rank=items[0].rank, image_id=image.id, uri=image.uri),
        rank=items[0].rank,
        position=queued.position,
        source=project.image(image.uri),
        scores={} if score is None else {measure: getattr(score, measure) for measure in MEASURES},
        mask=only_inside(proposal.mask, boxes, outlines),
        map=proposal.map,
        title=proposal.title,
        regions=[
            _region(item, clicks, class_names=project.config.data.class_names)
            for item, clicks in zip(items, effort, strict=True)
        ],
    )


def _region(item: QueueItem, clicks: float | None, *, class_names: list[str]) -> ManifestRegion:
    return ManifestRegion(
        **{name: getattr(item, name) for name in _ITEM_FIELDS},
        item=item.id,
        polygons=[] if item.outline is None else polygons(item.outline, (item.x, item.y, item.w, item.h)),
        predicted_class=None if item.predicted_class is None else class_names[item.predicted_class],
        clicks=clicks,
    )


def _check_complete(folder: Path, written: int, *, target: Path) -> None:
    """Of two exports at once, one deletes the other's unfinished folder, which must not be published then."""
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
    ids = {item.id for queued in work.images.values() for item in queued.items}
    if queue is None or {item.id for item in queue_items.queue_items(session, queue.id)} != ids:
        raise UserError(
            f"Queue {work.queue.name} was replaced during its export.",
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
