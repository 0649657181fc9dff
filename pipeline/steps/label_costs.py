"""What labels cost an annotator, and a queue that ends where the clicks are spent: for simulations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import labels as label_queries
from db.queries import models, queue_items, queues
from db.queries.labels import LabeledRegion
from db.queries.queue_items import QueuedRegion
from db.tables import Image, Label, Queue
from pipeline import rounds
from pipeline.data.labels import compose_labels
from pipeline.data.masks import Mask, MaskCodec, read_mask
from pipeline.data.project import Project
from pipeline.data.rendered_masks import mask_codec
from pipeline.errors import DataError, UserError
from pipeline.format import count
from pipeline.labeling.effort import correcting_clicks, estimated_clicks
from pipeline.labeling.encoding import LabelMap
from pipeline.labeling.manifest import MANIFEST, ManifestImage, read_manifest

KEPT_MASKS = 8
"""Masks of images that are kept while a queue is cut: its neighbours by rank lie in any image."""


@dataclass(frozen=True)
class LabelCosts:
    """All labels in force, and what they cost.

    Attributes:
        labels: regions, or images.
        pixels: with a class.
        clicks: to draw the labels' own borders (see `labeling.effort`).
        clicks_correcting: to correct the proposals of the queues' models; to draw, where there was no model.
    """

    labels: int
    pixels: int
    clicks: float
    clicks_correcting: float


def label_costs(project: Project, database: Database) -> LabelCosts:
    """The costs of all labels in force.

    Raises:
        DataError: a label, or a proposal of an exported queue, cannot be read.
    """
    pixels = regions = 0
    drawing = correcting = 0.0
    label_map = LabelMap(project.config.data)
    with database.session(write=False) as session:
        found = list(_labels(session))
        proposals = {queue.id: _proposals(project, queue) for _, queue, _, _ in found if queue.run_id}
    for label, queue, size, covered in found:
        mask = compose_labels([project.path(label.mask_uri)], size)
        ordered = sorted(covered, key=lambda region: region[:5])
        boxes = np.array([region[:4] for region in ordered], dtype=np.int32).reshape(-1, 4)
        outlines = [region.outline for region in ordered]
        drawn = float(estimated_clicks(mask, boxes, outlines).sum())
        proposal = proposals.get(queue.id, {}).get(label.image_id)
        if proposal is None:
            correcting += drawn
        else:
            proposed = label_map.read(proposal, size=size)
            correcting += float(correcting_clicks(mask, proposed, boxes, outlines).sum())
        drawing += drawn
        pixels += label.labeled_pixels
        regions += len(ordered)
    return LabelCosts(regions, pixels, drawing, correcting)


def cut_queue(project: Project, database: Database, *, clicks: float) -> int:
    """Shorten the round's draft of a queue to what an annotator with existing masks draws until all labels
    have cost `clicks`; the region that reaches them is the last. One region stays in any case.
    Cutting again changes nothing.

    Masks are read by rank, and none behind the last region. The probability of the audit slice becomes that
    of its shorter draw.

    Returns:
        The items that are left.

    Raises:
        NotYourTurn: no queue has been selected.
        UserError: the whole queue costs less.
    """
    spent = label_costs(project, database).clicks
    with database.session(write=False) as session:
        current = rounds.require(session, "export")
        queue = queues.round_queue(session, current.id)
        items = [] if queue is None else queue_items.queued_regions(session, queue_id=queue.id)
    left = 0
    for cost in _costs_by_rank(project, items):
        if left and spent >= clicks:
            break
        spent, left = spent + cost, left + 1
    if spent < clicks or queue is None:
        raise UserError(
            f"All {count(len(items))} regions that `{'' if queue is None else queue.strategy}` could queue "
            f"cost {count(round(spent))} clicks with the labels before them, and the budget is "
            f"{count(round(clicks))}.",
            "Give smaller budgets with `--budgets`, or loosen `selection.per_image_cap` and "
            "`selection.no_touching`.",
        )
    with database.session() as session:
        queue_items.keep_first(session, queue_id=queue.id, items=left)
    return left


def _labels(
    session: Session,
) -> Iterator[tuple[Label, Queue, tuple[int, int], set[LabeledRegion]]]:
    """Every label in force with its queue, the size of its image, and its regions."""
    sizes = {image.id: (image.width, image.height) for image in models.training_labels(session)}
    for label in label_queries.labels_in_force(session):
        covered = label_queries.regions_in_force(session, queue_id=label.queue_id, image_id=label.image_id)
        yield label, session.get_one(Queue, label.queue_id), sizes[label.image_id], covered


def _proposals(project: Project, queue: Queue) -> Mapping[int, Path]:
    """The proposed masks of an exported queue, by image id."""
    if queue.export_uri is None:
        return {}
    folder = project.path(queue.export_uri)
    return {
        entry.image_id: folder / entry.premask
        for entry in read_manifest(folder / MANIFEST)
        if isinstance(entry, ManifestImage) and entry.premask is not None
    }


def _costs_by_rank(project: Project, items: Sequence[QueuedRegion]) -> Iterator[float]:
    """The clicks that each item takes to draw, by rank; 0 where its mask cannot be read."""
    codec = mask_codec(project)
    kept: dict[int, Mask | None] = {}
    for item, image in items:
        if image.id not in kept:
            while len(kept) >= KEPT_MASKS:
                del kept[next(iter(kept))]
            kept[image.id] = _mask_of(project, image, codec)
        mask = kept[image.id]
        if mask is None:
            yield 0.0
        else:
            box = np.array([[item.x, item.y, item.w, item.h]], dtype=np.int32)
            yield float(estimated_clicks(mask, box, [item.outline])[0])


def _mask_of(project: Project, image: Image, codec: MaskCodec) -> Mask | None:
    if image.mask_uri is None:
        return None
    try:
        return read_mask(project.path(image.mask_uri), codec, size=(image.width, image.height))
    except DataError:  # `annotate` reports it
        return None
