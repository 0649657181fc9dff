"""Import: masks that came back become labels, and the round closes when its queue is labeled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import images as image_queries
from db.queries import labels as queries
from db.queries import queues
from db.queries import rounds as round_queries
from db.queries.labels import LabeledRegion, QueuedRegion
from db.tables import Image, Queue, utc_now
from pipeline import rounds
from pipeline.config import IGNORE, Project
from pipeline.data.masks import store_mask
from pipeline.errors import DataError
from pipeline.labeling.encoding import COVERED, LabelMap, is_whole_image, painted_shares
from pipeline.labeling.manifest import MANIFEST, BadLine, ManifestImage, export_name, read_manifest
from pipeline.labeling.neutral import (
    Delivery,
    NameIndex,
    Refusal,
    Wanted,
    find_masks,
    locate,
    readable_name,
)
from pipeline.leases import one_at_a_time
from pipeline.progress import Progress, silent

LABELS_FOLDER = "labels"
"""Below the work folder: every mask that came back, under the hash of its content."""


@dataclass
class ImportReport:
    """What an import did. `imported` and `unchanged` count masks."""

    queue: str
    imported: int = 0
    unchanged: int = 0
    labeled_pixels: int = 0
    """Of the imported masks."""
    refused: list[tuple[str, str]] = field(default_factory=list)
    """Files, or lines of the manifest, that were not taken, each with its reason."""
    missing: list[str] = field(default_factory=list)
    """Images of the queue that no mask came for."""
    unpainted: list[str] = field(default_factory=list)
    """Queued regions that their image's mask leaves more than half unpainted: they stay queued."""
    open_items: int = 0
    """Queue items that still wait for a label."""
    released: int = 0
    """Queue items that went back to the pool because the round was closed without them."""
    closed: bool = False
    """Whether the round is closed, and the next one open."""

    def lines(self) -> list[str]:
        """The report in words; every file that was not taken has a line."""
        said = [f"{self.queue}: {self.imported} masks imported, {self.unchanged} unchanged."]
        said += [f"refused: {subject}: {reason}" for subject, reason in self.refused]
        said += [f"unpainted: {region}" for region in self.unpainted]
        if self.missing:
            said.append(f"{len(self.missing)} images of the queue have no mask yet, first {self.missing[0]}.")
        if self.released:
            said.append(f"{self.released} regions went back to the pool without a label.")
        if self.closed:
            said.append("The round is closed, and the next one is open.")
        elif self.open_items:
            said.append(
                f"{self.open_items} regions still wait for a label; "
                "`--close` ends the round with what is there."
            )
        return said


@dataclass(frozen=True)
class _Target:
    """An image of the queue, and its queue items."""

    image: Image
    name: str
    item_ids: list[int]
    boxes: npt.NDArray[np.int32]
    indices: list[int]
    outlines: list[str | None]


@dataclass(frozen=True)
class _Annotation:
    """A mask that was read and kept, ready to be written down."""

    target: _Target
    mask_uri: str
    mask_sha256: str
    labeled_pixels: int
    painted_at: float
    covered: npt.NDArray[np.bool_]
    """Whether each of the target's items counts as labeled, [R]."""
    whole_image: bool


@one_at_a_time("import")
def import_labels(
    project: Project,
    database: Database,
    *,
    folder: Path,
    annotator: str | None = None,
    close: bool = False,
    source: Literal["import", "simulation"] = "import",
    queue: str | None = None,
    progress: Progress = silent,
) -> ImportReport:
    """Take the masks of a folder back into the queue that they were exported from.

    The same masks again change nothing; another mask of an image is the next version of its label, also in a
    round that is closed. What cannot be taken is refused with its reason, and the rest goes in.

    Args:
        folder: an exported folder, or any folder of masks that are named after the export or the images.
        close: release the items that got no label, and close the round.
        source: `simulation` when the masks are known ones: what they leave unpainted has no class, and was
            looked at.
        queue: the queue that a folder without a manifest belongs to; by default the current round's.

    Raises:
        DataError: the folder is missing, holds no mask, or is of no queue of this project.
        NotYourTurn: the queue has not been exported yet.
    """
    delivery = locate(folder)
    entries = list(read_manifest(delivery.manifest)) if delivery.manifest else []
    with database.session(write=False) as session:
        of_queue = _find_queue(session, delivery, entries, queue)
        regions = queries.queued_regions(session, queue_id=of_queue.id)
        paths, refused = find_masks(delivery)
        namesakes = queries.images_named(session, stems={path.stem for path in paths})
    if not (paths or refused or close):
        raise DataError(
            f"There is no mask in {delivery.masks}.", "Save the masks there, then import the folder again."
        )
    targets = _targets(regions)
    refused += _check_manifest(entries, targets, delivery)
    names = _names(targets, namesakes)
    matched = _match(paths, delivery=delivery, names=names, refused=refused)
    label_map = LabelMap(project.config.data)
    annotations: list[_Annotation] = []
    for done, (path, image_id) in enumerate(matched):
        progress("import", done, len(matched))
        try:
            annotation = _read_mask(
                project,
                path,
                targets[image_id],
                label_map=label_map,
                looked_at_all=source == "simulation",
            )
        except DataError as error:
            refused.append(Refusal(file=_shown(path, delivery), reason=str(error)))
            continue
        if annotation.labeled_pixels or source == "simulation":
            annotations.append(annotation)
        else:
            refused.append(Refusal(file=_shown(path, delivery), reason="Nothing in it is painted."))
    progress("import", len(matched), len(matched))
    read = {annotation.target.image.id for annotation in annotations}
    report = ImportReport(
        queue=of_queue.name,
        refused=[(refusal.file, refusal.reason) for refusal in refused],
        missing=[target.image.uri for image_id, target in targets.items() if image_id not in read],
        unpainted=[place for annotation in annotations for place in _unpainted(annotation)],
    )
    with database.session() as session:
        for annotation in annotations:
            _record(session, of_queue, annotation, annotator=annotator, source=source, report=report)
        failures = [(project.uri(delivery.folder / file), reason) for file, reason in report.refused]
        image_queries.clear_failures(session, "import")
        image_queries.record_failures(session, "import", failures)
        _close(session, of_queue, close=close, report=report)
    return report


def _find_queue(
    session: Session, delivery: Delivery, entries: Sequence[ManifestImage | BadLine], name: str | None
) -> Queue:
    """The queue that the manifest or the caller names, or else the current round's."""
    named = {entry.queue for entry in entries if isinstance(entry, ManifestImage)}
    if delivery.manifest is not None:
        if len(named) != 1:
            raise DataError(
                f"{delivery.manifest} names {len(named)} queues, not one.", "Export the queue again."
            )
        name = name or next(iter(named))
        if named != {name}:
            raise DataError(f"{delivery.manifest} is not of queue {name!r}.", "Leave the queue's name out.")
    current = round_queries.current_round(session)
    if name is not None:
        found = queues.queue_by_name(session, name)
    else:
        current = rounds.require(session, "import")
        found = round_queries.round_queue(session, current.id)
    if found is None:
        raise DataError(
            f"{delivery.folder} is of queue {name!r}, which this project does not have.",
            "Import it into the project that it was exported from.",
        )
    if current is not None and found.round_id == current.id:
        rounds.require(session, "import")
    return found


def _targets(regions: Sequence[QueuedRegion]) -> dict[int, _Target]:
    """The images of a queue by id, best rank first."""
    grouped: dict[int, list[QueuedRegion]] = defaultdict(list)
    for region in regions:
        grouped[region.image.id].append(region)
    return {
        image_id: _Target(
            image=of_image[0].image,
            name=export_name(rank=of_image[0].item.rank, image_id=image_id, uri=of_image[0].image.uri),
            item_ids=[region.item.id for region in of_image],
            boxes=np.array(
                [(item.x, item.y, item.w, item.h) for item, _ in of_image], dtype=np.int32
            ).reshape(-1, 4),
            indices=[item.region_index for item, _ in of_image],
            outlines=[item.outline for item, _ in of_image],
        )
        for image_id, of_image in grouped.items()
    }


def _check_manifest(
    entries: Sequence[ManifestImage | BadLine], targets: dict[int, _Target], delivery: Delivery
) -> list[Refusal]:
    """The lines that contradict the store; an image whose content is another one's is no target any more.

    Raises:
        DataError: no line agrees with the store.
    """
    refused: list[Refusal] = []
    for entry in entries:
        if isinstance(entry, BadLine):
            refused.append(Refusal(file=f"{MANIFEST} line {entry.number}", reason=entry.reason))
            continue
        target = targets.get(entry.image_id)
        if target is None or target.image.sha256 != entry.sha256:
            targets.pop(entry.image_id, None)
            reason = "The store's image of this id has another content, or is not in this queue."
            refused.append(Refusal(file=f"{MANIFEST} image {entry.image_id}", reason=reason))
    if entries and len(refused) == len(entries):
        raise DataError(
            f"{delivery.manifest} was not exported from this project.",
            "Import it into the project that it was exported from.",
        )
    return refused


def _names(targets: dict[int, _Target], namesakes: Sequence[Image]) -> NameIndex:
    """What a mask may be called; a duplicate's name means the image that it is a duplicate of."""
    wanted = [
        Wanted(image_id=image_id, uri=target.image.uri, name=target.name)
        for image_id, target in targets.items()
    ]
    for image in namesakes:
        if image.id not in targets:
            original = targets.get(image.duplicate_of or image.id)
            wanted.append(
                Wanted(image_id=image.id, uri=image.uri, name=None)
                if original is None
                else Wanted(image_id=original.image.id, uri=image.uri, name=original.name)
            )
    return NameIndex(wanted)


def _match(
    paths: Sequence[Path], *, delivery: Delivery, names: NameIndex, refused: list[Refusal]
) -> list[tuple[Path, int]]:
    """The mask files that belong to one image of the queue, and alone do, with the image's id."""
    by_image: dict[int, list[Path]] = defaultdict(list)
    for path in paths:
        relative = path.relative_to(delivery.masks)
        try:
            by_image[names.image_of(PurePosixPath(relative))].append(path)
        except DataError as error:
            refused.append(Refusal(file=_shown(path, delivery), reason=str(error)))
    for of_image in by_image.values():
        if len(of_image) > 1:
            files = ", ".join(_shown(path, delivery) for path in of_image)
            reason = f"One image has several masks: {files}. Leave the one that counts."
            refused += [Refusal(file=_shown(path, delivery), reason=reason) for path in of_image]
    return [(of_image[0], image_id) for image_id, of_image in by_image.items() if len(of_image) == 1]


def _read_mask(
    project: Project, path: Path, target: _Target, *, label_map: LabelMap, looked_at_all: bool
) -> _Annotation:
    """Read one mask and keep it under its content.

    Raises:
        DataError: the file is no mask of this image.
        UserError: the work folder cannot be written.
    """
    mask = label_map.read(path, size=(target.image.width, target.image.height))
    stored, sha256 = store_mask(project.workdir / LABELS_FOLDER, mask)
    return _Annotation(
        target=target,
        mask_uri=project.uri(stored),
        mask_sha256=sha256,
        labeled_pixels=int(np.count_nonzero(mask != IGNORE)),
        painted_at=path.stat().st_mtime,
        covered=(painted_shares(mask, target.boxes, target.outlines) >= COVERED) | looked_at_all,
        whole_image=is_whole_image(mask, target.boxes, target.outlines),
    )


def _record(
    session: Session,
    queue: Queue,
    annotation: _Annotation,
    *,
    annotator: str | None,
    source: str,
    report: ImportReport,
) -> None:
    """Write one mask down: its label, the regions that it covers, and what became of its queue items."""
    target, covered = annotation.target, annotation.covered
    if annotation.labeled_pixels:
        image = target.image
        whole = [LabeledRegion(0, 0, image.width, image.height)]
        label = queries.record_label(
            session,
            image_id=image.id,
            queue_id=queue.id,
            mask_uri=annotation.mask_uri,
            mask_sha256=annotation.mask_sha256,
            labeled_pixels=annotation.labeled_pixels,
            source=source,
            annotator=annotator,
            labeled_at=_labeled_at(annotation.painted_at, queue),
            regions=whole if annotation.whole_image else _covered(annotation),
        )
        if label is None:
            report.unchanged += 1
            return
        report.imported += 1
        report.labeled_pixels += annotation.labeled_pixels
    left = "queued" if _is_open(session, queue) else "released"
    for status, chosen in (("labeled", covered), (left, ~covered)):
        ids = [item_id for item_id, this in zip(target.item_ids, chosen, strict=True) if this]
        queries.set_status(session, item_ids=ids, status=status)


def _covered(annotation: _Annotation) -> list[LabeledRegion]:
    target = annotation.target
    return [
        LabeledRegion(*box, region_index=0 if outline is None else index, outline=outline)
        for box, index, outline, covered in zip(
            target.boxes.tolist(), target.indices, target.outlines, annotation.covered.tolist(), strict=True
        )
        if covered
    ]


def _close(session: Session, queue: Queue, *, close: bool, report: ImportReport) -> None:
    """Close the queue's round when nothing in it waits for a label, or when the caller says so."""
    if not _is_open(session, queue):
        return
    waiting = [item.id for item in queues.queue_items(session, queue.id, status="queued")]
    if waiting and not close:
        report.open_items = len(waiting)
        return
    report.released = rounds.close(session, rounds.require(session, "import"))
    report.closed = True


def _is_open(session: Session, queue: Queue) -> bool:
    current = round_queries.current_round(session)
    return current is not None and current.id == queue.round_id and current.state == "import"


def _labeled_at(painted_at: float, queue: Queue) -> datetime:
    """When a file was last painted, as far as that can be believed: after its queue was made, and by now."""
    now = utc_now().timestamp()
    earliest = (queue.exported_at or queue.created_at).timestamp()
    return datetime.fromtimestamp(max(earliest, min(painted_at, now)), tz=UTC)


def _unpainted(annotation: _Annotation) -> list[str]:
    boxes = annotation.target.boxes[~annotation.covered].tolist()
    return [f"{annotation.target.name}: x {x}, y {y}, w {w}, h {h}" for x, y, w, h in boxes]


def _shown(path: Path, delivery: Delivery) -> str:
    return readable_name(path.relative_to(delivery.folder))
