"""A project whose queue several annotators have labeled, made without a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import insert, select

from db.queries.agreement import set_agreement
from db.tables import QueueItem, RegionScore
from pipeline.evaluation.agreement import region_agreement
from tests.factories import (
    Mask,
    Workspace,
    add_label,
    add_model,
    ask,
    change,
    fetch,
    make_project,
    new_image,
    new_item,
    new_queue,
    new_run,
    put,
    score_columns,
)

SIDE, CELL = 32, 16
CLASSES = ["sky", "road", "pole"]
CELLS = [(x, y, CELL, CELL) for y in (0, CELL) for x in (0, CELL)]
"""The regions of each image: every one is an item of the queue."""


class SharedQueue(Workspace):
    """A project with one queue; images have ids from 1."""

    def label(
        self,
        image_id: int,
        mask: Mask,
        *,
        by: str | None,
        seconds: float | None = None,
        regions: Sequence[tuple[Any, ...]] = CELLS,
    ) -> int:
        """What one annotator drew, as an import records it; by default in every region. Returns its id."""
        known = {"regions": regions, "annotator": by, "seconds": seconds}
        return ask(self.database, add_label, self.project, image_id, 1, mask, **known).id

    def settle(self, image_id: int, masks: list[Mask]) -> None:
        """Mark the items of an image as labeled, and store how its masks agree."""
        mine = QueueItem.image_id == image_id
        items = fetch(self.database, select(QueueItem).where(mine).order_by(QueueItem.rank))
        change(self.database, QueueItem, mine, status="labeled")
        boxes = np.array([(item.x, item.y, item.w, item.h) for item in items], np.int32)
        found = region_agreement(np.stack(masks), boxes, [None] * len(items), num_classes=len(CLASSES))
        agreement = {item.id: one for item, one in zip(items, found, strict=True) if one is not None}
        ask(self.database, set_agreement, agreement)


def make_shared_queue(
    root: Path, *, images: int, expected_entropy: npt.NDArray[np.float64] | None = None
) -> SharedQueue:
    """Images of four regions each, all of them queued, in round 1 with a promoted model.

    Args:
        expected_entropy: of each region [images, 4]; without it the scores are without samples. The mutual
            information is a tenth of what is left to 1.
    """
    made = make_project(
        root, name="shared", data={"classes": CLASSES}, evaluation={"resamples": 200, "block": 1}
    )
    with made.database.session() as session:
        model = add_model(session, state="import")
        run = put(session, new_run(model.id, scorer_hash="0" * 64))
        queue = put(session, new_queue(round_id=model.round_id, run_id=run.id))
        for number in range(images):
            place = {"group_name": f"g{number + 1}", "position": number + 1}
            image = put(session, new_image(f"images/{number + 1}.png", width=SIDE, height=SIDE, **place))
            for index, box in enumerate(CELLS):
                seen = {"region_index": index, "predicted_class": 1}
                known = {"measure": "entropy", "score": 0.5, "reason": "entropy 0.50", "clicks": index + 1.0}
                rank = 1 + len(CELLS) * number + index
                session.add(new_item(queue.id, rank, image.id, box, **seen, **known))
                values = score_columns(pixels=CELL * CELL, **seen, **dict(zip("xywh", box, strict=True)))
                if expected_entropy is not None:
                    expected = float(expected_entropy[number, index])
                    values |= {"expected_entropy": expected, "mutual_information": (1 - expected) / 10}
                session.execute(insert(RegionScore).values(run_id=run.id, image_id=image.id, **values))
    return SharedQueue(*made)


def filled(value: int) -> Mask:
    """A mask of one class."""
    return np.full((SIDE, SIDE), value, np.uint8)


def disputing(shares: npt.NDArray[np.float64], *, value: int = 1, ground: int = 0) -> Mask:
    """A mask that gives each region's upper share [4] another class than the ground's."""
    mask = filled(ground)
    for (x, y, w, h), share in zip(CELLS, shares.tolist(), strict=True):
        mask[y : y + round(share * h), x : x + w] = value
    return mask
