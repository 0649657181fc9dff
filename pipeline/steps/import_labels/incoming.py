"""The annotations that came for one queue, matched with its images and regions: the labels to record."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt
from sqlalchemy.orm import Session

from db.queries import images, queue_items
from db.queries.labels import LabeledRegion
from db.queries.queue_items import QueuedBox, QueuedImage
from db.tables import Queue, utc_now
from pipeline.config import IGNORE
from pipeline.data.masks import Mask, store_mask
from pipeline.data.project import Project
from pipeline.errors import DataError
from pipeline.evaluation.agreement import Agreement
from pipeline.labeling.encoding import COVERED, is_whole_image, painted_shares
from pipeline.labeling.exchange import Annotation, DecodedMask, Rejected, shown
from pipeline.labeling.manifest import MANIFEST, BadLine, ManifestImage, export_name
from pipeline.labeling.names import NameIndex, Wanted

LABELS_FOLDER = "labels"
"""Below the work folder: every mask that came back, under the hash of its content."""


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
    """A mask that was read and kept, ready to be written down.

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
        """The items that stay unlabeled, in words."""
        boxes = self.target.boxes[~self.covered].tolist()
        return [f"{self.target.name}: x {x}, y {y}, w {w}, h {h}" for x, y, w, h in boxes]


@dataclass
class Inbox:
    """The annotations for one queue.

    Attributes:
        targets: its images by id, best rank first.
        labels: of the masks, in the order in which they came.
        skipped: the images that an annotator would not label.
        agreement: by queue item; of images that several annotators have labeled.
    """

    queue: Queue
    targets: dict[int, Target]
    names: NameIndex | None = None
    labels: list[NewLabel] = field(default_factory=list)
    skipped: set[int] = field(default_factory=set)
    agreement: dict[int, Agreement | None] = field(default_factory=dict)

    @classmethod
    def of(cls, session: Session, queue: Queue) -> Inbox:
        """An empty one."""
        return cls(queue=queue, targets=_targets(queue_items.queued_boxes(session, queue_id=queue.id)))

    def learn_names(self, session: Session, names: Collection[str]) -> None:
        """Find out what these names of a source may mean. A duplicate's name means its original."""
        stems = {PurePosixPath(name).stem for name in names}
        wanted = [
            Wanted(image_id=image_id, uri=target.image.uri, name=target.name)
            for image_id, target in self.targets.items()
        ]
        for image in images.images_named(session, stems=stems):
            if image.id not in self.targets:
                original = self.targets.get(image.duplicate_of or image.id)
                wanted.append(
                    Wanted(image_id=image.id, uri=image.uri, name=None)
                    if original is None
                    else Wanted(image_id=original.image.id, uri=image.uri, name=original.name)
                )
        self.names = NameIndex(wanted)

    def image_named(self, name: str) -> int:
        """The id of the image that a name means, once it has been learned.

        Raises:
            DataError: it means none of this queue, or several.
        """
        if self.names is None:
            raise DataError(f"It is of no image of {self.queue.name}.")
        return self.names.image_of(PurePosixPath(name))

    def check_manifest(self, entries: Iterable[ManifestImage | BadLine]) -> Iterator[Rejected]:
        """The lines that contradict the store; an image whose content is another one's is no target any more.

        Raises:
            DataError: no line agrees with the store.
        """
        agreeing = lines = 0
        for entry in entries:
            lines += 1
            if isinstance(entry, BadLine):
                yield Rejected(subject=f"{MANIFEST} line {entry.number}", reason=shown(entry.reason))
                continue
            target = self.targets.get(entry.image_id)
            if target is None or target.image.sha256 != entry.sha256:
                self.targets.pop(entry.image_id, None)
                reason = "The store's image of this id has another content, or is not in this queue."
                yield Rejected(subject=f"{MANIFEST} image {entry.image_id}", reason=reason)
            else:
                agreeing += 1
        if lines and not agreeing:
            raise DataError(
                f"The {MANIFEST} of {self.queue.name} was not exported from this project.",
                "Import it into the project that it was exported from.",
            )

    def target_of(self, annotation: Annotation) -> Target:
        """The image that an annotation is of.

        Raises:
            DataError: it is of none in this queue, its name could mean several, or its content is another's.
        """
        image_id = (
            annotation.image if isinstance(annotation.image, int) else self.image_named(annotation.image)
        )
        target = self.targets.get(image_id)
        if target is None:
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

    def take(
        self,
        project: Project,
        annotation: Annotation,
        target: Target,
        *,
        annotator: str | None,
        looked_at_all: bool = False,
    ) -> None:
        """Decode an annotation and keep its mask under its content.

        Args:
            annotator: who drew it, where the annotation does not say.
            looked_at_all: what is not painted has no class, and counts as labeled all the same.

        Raises:
            DataError: it is no mask of this image, or nothing in it is painted.
            UserError: the work folder cannot be written.
        """
        if annotation.skipped:
            self.skipped.add(target.image.id)
            return
        painted = annotation.read(target.image.width, target.image.height)
        labeled_pixels = int(np.count_nonzero(painted.mask != IGNORE))
        if not labeled_pixels and not looked_at_all:
            raise DataError("Nothing in it is painted.")
        stored, sha256 = store_mask(project.workdir / LABELS_FOLDER, painted.mask)
        self.labels.append(
            self._annotation(
                annotation,
                target,
                painted,
                project.uri(stored),
                sha256,
                labeled_pixels,
                annotator,
                looked_at_all,
            )
        )

    def _annotation(
        self,
        annotation: Annotation,
        target: Target,
        painted: DecodedMask,
        uri: str,
        sha256: str,
        labeled_pixels: int,
        annotator: str | None,
        looked_at_all: bool,
    ) -> NewLabel:
        mask: Mask = painted.mask
        shares = painted_shares(mask, target.boxes, target.outlines)
        return NewLabel(
            target=target,
            subject=annotation.subject,
            mask_uri=uri,
            mask_sha256=sha256,
            labeled_pixels=labeled_pixels,
            labeled_at=_believable(annotation.labeled_at, self.queue),
            covered=(shares >= COVERED) | looked_at_all,
            whole_image=is_whole_image(mask, target.boxes, target.outlines),
            annotator=shown(annotation.annotator) if annotation.annotator else annotator,
            seconds=annotation.seconds,
            origin=annotation.origin,
            overlapping=painted.overlapping,
        )


def _targets(boxes: Iterable[tuple[QueuedBox, QueuedImage]]) -> dict[int, Target]:
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


def _believable(at: datetime | None, queue: Queue) -> datetime:
    """When something was painted, as far as that can be believed: after its queue was made, and by now."""
    now = utc_now()
    earliest = queue.exported_at or queue.created_at
    if at is None:
        return now
    return max(earliest, min(at.astimezone(UTC), now))
