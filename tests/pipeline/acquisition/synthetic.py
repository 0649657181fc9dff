"""A store filled with score rows that no model made, for the tests of selection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import insert

from db.tables import (
    Image,
    ImageScore,
    RegionScore,
    utc_now,
)
from pipeline.acquisition.candidates import Candidates, Reading
from pipeline.config import RegionConfig
from pipeline.data.project import Project
from pipeline.regions.shapes import region_boxes
from tests.factories import (
    Box,
    Workspace,
    add_label,
    add_model,
    ask,
    change,
    configured,
    make_project,
    new_image,
    new_item,
    new_queue,
    new_run,
    put,
    score_columns,
)

CLASS_NAMES = ["road", "pole", "sky"]
SIDE = 96
CELL = 32
GRID = RegionConfig(cell=CELL)
CELLS = region_boxes(GRID, SIDE, SIDE)
"""Nine cells an image."""


class Store(Workspace):
    """A project at the point where `select` comes next."""

    image_ids: list[int]

    def configured(self, **selection: Any) -> Project:
        """The project under other settings of `selection`."""
        return configured(self.project, selection=selection)

    def change_image(self, image_id: int, **values: Any) -> None:
        change(self.database, Image, Image.id == image_id, **values)

    def queue_earlier(self, items: Sequence[tuple[int, Box, str]]) -> int:
        """A queue of an earlier round with items of (image id, box, status)."""
        with self.database.session() as session:
            queue = put(session, new_queue("initial"))
            for rank, (image_id, box, status) in enumerate(items, start=1):
                session.add(new_item(queue.id, rank, image_id, box, slice="initial", status=status))
            return queue.id

    def label(self, queue_id: int, image_id: int, version: int, boxes: Sequence[Sequence[int]]) -> None:
        """A version of an image's label."""
        mask, regions = np.full((SIDE, SIDE), version, np.uint8), [tuple(box) for box in boxes]
        ask(self.database, add_label, self.project, image_id, queue_id, mask, regions=regions)


def make_store(folder: Path, *, images: int = 20, groups: int = 2, seed: int = 0, **selection: Any) -> Store:
    """A project with scored pool images of nine cells each, in sequences, and random scores in run 1."""
    scoring = {"regions": {"cell": CELL}}
    store = Store(*make_project(folder, data={"classes": CLASS_NAMES}, scoring=scoring, selection=selection))
    rng = np.random.default_rng(seed)
    with store.database.session() as session:
        model = add_model(session, state="select")
        run = put(
            session,
            new_run(model.id, scorer={"sampler": "mc_dropout", "confidence": "mean"}, finished_at=utc_now()),
        )
        rows = [
            new_image(
                f"images/{index:04d}.png",
                width=SIDE,
                height=SIDE,
                group_name=f"drive-{index % groups}",
                position=index // groups,
            )
            for index in range(images)
        ]
        session.add_all(rows)
        session.flush()
        for image in rows:
            _score(session, run.id, image.id, rng)
    store.image_ids = [image.id for image in rows]
    return store


def _score(session: Any, run_id: int, image_id: int, rng: np.random.Generator) -> None:
    columns = ("least_confidence", "margin", "entropy", "expected_entropy", "mutual_information")
    regions: list[dict[str, Any]] = []
    for index, (x, y, w, h) in enumerate(CELLS.tolist()):
        row: dict[str, Any] = {name: float(rng.random()) for name in columns}
        row |= {"run_id": run_id, "image_id": image_id, "region_index": index, "pixels": w * h}
        row |= {"x": x, "y": y, "w": w, "h": h, "predicted_class": int(rng.choice(3, p=[0.7, 0.1, 0.2]))}
        row |= {"class_share": float(rng.uniform(0.4, 1)), "impurity": float(rng.random())}
        regions.append(score_columns(**row))
    session.execute(insert(RegionScore), regions)
    whole = {name: float(np.mean([row[name] for row in regions])) for name in columns}
    values = score_columns(pixels=SIDE * SIDE, class_share=0.5, impurity=0.5, **whole)
    session.add(ImageScore(run_id=run_id, image_id=image_id, regions=len(regions), **values))


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
        predicted_class=np.zeros(count, dtype=np.int16),
        class_share=np.full(count, 0.5, dtype=np.float32),
        stratum=rng.integers(0, classes, size=count).astype(np.int16),
        stratum_share=rng.uniform(0.3, 1, size=count).astype(np.float32),
        impurity=rng.uniform(0, 1, size=count).astype(np.float32),
        score=rng.uniform(0, 1, size=count).astype(np.float32),
    )
    return whole.where(rng.random(count) >= missing)


def embedded(candidates: Candidates) -> npt.NDArray[np.float16]:
    """Random features of length 1 that depend on the image and the region alone."""
    pairs = zip(candidates.owner.tolist(), candidates.region_index.tolist(), strict=True)
    rows = np.array([np.random.default_rng([owner, index + 1]).normal(size=8) for owner, index in pairs])
    rows = rows.reshape(-1, 8)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


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
