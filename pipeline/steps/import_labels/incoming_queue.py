"""The annotations of one queue, matched with its images and regions: the labels that will be recorded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import images
from db.queries import labels as label_queries
from db.queries.labels import LabeledRegion
from db.queries.queue_items import QueuedBox, QueuedImage
from db.tables import Queue, utc_now
from pipeline.config import IGNORE
from pipeline.data.labels import compose_labels
from pipeline.data.masks import Mask, store_mask
from pipeline.data.project import LABELS_FOLDER, Project
from pipeline.errors import DataError
from pipeline.evaluation.agreement import Agreement, region_agreement
from pipeline.labeling.encoding import COVERED, is_whole_image, painted_shares
from pipeline.labeling.exchange import Annotation, Rejected, shown
from pipeline.labeling.manifest import (
    ManifestImage,
    export_name,
    rank_and_image,
)
from pipeline.labeling.names import KnownImage, NameIndex, OutsideQueue, UnknownName
from pipeline.steps.import_labels.report import MOST_LINES, ImportReport

MOST_IN_MEMORY = 8
"""Masks of one image that are kept until another image comes, for the agreement of its annotators."""
_LISTED = 8


@dataclass(frozen=True)
class Target:
    """An image of a queue, and its queue items, best rank first."""

    image: QueuedImage
    name: str
    item_ids: list[int]
    boxes: npt.NDArray[np.int32]
    indices: list[int]
    outlines: list[str | None]

    def regions(self) -> list[LabeledRegion]:
        """The items as a label that covers them names them."""
        return [
            LabeledRegion(*box, region_index=0 if outline is None else index, outline=outline)
            for box, index, outline in zip(self.boxes.tolist(), self.indices, self.outlines, strict=True)
        ]

    def whole_image(self) -> LabeledRegion:
        """The image as a label that covers all of it names it."""
        return LabeledRegion(0, 0, self.image.width, self.image.height)


@dataclass(frozen=True)
class NewLabel:
    """A stored mask, and what an import records of it.

    Attributes:
        covered: whether each of the target's items counts as labeled, [R].
        overlapping: pixels that shapes of different classes claimed.
    """

    target: Target
    subject: str
    mask_uri: str
    mask_sha256: str
    labeled_pixels: int
    labeled_at: datetime
    covered: npt.NDArray[np.bool_]
    whole_image: bool
    annotator: str | None
    seconds: float | None
    origin: str | None
    overlapping: int

    def regions(self) -> list[LabeledRegion]:
        """What the label covers: the whole image, or those items that are painted."""
        if self.whole_image:
            return [self.target.whole_image()]
        regions = zip(self.target.regions(), self.covered.tolist(), strict=True)
        return [region for region, covered in regions if covered]

    def unpainted(self) -> list[str]:
        """The items that stay unlabeled, as text."""
        boxes = self.target.boxes[~self.covered].tolist()
        return [f"{self.target.name}: x {x}, y {y}, w {w}, h {h}" for x, y, w, h in boxes]


class IncomingQueue:
    """The annotations of one queue.

    Attributes:
        targets: its images by id, best rank first.
        labels: to be recorded, in the order in which they came.
        skipped: the images that an annotator did not want to label.
        agreement: of the annotators, by queue item; None where no two of them label a pixel of the item.
    """

    def __init__(
        self,
        project: Project,
        database: Database,
        queue: Queue,
        targets: dict[int, Target],
        report: ImportReport,
    ) -> None:
        self.queue = queue
        self.targets = targets
        self.labels: list[NewLabel] = []
        self.skipped: set[int] = set()
        self.agreement: dict[int, Agreement | None] = {}
        self._project = project
        self._database = database
        self._report = report
        self._index: NameIndex | None = None
        self._labels_of: dict[int, list[NewLabel]] = defaultdict(list)
        self._named: dict[int, list[tuple[str, str]]] = defaultdict(list)
        """Subjects and names of the annotations that came by name, by image."""
        self._unknown: list[tuple[str, str]] = []
        self._image: Target | None = None
        self._masks: dict[str, Mask] = {}
        """The masks of `_image`, by their URIs, as many as are kept."""

    def agrees(self, entry: ManifestImage) -> bool:
        """Whether an entry of a manifest is of an image of this queue; otherwise that image is none of it."""
        target = self.targets.get(entry.image_id)
        if target is not None and target.image.sha256 == entry.sha256:
            return True
        self.targets.pop(entry.image_id, None)
        return False

    def take(self, annotation: Annotation, *, annotator: str | None, all_labeled: bool) -> None:
        """Decode an annotation and store its mask under its content.

        An annotation whose name no image of this queue has, or that means an image that another name meant
        before, is reported later, at the latest by `close`.

        Args:
            annotator: of an annotation that names none.
            all_labeled: unlabeled pixels have no class, and their regions count as labeled.

        Raises:
            OutsideQueue: it is of another image of the project.
            DataError: it is of no image of the project, is no mask of its image, or no pixel has a class.
            UserError: the work folder cannot be written.
        """
        try:
            target = self._target_of(annotation)
        except UnknownName:
            self._unknown.append((annotation.subject, str(annotation.image)))
            if len(self._unknown) == MOST_LINES:
                self._report_unknown()
            return
        if isinstance(annotation.image, str):
            named = self._named[target.image.id]
            if len(named) == MOST_LINES:
                raise DataError("One image has several masks.")
            named.append((annotation.subject, annotation.image))
            if len(named) > 1:
                return
        if annotation.skipped:
            self.skipped.add(target.image.id)
            return
        mask, overlapping = annotation.read(target.image.width, target.image.height)
        labeled_pixels = int(np.count_nonzero(mask != IGNORE))
        if not labeled_pixels and not all_labeled:
            raise DataError("Nothing in it is painted.")
        path, sha256 = store_mask(self._project.workdir / LABELS_FOLDER, mask)
        shares = painted_shares(mask, target.boxes, target.outlines)
        covered = (shares >= COVERED) | all_labeled
        if not all_labeled:
            self._report.classes.update(np.unique(mask[mask != IGNORE]).tolist())
            self._report.gaps += bool((shares < 1).any())
        label = NewLabel(
            target=target,
            subject=annotation.subject,
            mask_uri=self._project.uri(path),
            mask_sha256=sha256,
            labeled_pixels=labeled_pixels,
            labeled_at=_believable(annotation.labeled_at, self.queue),
            covered=covered,
            whole_image=is_whole_image(mask, target.boxes, target.outlines),
            annotator=shown(annotation.annotator) if annotation.annotator else annotator,
            seconds=annotation.seconds,
            origin=annotation.origin,
            overlapping=overlapping,
        )
        if self._image is not target:
            self._measure_agreement()
            self._image, self._masks = target, {}
        self.labels.append(label)
        self._labels_of[target.image.id].append(label)
        if len(self._masks) < MOST_IN_MEMORY:
            self._masks[label.mask_uri] = mask

    def close(self) -> None:
        """Finish when every annotation has come, and report what its name kept from being taken."""
        self._measure_agreement()
        self._report_unknown()
        several = {image_id: named for image_id, named in self._named.items() if len(named) > 1}
        self.labels = [label for label in self.labels if label.target.image.id not in several]
        for image_id, named in several.items():
            for item_id in self.targets[image_id].item_ids:
                self.agreement.pop(item_id, None)
            taken = {label.subject for label in self._labels_of[image_id]}
            files = ", ".join(shown(name) for _, name in named[:_LISTED])
            reason = f"One image has several masks: {files}. Leave the one that counts."
            for place, (subject, _) in enumerate(named):
                if place or subject in taken:  # what is wrong with the first may be reported already
                    self._report.reject(Rejected(subject, reason))

    def _report_unknown(self) -> None:
        """Report the annotations whose names no image of this queue has: other images of the project may."""
        if not self._unknown:
            return
        stems = {PurePosixPath(name).stem for _, name in self._unknown}
        with self._database.session(write=False) as session:
            index = self._index_of(session, stems)
            exported = _names_of_exports(session, stems)
        for subject, name in self._unknown:
            if PurePosixPath(name).stem in exported:
                self._report.leave_out(subject)
                continue
            try:
                index.image_of(PurePosixPath(name))
            except OutsideQueue:
                self._report.leave_out(subject)
            except DataError as error:
                self._report.reject(Rejected(subject, str(error)))
        self._unknown.clear()

    def _target_of(self, annotation: Annotation) -> Target:
        """The image that an annotation is of.

        Raises:
            UnknownName: no image of this queue has its name.
            OutsideQueue: it is of another image of the project.
            DataError: it is of no image, its name could mean several, or its content is another's.
        """
        image = annotation.image
        target = self.targets.get(image if isinstance(image, int) else self._image_named(image))
        if target is None:
            if isinstance(image, int) and self._has_image(image, annotation.sha256):
                raise OutsideQueue(f"It is of image {image}, which is not in this queue.")
            raise DataError(
                f"It is of no image of {self.queue.name}.",
                "Import it into the project that it was exported from.",
            )
        if annotation.sha256 is not None and annotation.sha256 != target.image.sha256:
            raise DataError(
                "The store's image of this id has another content.",
                "Import it into the project that it was exported from.",
            )
        return target

    def _has_image(self, image_id: int, sha256: str | None) -> bool:
        """Whether the project has an image of this id and content."""
        with self._database.session(write=False) as session:
            return any(image.sha256 == sha256 for image in images.images_by_id(session, [image_id]))

    def _image_named(self, name: str) -> int:
        """The id of the image that a name means.

        Raises:
            UnknownName: it means none of this queue.
            OutsideQueue: it means another image of the project.
            DataError: it means several.
        """
        if self._index is None:
            stems = {PurePosixPath(target.image.uri).stem for target in self.targets.values()}
            with self._database.session(write=False) as session:
                self._index = self._index_of(session, stems | set(map(str, self.targets)))
        return self._index.image_of(PurePosixPath(name))

    def _index_of(self, session: Session, stems: Collection[str]) -> NameIndex:
        """What names mean: the images of this queue, and those of others with one of these stems. The name of
        a duplicate means its original."""
        known = [
            KnownImage(image_id=image_id, uri=target.image.uri, name=target.name)
            for image_id, target in self.targets.items()
        ]
        for image in images.images_named(session, stems=stems, copies_of=self.targets):
            if image.id not in self.targets:
                original = self.targets.get(image.duplicate_of or image.id)
                known.append(
                    KnownImage(image_id=image.id, uri=image.uri, name=None)
                    if original is None
                    else KnownImage(image_id=original.image.id, uri=image.uri, name=original.name)
                )
        return NameIndex(known)

    def _measure_agreement(self) -> None:
        """How the annotators of the image that came last agree on its regions, by the newest mask of each."""
        target = self._image
        new = self._labels_of[target.image.id] if target is not None else []
        new = sorted((label for label in new if label.labeled_pixels), key=lambda label: label.labeled_at)
        if target is None or not new:
            return
        with self._database.session(write=False) as session:
            known = label_queries.labels_in_force(session, queue_id=self.queue.id, image_id=target.image.id)
            replaced = {label.origin for label in new} - {None}
            uris = {label.annotator: label.mask_uri for label in known if label.origin not in replaced}
        uris |= {label.annotator: label.mask_uri for label in new}
        if len(uris) < 2:
            return
        size = (target.image.width, target.image.height)
        votes = np.stack(
            [
                self._masks[uri] if uri in self._masks else compose_labels([self._project.path(uri)], size)
                for uri in uris.values()
            ]
        )
        found = region_agreement(
            votes, target.boxes, target.outlines, num_classes=self._project.config.data.num_classes
        )
        self.agreement |= zip(target.item_ids, found, strict=True)


def targets_of(boxes: Iterable[tuple[QueuedBox, QueuedImage]]) -> dict[int, Target]:
    """The images of a queue by id, with their items."""
    grouped: dict[QueuedImage, list[QueuedBox]] = defaultdict(list)
    for box, image in boxes:
        grouped[image].append(box)
    return {
        image.id: Target(
            image=image,
            name=export_name(rank=of_image[0].rank, image_id=image.id, uri=image.uri),
            item_ids=[box.item_id for box in of_image],
            boxes=np.array([box[2:6] for box in of_image], dtype=np.int32).reshape(-1, 4),
            indices=[box.region_index for box in of_image],
            outlines=[box.outline for box in of_image],
        )
        for image, of_image in grouped.items()
    }


def _names_of_exports(session: Session, names: Iterable[str]) -> set[str]:
    """Those of these names that an export of any queue gives to the files of an image of the project."""
    stated = {name: found for name in names if (found := rank_and_image(name)) is not None}
    uris = images.image_uris(session, sorted({image_id for _, image_id in stated.values()}))
    return {
        name
        for name, (rank, image_id) in stated.items()
        if image_id in uris and name == export_name(rank=rank, image_id=image_id, uri=uris[image_id])
    }


def _believable(at: datetime | None, queue: Queue) -> datetime:
    """When a mask was drawn: the time that its source states, but not before its queue, and not after now."""
    now = utc_now()
    earliest = queue.exported_at or queue.created_at
    if at is None:
        return now
    return max(earliest, min(at.astimezone(UTC), now))
