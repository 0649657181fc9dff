"""A project whose queue several annotators have labeled, made without a model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml
from sqlalchemy import insert

from db.engine import Database
from db.queries import labels
from db.queries.agreement import set_agreement
from db.queries.labels import LabeledRegion
from db.tables import Image, Model, Queue, QueueItem, RegionScore, Round, ScoringRun
from pipeline.config import IGNORE
from pipeline.data.masks import store_mask
from pipeline.data.project import Project, load_project
from pipeline.evaluation.agreement import region_agreement

SIDE, CELL = 32, 16
CLASSES = ["sky", "road", "pole"]
CELLS = [(x, y, CELL, CELL) for y in (0, CELL) for x in (0, CELL)]
"""The regions of each image: every one is an item of the queue."""

Mask = npt.NDArray[np.uint8]


@dataclass
class SharedQueue:
    """A project with one queue; images have ids from 1."""

    project: Project
    database: Database
    queue_id: int = 1

    def copied_to(self, root: Path) -> SharedQueue:
        """The same project in another folder."""
        shutil.copytree(self.project.root, root)
        project = load_project(root / "segcurate.yaml")
        return SharedQueue(project, Database(project.database_url), self.queue_id)

    def label(
        self,
        image_id: int,
        mask: Mask,
        *,
        by: str | None,
        seconds: float | None = None,
        regions: Sequence[tuple[int, int, int, int] | LabeledRegion] | None = None,
    ) -> int:
        """What one annotator drew, as an import records it; by default in every region. Returns its id."""
        path, digest = store_mask(self.project.workdir / "labels", mask)
        with self.database.session() as session:
            label = labels.record_label(
                session,
                image_id=image_id,
                queue_id=self.queue_id,
                mask_uri=self.project.uri(path),
                mask_sha256=digest,
                labeled_pixels=int((mask != IGNORE).sum()),
                source="import",
                annotator=by,
                labeled_at=datetime.now(UTC),
                seconds=seconds,
                regions=[
                    region if isinstance(region, LabeledRegion) else LabeledRegion(*region)
                    for region in (CELLS if regions is None else regions)
                ],
            )
            assert label is not None
            return label.id

    def settle(self, image_id: int, masks: list[Mask]) -> None:
        """Mark the items of an image as labeled, and store how its masks agree."""
        with self.database.session() as session:
            items = [
                item
                for item in session.query(QueueItem).order_by(QueueItem.rank)
                if item.image_id == image_id and item.queue_id == self.queue_id
            ]
            for item in items:
                item.status = "labeled"
            boxes = np.array([(item.x, item.y, item.w, item.h) for item in items], np.int32)
            found = region_agreement(np.stack(masks), boxes, [None] * len(items), num_classes=len(CLASSES))
            set_agreement(
                session,
                {item.id: one for item, one in zip(items, found, strict=True) if one is not None},
            )


def make_shared_queue(
    root: Path, *, images: int, expected_entropy: npt.NDArray[np.float64] | None = None
) -> SharedQueue:
    """Images of four regions each, all of them queued, in round 1 with a promoted model.

    Args:
        expected_entropy: of each region [images, 4]; without it the scores are without samples. The mutual
            information is a tenth of what is left to 1.
    """
    root.mkdir(parents=True, exist_ok=True)
    document = {
        "name": "shared",
        "data": {"images": ["images"], "classes": CLASSES},
        "evaluation": {"resamples": 200, "block": 1},
    }
    (root / "segcurate.yaml").write_text(yaml.safe_dump(document))
    project = load_project(root / "segcurate.yaml")
    database = Database(project.database_url)
    with database.session() as session:
        session.add(Round(number=1, state="import"))
        session.flush()
        session.add(
            Model(
                round_id=1,
                name="r01",
                status="promoted",
                checkpoint_uri="r01",
                config={},
                config_hash="0" * 64,
                labels_hash="0" * 64,
                seed=0,
                iterations=1,
            )
        )
        session.flush()
        session.add(ScoringRun(model_id=1, scorer_hash="0" * 64, scorer={}))
        session.flush()
        session.add(
            Queue(
                round_id=1,
                name="round-01",
                kind="selected",
                run_id=1,
                strategy="entropy",
                unit="region",
                seed=0,
                spec={},
            )
        )
        session.add_all(
            Image(
                uri=f"images/{number}.png",
                sha256=f"{number:064x}",
                width=SIDE,
                height=SIDE,
                channels=3,
                group_name=f"g{number}",
                position=number,
            )
            for number in range(1, images + 1)
        )
        session.flush()
        session.add_all(
            QueueItem(
                queue_id=1,
                rank=1 + len(CELLS) * number + index,
                image_id=number + 1,
                region_index=index,
                x=x,
                y=y,
                w=w,
                h=h,
                measure="entropy",
                score=0.5,
                predicted_class=1,
                slice="selected",
                reason="entropy 0.50",
                clicks=float(index + 1),
            )
            for number in range(images)
            for index, (x, y, w, h) in enumerate(CELLS)
        )
        for number in range(images):
            for index, (x, y, w, h) in enumerate(CELLS):
                expected = None if expected_entropy is None else float(expected_entropy[number, index])
                session.execute(
                    insert(RegionScore).values(
                        run_id=1,
                        image_id=number + 1,
                        region_index=index,
                        x=x,
                        y=y,
                        w=w,
                        h=h,
                        pixels=w * h,
                        predicted_class=1,
                        class_share=1.0,
                        impurity=0.0,
                        least_confidence=0.5,
                        margin=0.5,
                        entropy=0.5,
                        expected_entropy=expected,
                        mutual_information=None if expected is None else (1 - expected) / 10,
                        energy=-1.0,
                        max_logit=-1.0,
                        entropy_top10=0.5,
                    )
                )
    return SharedQueue(project, database)


def filled(value: int) -> Mask:
    """A mask of one class."""
    return np.full((SIDE, SIDE), value, np.uint8)


def disputing(shares: npt.NDArray[np.float64], *, value: int = 1, ground: int = 0) -> Mask:
    """A mask that gives each region's upper share [4] another class than the ground's."""
    mask = filled(ground)
    for (x, y, w, h), share in zip(CELLS, shares.tolist(), strict=True):
        mask[y : y + round(share * h), x : x + w] = value
    return mask
