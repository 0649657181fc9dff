"""What a run says about sets of images: the columns that drift is looked for in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.tables import Image, ImageScore, RegionScore, ScoringRun

BATCH = 500
"""Values in one `IN (…)`; SQLite's oldest limit is 999."""


class ScoredRow(NamedTuple):
    """An image and its scores."""

    id: int
    uri: str
    group: str
    position: int
    entropy: float
    least_confidence: float
    energy: float
    max_logit: float


def scored_ids(session: Session, run_id: int) -> npt.NDArray[np.int64]:
    """The images that a run has scored, int64 [n], ascending."""
    statement = select(ImageScore.image_id).where(ImageScore.run_id == run_id).order_by(ImageScore.image_id)
    return np.fromiter(session.scalars(statement.execution_options(yield_per=10_000)), dtype=np.int64)


def last_other_run(session: Session, run_id: int) -> ScoringRun | None:
    """The run that was finished last, besides this one."""
    statement = (
        select(ScoringRun)
        .where(ScoringRun.id != run_id, ScoringRun.finished_at.is_not(None))
        .order_by(ScoringRun.finished_at.desc(), ScoringRun.id.desc())
        .limit(1)
    )
    return session.scalars(statement).one_or_none()


def scored_rows(session: Session, run_id: int, image_ids: Sequence[int]) -> list[ScoredRow]:
    """The scores of images, by id."""
    rows: list[ScoredRow] = []
    for start in range(0, len(image_ids), BATCH):
        statement = (
            select(
                Image.id,
                Image.uri,
                Image.group_name,
                Image.position,
                ImageScore.entropy,
                ImageScore.least_confidence,
                ImageScore.energy,
                ImageScore.max_logit,
            )
            .join(ImageScore, ImageScore.image_id == Image.id)
            .where(ImageScore.run_id == run_id, Image.id.in_(image_ids[start : start + BATCH]))
            .order_by(Image.id)
        )
        rows.extend(ScoredRow(*row) for row in session.execute(statement))
    return rows


def class_pixels(
    session: Session, run_id: int, image_ids: Sequence[int], *, num_classes: int
) -> npt.NDArray[np.float64]:
    """Pixels of the regions that each class is predicted on, [n, C], in the order of `image_ids`."""
    place = {image_id: row for row, image_id in enumerate(image_ids)}
    pixels = np.zeros((len(image_ids), num_classes))
    for start in range(0, len(image_ids), BATCH):
        statement = (
            select(RegionScore.image_id, RegionScore.predicted_class, func.sum(RegionScore.pixels))
            .where(RegionScore.run_id == run_id, RegionScore.image_id.in_(image_ids[start : start + BATCH]))
            .group_by(RegionScore.image_id, RegionScore.predicted_class)
        )
        for image_id, predicted, count in session.execute(statement):
            pixels[place[image_id], predicted] = count
    return pixels
