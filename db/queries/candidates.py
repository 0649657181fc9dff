"""The candidates for a queue: scored regions and images of a run, or images without scores, as numpy columns,
a page at a time.

Legend: N candidates, M images. An image is eligible when it is in the pool, is no duplicate, and has not
the content of an image outside the pool. A queue is selected from these candidates only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import ColumnElement, Select, exists, func, literal, select
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from db.queries.paging import in_parts
from db.tables import Image, ImageScore, RegionScore

NUMBERS = 15
"""Columns of a candidate, without those of its shape."""

UNKNOWN = math.inf
"""Replaces NULL in rows from the database."""

WHOLE_IMAGE = -1
"""The region index of a candidate that is a whole image rather than a region of the run's grid."""


@dataclass(frozen=True)
class ImageColumns:
    """Eligible images of a run, M rows by ascending id."""

    id: npt.NDArray[np.int64]
    group: npt.NDArray[np.int32]
    """The group's code."""
    position: npt.NDArray[np.int64]
    regions: npt.NDArray[np.int32]
    """Regions of the image in the run, including those whose rows were not kept."""

    def __len__(self) -> int:
        return len(self.id)

    def part(self, start: int, stop: int) -> ImageColumns:
        """The rows from `start` to `stop`, which is excluded."""
        rows = slice(start, stop)
        return ImageColumns(self.id[rows], self.group[rows], self.position[rows], self.regions[rows])


@dataclass(frozen=True)
class UnscoredImages:
    """Eligible images without regard to scores, M rows by ascending id; `group` is the group's code."""

    id: npt.NDArray[np.int64]
    group: npt.NDArray[np.int32]
    position: npt.NDArray[np.int64]
    width: npt.NDArray[np.int32]
    height: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.id)


CandidateColumns = dict[str, npt.NDArray[Any]]
"""Scored boxes of eligible images by column, N rows by ascending image id and region index.

`image_id` int64, `region_index` int32, `box` int32 [N, 4] as x, y, w, h in image pixels, `predicted_class`
and `stratum` int16, and float32 `class_share`, `stratum_share`, `impurity`, `expected_entropy` and
`mutual_information`, NaN without samples, and `border`, NaN where the run did not measure it; `score`, the
requested measure, NaN where the run has none; where outlines are requested, `pixels` int64 and `outline`, a
text or None for a full box. Where the run does not know the strata, they are the predicted classes.
"""


def last_eligible(session: Session, *, run_id: int) -> int:
    """The highest id of an image that the run has scored; 0 without one."""
    return session.scalar(select(func.max(ImageScore.image_id)).where(ImageScore.run_id == run_id)) or 0


def eligible_images(
    session: Session, *, run_id: int, after_id: int, last_id: int, limit: int, codes: dict[str, int]
) -> ImageColumns:
    """A page of the eligible images that a run has scored.

    Args:
        codes: the code of each group; groups that are new to it are added.
    """
    statement = (
        select(Image.id, Image.group_name, Image.position, ImageScore.regions)
        .join(ImageScore, ImageScore.image_id == Image.id)
        .where(
            ImageScore.run_id == run_id,
            ImageScore.image_id > after_id,
            ImageScore.image_id <= last_id,
            *_eligible(),
        )
        .order_by(ImageScore.image_id)
        .limit(limit)
    )
    rows = [
        (image_id, codes.setdefault(group, len(codes)), position, regions)
        for image_id, group, position, regions in session.execute(statement)
    ]
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    return ImageColumns(
        id=table[:, 0].copy(),
        group=table[:, 1].astype(np.int32),
        position=table[:, 2].copy(),
        regions=table[:, 3].astype(np.int32),
    )


def last_image(session: Session) -> int:
    """The highest id of an eligible image; 0 without one."""
    return session.scalar(select(func.max(Image.id)).where(*_eligible())) or 0


def count_eligible(session: Session, *, among: Sequence[int] | None = None) -> int:
    """How many images may be queued, of all or of those with these ids."""
    statement = select(func.count()).select_from(Image).where(*_eligible())
    if among is None:
        return session.scalar(statement) or 0
    return sum(session.scalar(statement.where(Image.id.in_(part))) or 0 for part in in_parts(among))


def unscored_images(
    session: Session, *, after_id: int, last_id: int, limit: int, codes: dict[str, int]
) -> UnscoredImages:
    """A page of the eligible images, whether they are scored or not.

    Args:
        codes: the code of each group; groups that are new to it are added.
    """
    statement = (
        select(Image.id, Image.group_name, Image.position, Image.width, Image.height)
        .where(Image.id > after_id, Image.id <= last_id, *_eligible())
        .order_by(Image.id)
        .limit(limit)
    )
    rows = [
        (image_id, codes.setdefault(group, len(codes)), *place)
        for image_id, group, *place in session.execute(statement)
    ]
    table = np.array(rows, dtype=np.int64).reshape(-1, 5)
    return UnscoredImages(
        id=table[:, 0].copy(),
        group=table[:, 1].astype(np.int32),
        position=table[:, 2].copy(),
        width=table[:, 3].astype(np.int32),
        height=table[:, 4].astype(np.int32),
    )


def region_candidates(
    session: Session, *, run_id: int, images: ImageColumns, measure: str | None, outlines: bool = False
) -> CandidateColumns:
    """The regions of a run that lie in some of its eligible images.

    Args:
        images: neighbours by id, at least one.
        measure: the column of `region_score` to read as the score; None reads none.
        outlines: also read outlines, about a hundred bytes a region.
    """
    shapes = (RegionScore.pixels, RegionScore.outline) if outlines else ()
    statement = (
        select(
            *(RegionScore.image_id, RegionScore.region_index),
            *(RegionScore.x, RegionScore.y, RegionScore.w, RegionScore.h),
            *(*_scores(RegionScore, measure), *shapes),
        )
        .where(RegionScore.run_id == run_id, RegionScore.image_id.between(*_ends(images)))
        .order_by(RegionScore.image_id, RegionScore.region_index)
    )
    return _candidates(session, statement, images, scored=measure is not None, outlines=outlines)


def image_candidates(
    session: Session, *, run_id: int, images: ImageColumns, measure: str | None
) -> CandidateColumns:
    """Some of the eligible images of a run, each as one box, with region index `WHOLE_IMAGE`.

    Args:
        images: neighbours by id, at least one.
        measure: the column of `image_score` to read as the score; None reads none.
    """
    statement = (
        select(
            *(ImageScore.image_id, literal(WHOLE_IMAGE)),
            *(literal(0), literal(0), Image.width, Image.height),
            *_scores(ImageScore, measure),
        )
        .join(Image, Image.id == ImageScore.image_id)
        .where(ImageScore.run_id == run_id, ImageScore.image_id.between(*_ends(images)))
        .order_by(ImageScore.image_id)
    )
    return _candidates(session, statement, images, scored=measure is not None)


def knows_strata(session: Session, *, run_id: int) -> bool:
    """Whether the run's scores name the strata; judged by one of its images."""
    statement = select(ImageScore.stratum).where(ImageScore.run_id == run_id).limit(1)
    return session.scalar(statement) is not None


def _eligible() -> tuple[ColumnElement[bool], ...]:
    """The conditions under which an image may be queued."""
    held_out = aliased(Image)
    leaks = exists().where(held_out.sha256 == Image.sha256, held_out.split != "pool")
    return Image.split == "pool", Image.duplicate_of.is_(None), ~leaks


def _ends(images: ImageColumns) -> tuple[int, int]:
    return int(images.id[0]), int(images.id[-1])


def _scores(table: type[RegionScore] | type[ImageScore], measure: str | None) -> tuple[Any, ...]:
    """The columns that regions and images share; 0 as the score without a measure."""
    return (
        *(table.predicted_class, table.class_share, table.impurity),
        literal(0.0) if measure is None else _known(table.__table__.c[measure]),
        *(_known(table.expected_entropy), _known(table.mutual_information)),
        func.coalesce(table.stratum, table.predicted_class),
        func.coalesce(table.stratum_share, table.class_share),
        _known(table.border),
    )


def _known(column: ColumnElement[float] | InstrumentedAttribute[float | None]) -> ColumnElement[float]:
    return func.coalesce(column, literal(UNKNOWN))


def _candidates(
    session: Session,
    statement: Select[Any],
    images: ImageColumns,
    *,
    scored: bool,
    outlines: bool = False,
) -> CandidateColumns:
    """The rows of these images; rows of other images between them are dropped."""
    # driver rows: an ORM object a row, or a column at a time, would take three times as long
    cursor = session.connection().execute(statement).cursor
    rows: Sequence[Sequence[Any]] = cursor.fetchall() if cursor is not None else ()
    width = NUMBERS + outlines
    values = chain.from_iterable(row[:width] for row in rows) if outlines else chain.from_iterable(rows)
    numbers = np.fromiter(values, dtype=np.float64, count=width * len(rows)).reshape(-1, width)
    eligible = np.isin(numbers[:, 0], images.id)
    numbers = numbers[eligible]
    measures = np.where(np.isinf(numbers[:, 9:12]), np.nan, numbers[:, 9:12]).astype(np.float32)
    columns: CandidateColumns = {
        "image_id": numbers[:, 0].astype(np.int64),
        "region_index": numbers[:, 1].astype(np.int32),
        "box": numbers[:, 2:6].astype(np.int32),
        "predicted_class": numbers[:, 6].astype(np.int16),
        "class_share": numbers[:, 7].astype(np.float32),
        "stratum": numbers[:, 12].astype(np.int16),
        "stratum_share": numbers[:, 13].astype(np.float32),
        "impurity": numbers[:, 8].astype(np.float32),
        "expected_entropy": measures[:, 1].copy(),
        "mutual_information": measures[:, 2].copy(),
        "border": np.where(np.isinf(numbers[:, 14]), np.nan, numbers[:, 14]).astype(np.float32),
    }
    if scored:
        columns["score"] = measures[:, 0].copy()
    if outlines:
        columns["pixels"] = numbers[:, NUMBERS].astype(np.int64)
        columns["outline"] = np.array([row[width] for row in rows], dtype=np.object_)[eligible]
    return columns
