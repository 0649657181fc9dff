"""The first labels: existing masks of pool images, or of regions of them.

What is labeled is written down first, as the items of the queue `initial`, in one transaction; then the
masks follow, a page of images at a time. A kill in between loses nothing: the items that still wait are
taken up again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import images as queries
from db.queries.labels import record_label, set_status
from db.tables import Image, Queue, QueueItem, utc_now
from pipeline import rounds
from pipeline.config import IGNORE, InitialSplit, Project, RegionConfig
from pipeline.data.masks import Mask, MaskCodec, read_mask, store_mask
from pipeline.errors import DataError
from pipeline.progress import Progress
from pipeline.uncertainty.regions import region_boxes

PAGE = 256
"""Images in a transaction."""

REASON = "its mask was there when the project started"

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class InitialLabels:
    """What became of the first labels in this run."""

    images: int = 0
    regions: int = 0
    failures: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Painted:
    """A stored mask: the items that it answers, and those where it says nothing."""

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
    with database.session() as session:
        queue, warnings = _plan(session, project, named=named)
        waiting = queries.count_waiting(session, queue.id) if queue is not None else 0
    if queue is None:
        return InitialLabels(warnings=tuple(warnings))
    codec = MaskCodec.from_config(project.config.data)
    images = regions = failures = 0
    with ThreadPoolExecutor(workers) as threads:
        after_id = 0
        while page := _waiting_page(database, queue.id, after_id=after_id):
            after_id = page[-1][0].id
            outcomes = list(threads.map(lambda entry: _paint(project, codec, *entry), page))
            painted = [outcome for outcome in outcomes if isinstance(outcome, _Painted)]
            failed = [
                (outcome, entry) for outcome, entry in zip(outcomes, page, strict=True)
                if not isinstance(outcome, _Painted)
            ]  # fmt: skip
            with database.session() as session:
                for outcome in painted:
                    _record(session, queue.id, outcome)
                for _, (_, items) in failed:
                    _settle(session, items, status="released")
                queries.record_failures(
                    session,
                    "ingest",
                    [(image.mask_uri or image.uri, reason) for reason, (image, _) in failed],
                )
            images += sum(bool(outcome.labeled) for outcome in painted)
            regions += sum(len(outcome.labeled) for outcome in painted)
            failures += len(failed)
            progress("initial labels", regions, waiting)
    with database.session() as session:
        if queries.has_labels(session):
            rounds.open_first(session)
    return InitialLabels(images=images, regions=regions, failures=failures, warnings=tuple(warnings))


def _plan(session: Session, project: Project, *, named: Sequence[str]) -> tuple[Queue | None, list[str]]:
    """The queue `initial` with an item for everything that is to be labeled. A draw is made once."""
    spec, regions = project.config.splits.initial, _regions(project)
    queue = queries.initial_queue(session)
    drawn = spec.fraction is not None or spec.count is not None
    if queue is not None and drawn:
        return queue, []
    warnings: list[str] = []
    if drawn:
        boxes = _draw(session, spec, regions, seed=project.config.splits.seed, warnings=warnings)
    elif spec.list is not None or spec.folder is not None:
        boxes = _named_boxes(session, regions, queue=queue, named=named)
    else:
        boxes = _every_box(session, regions, queue=queue)
    ranks: Iterator[int] | None = None
    rows: list[dict[str, Any]] = []
    for image_id, region_index, (x, y, w, h) in boxes:
        if queue is None:
            queue = _new_queue(session, project)
        if ranks is None:
            ranks = count(queries.next_rank(session, queue.id))
        row = {"queue_id": queue.id, "rank": next(ranks), "image_id": image_id, "region_index": region_index}
        rows.append({**row, "x": x, "y": y, "w": w, "h": h, "slice": "initial", "reason": REASON})
        if len(rows) >= queries.PAGE:
            queries.insert_items(session, rows)
            rows = []
    queries.insert_items(session, rows)
    if queue is None:
        warnings.append("No pool image that `splits.initial` means has a mask: there is nothing to train on.")
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


def _regions(project: Project) -> RegionConfig:
    """The regions that `splits.initial` counts."""
    if project.config.splits.initial.unit == "image":
        return RegionConfig(kind="image")
    return project.config.scoring.regions


def _draw(
    session: Session, spec: InitialSplit, regions: RegionConfig, *, seed: int, warnings: list[str]
) -> Iterator[tuple[int, int, Box]]:
    """Regions drawn uniformly without replacement among those of the images that have a mask."""
    pool = queries.pool_sizes(session)
    sizes, which = np.unique(np.stack([pool.widths, pool.heights], axis=1), axis=0, return_inverse=True)
    counts = np.array([len(region_boxes(regions, w, h)) for w, h in sizes.tolist()], dtype=np.int64)
    per_image: npt.NDArray[np.int64] = counts[which.ravel()] if len(counts) else counts
    total = int(per_image.sum())
    masked = np.flatnonzero(pool.has_mask)
    ends = np.cumsum(per_image[masked])
    available = int(ends[-1]) if len(ends) else 0
    wanted = spec.count if spec.count is not None else max(1, round((spec.fraction or 0) * total))
    if available < wanted and available:
        warnings.append(f"`splits.initial` asks for {wanted} {spec.unit}s; only {available} have a mask.")
    generator = np.random.default_rng([seed, 2])
    for pick in np.sort(generator.choice(available, size=min(wanted, available), replace=False)).tolist():
        place = int(np.searchsorted(ends, pick, side="right"))
        row = masked[place]
        index = pick - int(ends[place] - per_image[row])
        boxes = region_boxes(regions, int(pool.widths[row]), int(pool.heights[row]))
        x, y, w, h = boxes[index].tolist()
        yield int(pool.ids[row]), index, (x, y, w, h)


def _named_boxes(
    session: Session, regions: RegionConfig, *, queue: Queue | None, named: Sequence[str]
) -> Iterator[tuple[int, int, Box]]:
    known = queries.images_in_queue(session, queue.id) if queue is not None else set[int]()
    for image in sorted(queries.images_by_uri(session, named).values(), key=lambda image: image.id):
        usable = image.split == "pool" and image.duplicate_of is None and image.mask_uri is not None
        if usable and image.id not in known:
            yield from _boxes(image, regions)


def _every_box(
    session: Session, regions: RegionConfig, *, queue: Queue | None
) -> Iterator[tuple[int, int, Box]]:
    after_id = 0
    queue_id = queue.id if queue is not None else -1
    while page := queries.images_to_label(session, queue_id=queue_id, after_id=after_id, limit=PAGE):
        after_id = page[-1].id
        for image in page:
            yield from _boxes(image, regions)
        session.expunge_all()


def _boxes(image: Image, regions: RegionConfig) -> Iterator[tuple[int, int, Box]]:
    for index, (x, y, w, h) in enumerate(region_boxes(regions, image.width, image.height).tolist()):
        yield image.id, index, (x, y, w, h)


def _waiting_page(database: Database, queue_id: int, *, after_id: int) -> list[tuple[Image, list[QueueItem]]]:
    with database.session(write=False) as session:
        page = queries.waiting_images(session, queue_id, after_id=after_id, limit=PAGE)
        items: dict[int, list[QueueItem]] = {image.id: [] for image in page}
        for item in queries.waiting_items(session, queue_id, image_ids=list(items)):
            items[item.image_id].append(item)
        return [(image, items[image.id]) for image in page]


def _paint(project: Project, codec: MaskCodec, image: Image, items: list[QueueItem]) -> _Painted | str:
    """Store the image's mask where items ask for it, 255 elsewhere; or why that can't be done."""
    try:
        if image.mask_uri is None:
            raise DataError(f"{image.uri} has no mask any more.")
        mask = read_mask(project.path(image.mask_uri), codec, size=(image.width, image.height))
    except DataError as error:
        return str(error)
    painted: Mask = np.full_like(mask, IGNORE)
    labeled: list[QueueItem] = []
    released: list[QueueItem] = []
    for item in items:
        window = np.s_[item.y : item.y + item.h, item.x : item.x + item.w]
        painted[window] = mask[window]
        (labeled if (mask[window] != IGNORE).any() else released).append(item)
    path, sha256 = store_mask(project.workdir / "labels", painted)
    return _Painted(
        image=image,
        uri=project.uri(path),
        sha256=sha256,
        pixels=int((painted != IGNORE).sum()),
        labeled=labeled,
        released=released,
    )


def _record(session: Session, queue_id: int, painted: _Painted) -> None:
    if painted.labeled:
        record_label(
            session,
            image_id=painted.image.id,
            queue_id=queue_id,
            mask_uri=painted.uri,
            mask_sha256=painted.sha256,
            labeled_pixels=painted.pixels,
            source="initial",
            annotator=None,
            labeled_at=utc_now(),
            boxes=[(item.x, item.y, item.w, item.h) for item in painted.labeled],
        )
    _settle(session, painted.labeled, status="labeled")
    _settle(session, painted.released, status="released")


def _settle(session: Session, items: Sequence[QueueItem], *, status: str) -> None:
    set_status(session, item_ids=[item.id for item in items], status=status)
