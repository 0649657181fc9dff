"""Annotate: existing masks in place of an annotator, for simulations."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from db.engine import Database
from db.queries import failures as failure_queries
from db.queries import queue_items, queues
from db.tables import QueueItem
from pipeline.data.masks import read_mask
from pipeline.data.project import Project
from pipeline.data.rendered_masks import mask_codec
from pipeline.errors import DataError
from pipeline.format import counted
from pipeline.labeling.encoding import LabelMap, only_inside
from pipeline.labeling.folder import locate
from pipeline.labeling.manifest import ManifestImage, read_manifest
from pipeline.progress import Progress, silent


@dataclass(frozen=True)
class AnnotateReport:
    """What an annotation by existing masks did.

    Attributes:
        painted: queue items.
        unreadable: masks, recorded as failures.
    """

    painted: int
    unreadable: int

    def lines(self) -> list[str]:
        """The report as text."""
        unreadable = f", {counted(self.unreadable, 'mask')} could not be read" if self.unreadable else ""
        return [f"{counted(self.painted, 'region')} painted with existing masks{unreadable}."]


def annotate(
    project: Project, database: Database, folder: Path, *, progress: Progress = silent
) -> AnnotateReport:
    """Paint the queued regions of an exported folder with the known masks, and nothing else.

    An image without a known mask, or with one that cannot be read, is left out; the latter is recorded as a
    failure. Painting again writes the same files.

    Raises:
        DataError: the folder is no export of a queue of this project.
        UserError: the folder cannot be written.
    """
    delivery = locate(folder)
    if delivery.manifest is None:
        raise DataError(
            f"{folder} is not an exported folder.", "Name the folder that `segcurate export` wrote."
        )
    entries = [entry for entry in read_manifest(delivery.manifest) if isinstance(entry, ManifestImage)]
    if not delivery.masks.is_dir():
        raise DataError(
            f"{folder} was written for a labeling tool, which masks are not painted into.",
            "Run `segcurate export --to folder`.",
        )
    items: dict[int, list[QueueItem]] = defaultdict(list)
    with database.session(write=False) as session:
        queue = queues.queue_by_name(session, entries[0].queue) if entries else None
        if queue is None:
            raise DataError(f"{folder} is of no queue of this project.", "Export the queue again.")
        regions = queue_items.queued_regions(session, queue_id=queue.id)
    images = {image.id: image for _, image in regions}
    for item, image in regions:
        items[image.id].append(item)
    codec, label_map = mask_codec(project), LabelMap(project.config.data)
    failures: list[tuple[str, str]] = []
    painted = 0
    for done, entry in enumerate(entries, start=1):
        progress("annotate", done, len(entries))
        image = images.get(entry.image_id)
        if image is None or image.mask_uri is None:
            continue
        try:
            known = read_mask(project.path(image.mask_uri), codec, size=(image.width, image.height))
        except DataError as error:
            failures.append((image.mask_uri, str(error)))
            continue
        asked = items[image.id]
        boxes = np.array([(item.x, item.y, item.w, item.h) for item in asked], dtype=np.int32)
        mask = only_inside(known, boxes, [item.outline for item in asked])
        label_map.write(delivery.masks / f"{Path(entry.mask or '').stem}.png", mask)
        painted += len(asked)
    with database.session() as session:
        failure_queries.clear_failures(session, "annotate")
        failure_queries.record_failures(session, "annotate", failures)
    return AnnotateReport(painted, len(failures))
