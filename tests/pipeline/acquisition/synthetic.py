"""A store filled with score rows that no model made, for the tests of selection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import insert

from db.engine import Database
from db.tables import (
    Image,
    ImageScore,
    Label,
    LabelRegion,
    Model,
    Queue,
    QueueItem,
    RegionScore,
    Round,
    ScoringRun,
    utc_now,
)
from pipeline.acquisition.candidates import Candidates, Reading
from pipeline.config import ProjectConfig, RegionConfig
from pipeline.data.project import Project
from pipeline.regions.shapes import region_boxes
from tests.factories import change

CLASS_NAMES = ["road", "pole", "sky"]
SIDE = 96
CELL = 32
GRID = RegionConfig(cell=CELL)
CELLS = region_boxes(GRID, SIDE, SIDE)
"""Nine cells an image."""


@dataclass
class Store:
    """A project at the point where `select` comes next."""

    project: Project
    database: Database
    run_id: int
    image_ids: list[int] = field(default_factory=list)

    def configured(self, **selection: Any) -> Project:
        """The project under other settings of `selection`."""
        document = self.project.config.model_dump()
        document["selection"] = selection
        return Project(config=ProjectConfig(**document), root=self.project.root)

    def change_image(self, image_id: int, **values: Any) -> None:
        change(self.database, Image, Image.id == image_id, **values)

    def queue_earlier(self, items: Sequence[tuple[int, tuple[int, int, int, int], str]]) -> int:
        """A queue of an earlier round with items of (image id, box, status)."""
        with self.database.session() as session:
            queue = Queue(name="initial", kind="initial", strategy="initial", unit="region", seed=0, spec={})
            session.add(queue)
            session.flush()
            for rank, (image_id, (x, y, w, h), status) in enumerate(items, start=1):
                item = QueueItem(queue_id=queue.id, rank=rank, image_id=image_id, region_index=0)
                item.x, item.y, item.w, item.h = x, y, w, h
                item.slice, item.reason, item.status = "initial", "", status
                session.add(item)
            return queue.id

    def label(self, queue_id: int, image_id: int, version: int, boxes: Sequence[Sequence[int]]) -> None:
        """A version of an image's label."""
        with self.database.session() as session:
            label = Label(image_id=image_id, queue_id=queue_id, version=version, mask_uri="m.png")
            label.mask_sha256, label.labeled_pixels = "0" * 64, 1
            label.source, label.labeled_at = "import", utc_now()
            session.add(label)
            session.flush()
            session.add_all([LabelRegion(label_id=label.id, x=x, y=y, w=w, h=h) for x, y, w, h in boxes])


def make_store(folder: Path, *, images: int = 20, groups: int = 2, seed: int = 0, **selection: Any) -> Store:
    """A project with scored pool images of nine cells each, in sequences, and random scores."""
    config = ProjectConfig.model_validate(
        {
            "name": "synthetic",
            "data": {"images": ["images"], "classes": CLASS_NAMES},
            "scoring": {"regions": {"cell": CELL}},
            "selection": selection,
        }
    )
    project = Project(config=config, root=folder)
    database = Database(project.database_url)
    rng = np.random.default_rng(seed)
    with database.session() as session:
        current = Round(number=1, state="select")
        session.add(current)
        session.flush()
        model = Model(round_id=current.id, name="r01", status="promoted", checkpoint_uri="models/r01")
        model.config, model.config_hash, model.labels_hash = {}, "0" * 64, "0" * 64
        model.seed, model.iterations = 0, 1
        session.add(model)
        session.flush()
        run = ScoringRun(
            model_id=model.id, scorer_hash="a" * 64, scorer={"sampler": "mc_dropout"}, finished_at=utc_now()
        )
        session.add(run)
        session.flush()
        rows = [
            Image(
                uri=f"images/{index:04d}.png",
                sha256=f"{index:064x}",
                width=SIDE,
                height=SIDE,
                channels=3,
                group_name=f"drive-{index % groups}",
                position=index // groups,
            )
            for index in range(images)
        ]
        session.add_all(rows)
        session.flush()
        for image in rows:
            _score(session, run.id, image.id, rng)
        return Store(
            project=project, database=database, run_id=run.id, image_ids=[image.id for image in rows]
        )


def _score(session: Any, run_id: int, image_id: int, rng: np.random.Generator) -> None:
    columns = ("least_confidence", "margin", "entropy", "expected_entropy", "mutual_information")
    regions: list[dict[str, Any]] = []
    for index, (x, y, w, h) in enumerate(CELLS.tolist()):
        row: dict[str, Any] = {name: float(rng.random()) for name in columns}
        row |= {"run_id": run_id, "image_id": image_id, "region_index": index, "pixels": w * h}
        row |= {"x": x, "y": y, "w": w, "h": h, "energy": -5.0, "max_logit": -4.0, "entropy_top10": 1.0}
        row |= {
            "predicted_class": int(rng.choice(3, p=[0.7, 0.1, 0.2])),
            "class_share": float(rng.uniform(0.4, 1)),
        }
        row |= {"impurity": float(rng.random())}
        regions.append(row)
    session.execute(insert(RegionScore), regions)
    whole = {name: float(np.mean([row[name] for row in regions])) for name in columns}
    session.add(
        ImageScore(
            run_id=run_id,
            image_id=image_id,
            regions=len(regions),
            pixels=SIDE * SIDE,
            predicted_class=0,
            class_share=0.5,
            impurity=0.5,
            energy=-5.0,
            max_logit=-4.0,
            entropy_top10=1.0,
            **whole,
        )
    )


def make_candidates(
    *,
    images: int,
    rng: np.random.Generator,
    groups: int = 2,
    classes: int = 3,
    side: int = SIDE,
    cell: int = CELL,
    missing: float = 0.0,
) -> Candidates:
    """Candidates on a grid; a share of them is missing, as if queued earlier."""
    cells = region_boxes(RegionConfig(cell=cell), side, side)
    count = images * len(cells)
    whole = Candidates(
        image_id=np.arange(images) * 3 + 1,
        group=(np.arange(images) % groups).astype(np.int32),
        position=np.arange(images) // groups,
        regions=np.full(images, len(cells), dtype=np.int32),
        image=np.repeat(np.arange(images), len(cells)),
        region_index=np.tile(np.arange(len(cells), dtype=np.int32), images),
        box=np.tile(cells, (images, 1)),
        predicted_class=rng.integers(0, classes, size=count).astype(np.int16),
        class_share=rng.uniform(0.3, 1, size=count).astype(np.float32),
        impurity=rng.uniform(0, 1, size=count).astype(np.float32),
        score=rng.uniform(0, 1, size=count).astype(np.float32),
    )
    return whole.where(rng.random(count) >= missing)


def blocks(candidates: Candidates, images: int) -> Reading:
    """A reading of candidates in blocks of so many images."""
    starts = range(0, len(candidates.image_id), images)

    def read() -> Iterator[Candidates]:
        for start in starts:
            part = slice(start, start + images)
            mine = (candidates.image >= start) & (candidates.image < start + images)
            yield replace(
                candidates.where(mine),
                image_id=candidates.image_id[part],
                group=candidates.group[part],
                position=candidates.position[part],
                regions=candidates.regions[part],
                image=candidates.image[mine] - start,
            )

    return read


def whole(candidates: Candidates) -> Reading:
    """A reading of candidates in one block."""
    return lambda: [candidates]
