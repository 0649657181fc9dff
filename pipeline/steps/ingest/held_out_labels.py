"""Labels of held-out images that came back from their queue become the masks that models are measured on."""

from __future__ import annotations

from typing import Any

import numpy as np

from db.engine import Database
from db.queries import images as image_queries
from db.queries import labels, queue_items, queues
from pipeline.config import IGNORE
from pipeline.data.labels import compose_labels
from pipeline.data.masks import store_mask
from pipeline.data.project import LABELS_FOLDER, Project
from pipeline.steps.ingest.splits import grow_splits, note_open_splits


def take_held_out_labels(project: Project, database: Database) -> tuple[str, ...]:
    """Give the images of each finished queue of held-out images their labels as masks, and make the next
    version of their split.

    A queue is finished when nothing in it waits for a label, so that a split grows once a queue. A corrected
    label makes another version. Does nothing where every label is taken already: run again after a kill, it
    goes on. A mask of the user's own stays.

    Returns:
        A sentence for each new version.

    Raises:
        DataError: a stored label cannot be read.
    """
    with database.session(write=False) as session:
        finished = [
            queue
            for queue in queues.held_out_queues(session)
            if "queued" not in queue_items.count_items(session, queue.id)
        ]
        composed = {
            row.id: (row, of_image)
            for queue in finished
            for row, of_image in labels.labels_of_queue(session, queue.id)
        }
    rows: list[dict[str, Any]] = []
    for row, of_image in composed.values():
        own = row.mask_uri is not None and not project.is_label(row.mask_uri)
        if row.split not in ("test", "calibration") or own or of_image[-1].mask_sha256 == row.mask_sha256:
            continue
        size = (row.width, row.height)
        mask = compose_labels([project.path(label.mask_uri) for label in of_image], size)
        path, digest = store_mask(project.workdir / LABELS_FOLDER, mask)
        if digest != row.mask_sha256:
            classes = sorted(set(np.unique(mask).tolist()) - {IGNORE})
            rows.append(
                {"id": row.id, "mask_uri": project.uri(path), "mask_classes": classes, "mask_sha256": digest}
            )
    if not rows:
        return ()
    with database.session() as session:
        image_queries.update_images(session, rows)
        image_queries.set_split_version(session, [row["id"] for row in rows], None)
        grown = grow_splits(session, project)
        note_open_splits(session, project)
    return grown
