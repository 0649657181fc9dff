"""The first labels: existing masks of pool images, or of regions of them.

What is labeled is written down first, as the items of the queue `initial`, in one transaction; then the
masks follow, a page of images at a time. A kill in between loses nothing: the items that still wait are
taken up again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import count
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import failures as failure_queries
from db.queries import images as image_queries
from db.queries import labels, paging, queue_items, queues
from db.queries.labels import LabeledRegion, record_label
from db.queries.queue_items import set_status
from db.tables import Image, Queue, QueueItem, utc_now
from pipeline import rounds
from pipeline.config import IGNORE, InitialSplit
from pipeline.data.masks import MaskCodec, read_mask, store_mask
from pipeline.data.project import LABELS_FOLDER, Project
from pipeline.data.rendered_masks import mask_codec
from pipeline.errors import DataError
from pipeline.format import agree
from pipeline.labeling.encoding import only_inside, painted_shares
from pipeline.progress import Progress
from pipeline.regions.shapes import Regions
from pipeline.steps.ingest.initial_regions import InitialRegions

PAGE = 256
"""Images in a transaction."""

REASON = "its mask was there when the project started"


@dataclass(frozen=True)
class InitialLabels:
    """What became of the first labels in this run."""

    images: int = 0
    regions: int = 0
    failures: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _NewLabel:
    """A stored mask: the items that it labels, and those in which it has no class."""

    image: Image
    uri: str
    sha256: str
    pixels: int
    labeled: list[QueueItem]
    released: list[QueueItem]


def label_initial(
    project: Project, database: Database, *, named: Sequence[str], workers: int, progress: Progress
) -> InitialLabels:
    """Record the initial labels that are not recorded yet, and open the first round once there are any.

    Args:
        named: the URIs of the images that `splits.initial` lists, where it has a `list` or a `folder`.

    Raises:
        UserError: the labels cannot be written.
    """
    with ThreadPoolExecutor(workers) as threads, TemporaryFile() as file:
        regions = InitialRegions(project, file)
        pages = _pages(lambda: database.session(write=False), project.config.splits.initial, named)
        regions.prepare(pages, threads, progress)
        with database.session() as session:
            queue, warnings = _plan(session, project, regions, named=named)
            waiting = queue_items.count_items(session, queue.id).get("queued", 0) if queue is not None else 0
            failure_queries.record_failures(session, "ingest", list(regions.unusable.items()))
    if queue is None:
        return InitialLabels(warnings=tuple(warnings))
    codec = mask_codec(project)
    images = labeled = failures = after_id = 0
    with ThreadPoolExecutor(workers) as threads:
        while page := _waiting_page(database, queue.id, after_id=after_id):
            after_id = page[-1][0].id
            failed: list[tuple[str, str]] = []
            outcomes = list(threads.map(lambda entry: _label(project, codec, *entry), page))
            with database.session() as session:
                for (image, items), outcome in zip(page, outcomes, strict=True):
                    if isinstance(outcome, str):
                        failed.append((image.mask_uri or image.uri, outcome))
                        _settle(session, items, status="released")
                        continue
                    if _record(session, queue.id, outcome):
                        images += 1
                        labeled += len(outcome.labeled)
                failure_queries.record_failures(session, "ingest", failed)
            failures += len(failed)
            progress("initial labels", labeled, waiting)
    with database.session() as session:
        if labels.has_labels(session, queue_id=queue.id):
            rounds.open_first(session)
    return InitialLabels(images=images, regions=labeled, failures=failures, warnings=tuple(warnings))


def _pages(
    reading: Callable[[], AbstractContextManager[Session]], spec: InitialSplit, named: Sequence[str]
) -> Iterator[list[Image]]:
    """The images whose regions are to be planned, page by page; none once a draw is made."""
    listed = None if spec.list is None and spec.folder is None else set(named)
    after_id = 0
    while True:
        with reading() as session:
            queue = queues.initial_queue(session)
            if queue is not None and _is_drawn(spec):
                return
            queue_id = -1 if queue is None else queue.id
            page = queue_items.images_to_label(session, queue_id=queue_id, after_id=after_id, limit=PAGE)
        if not page:
            return
        after_id = page[-1].id
        yield [image for image in page if listed is None or image.uri in listed]


def _is_drawn(spec: InitialSplit) -> bool:
    return spec.fraction is not None or spec.count is not None


def _plan(
    session: Session, project: Project, regions: InitialRegions, *, named: Sequence[str]
) -> tuple[Queue | None, list[str]]:
    """The queue `initial` with an item for everything that is to be labeled. A draw is made once."""
    spec = project.config.splits.initial
    queue = queues.initial_queue(session)
    if queue is not None and _is_drawn(spec):
        return queue, []
    warnings: list[str] = []
    if _is_drawn(spec):
        found = _draw(session, spec, regions, seed=project.config.splits.seed, warnings=warnings)
    else:
        found = _every(session, spec, regions, named=named)
    ranks: Iterator[int] | None = None
    rows: list[dict[str, Any]] = []
    for image_id, of_image, row in found:
        if queue is None:
            queue = _new_queue(session, project)
        if ranks is None:
            ranks = count(queue_items.next_rank(session, queue.id))
        place = dict(zip("xywh", of_image.boxes[row].tolist(), strict=True))
        outline = None if of_image.outlines is None else of_image.outlines[row]
        named_by = {"queue_id": queue.id, "rank": next(ranks), "image_id": image_id}
        shape = {"region_index": int(of_image.index[row]), "outline": outline, **place}
        rows.append({**named_by, **shape, "slice": "initial", "reason": REASON})
        if len(rows) >= paging.PAGE:
            queue_items.insert_items(session, rows)
            rows = []
    queue_items.insert_items(session, rows)
    if queue is None and not labels.has_labels(session):
        warnings.append(
            "There is nothing to train on: no image outside of calibration and test that `splits.initial` "
            "allows has a mask. Add masks."
        )
    return queue, warnings


def _new_queue(session: Session, project: Project) -> Queue:
    splits = project.config.splits
    queue = Queue(
        name="initial",
        kind="initial",
        strategy="initial",
        unit=splits.initial.unit,
        seed=splits.seed,
        spec=splits.initial.model_dump(mode="json"),
    )
    session.add(queue)
    session.flush()
    return queue


def _draw(
    session: Session, spec: InitialSplit, regions: InitialRegions, *, seed: int, warnings: list[str]
) -> Iterator[tuple[int, Regions, int]]:
    """Regions drawn uniformly without replacement among those of the images that have a mask."""
    pool = image_queries.pool_sizes(session)
    per_image = regions.counts(pool)
    total = int(per_image.sum())
    masked = np.flatnonzero(pool.has_mask)
    ends = np.cumsum(per_image[masked])
    available = int(ends[-1]) if len(ends) else 0
    wanted = spec.count if spec.count is not None else max(1, round((spec.fraction or 0) * total))
    if available < wanted and available:
        have = agree(available, "has", "have")
        warnings.append(f"`splits.initial` asks for {wanted} {spec.unit}s; only {available} {have} a mask.")
    generator = np.random.default_rng([seed, 2])
    for pick in np.sort(generator.choice(available, size=min(wanted, available), replace=False)).tolist():
        place = int(np.searchsorted(ends, pick, side="right"))
        row = masked[place]
        image = session.get_one(Image, int(pool.ids[row]))
        of_image = regions.of(image)
        if of_image is not None:
            yield image.id, of_image, pick - int(ends[place] - per_image[row])


def _every(
    session: Session, spec: InitialSplit, regions: InitialRegions, *, named: Sequence[str]
) -> Iterator[tuple[int, Regions, int]]:
    """All regions of the images that are to be labeled."""
    for page in _pages(lambda: nullcontext(session), spec, named):
        for image in page:
            of_image = regions.of(image)
            if of_image is not None:
                yield from ((image.id, of_image, row) for row in range(len(of_image)))
        session.expunge_all()


def _waiting_page(database: Database, queue_id: int, *, after_id: int) -> list[tuple[Image, list[QueueItem]]]:
    with database.session(write=False) as session:
        page = queue_items.waiting_images(session, queue_id, after_id=after_id, limit=PAGE)
        items: dict[int, list[QueueItem]] = {image.id: [] for image in page}
        for item in queue_items.waiting_items(session, queue_id, image_ids=list(items)):
            items[item.image_id].append(item)
        return [(image, items[image.id]) for image in page]


def _label(project: Project, codec: MaskCodec, image: Image, items: list[QueueItem]) -> _NewLabel | str:
    """Store the image's mask where items ask for it, 255 elsewhere; or why that can't be done."""
    try:
        if image.mask_uri is None:
            raise DataError(f"{image.uri} has no mask any more.")
        mask = read_mask(project.path(image.mask_uri), codec, size=(image.width, image.height))
    except DataError as error:
        return str(error)
    boxes = np.array([(item.x, item.y, item.w, item.h) for item in items], dtype=np.int32)
    outlines = [item.outline for item in items]
    painted = only_inside(mask, boxes, outlines)
    known = (painted_shares(mask, boxes, outlines) > 0).tolist()
    labeled = [item for item, holds in zip(items, known, strict=True) if holds]
    released = [item for item, holds in zip(items, known, strict=True) if not holds]
    path, sha256 = store_mask(project.workdir / LABELS_FOLDER, painted)
    return _NewLabel(
        image=image,
        uri=project.uri(path),
        sha256=sha256,
        pixels=int((painted != IGNORE).sum()),
        labeled=labeled,
        released=released,
    )


def _record(session: Session, queue_id: int, label: _NewLabel) -> bool:
    """Whether the label is a new one, or a new version."""
    new = None
    if label.labeled:
        new = record_label(
            session,
            image_id=label.image.id,
            queue_id=queue_id,
            mask_uri=label.uri,
            mask_sha256=label.sha256,
            labeled_pixels=label.pixels,
            source="initial",
            annotator=None,
            labeled_at=utc_now(),
            regions=[
                LabeledRegion(
                    *(item.x, item.y, item.w, item.h),
                    region_index=0 if item.outline is None else item.region_index,
                    outline=item.outline,
                )
                for item in label.labeled
            ],
        )
    _settle(session, label.labeled, status="labeled")
    _settle(session, label.released, status="released")
    return new is not None


def _settle(session: Session, items: Sequence[QueueItem], *, status: str) -> None:
    set_status(session, item_ids=[item.id for item in items], status=status)
