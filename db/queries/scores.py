"""Scoring runs and the two score tables, which are written in bulk and read as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sqlalchemy import and_, delete, func, insert, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from db.tables import Image, ImageScore, RegionScore, ScoringRun, Shard, utc_now

Columns = Mapping[str, npt.NDArray[Any] | Sequence[Any]]
"""Columns of a table by name, all of one length. `run_id` is added by the query."""

PAGE = 10_000
BATCH = 500
"""Values in one `IN (…)`; SQLite's oldest limit is 999."""


class ImageFile(NamedTuple):
    """An image as scoring wants to see it."""

    id: int
    uri: str
    width: int
    height: int


class FoundRegion(NamedTuple):
    """A scored region and the image that it lies in."""

    image_id: int
    uri: str
    region_index: int
    x: int
    y: int
    w: int
    h: int
    outline: str | None
    predicted_class: int
    class_share: float
    expected_entropy: float | None
    mutual_information: float | None
    variation_ratio: float | None


class ScoredRegion(NamedTuple):
    """Where a region lies, and its entropy."""

    image_id: int
    region_index: int
    x: int
    y: int
    w: int
    h: int
    outline: str | None
    entropy: float


def open_run(session: Session, *, model_id: int, scorer_hash: str, scorer: dict[str, Any]) -> ScoringRun:
    """The run of this scorer, made when there is none."""
    statement = select(ScoringRun).where(ScoringRun.scorer_hash == scorer_hash)
    row = session.scalars(statement).one_or_none()
    if row is None:
        row = ScoringRun(model_id=model_id, scorer_hash=scorer_hash, scorer=scorer)
        session.add(row)
        session.flush()
    return row


def scoring_times(session: Session, *, run_id: int) -> list[tuple[int, str, datetime]]:
    """Id and URI of each image that a run has scored, and when its shard was written."""
    statement = (
        select(ImageScore.image_id, Image.uri, func.max(Shard.finished_at))
        .join(Image, Image.id == ImageScore.image_id)
        .join(
            Shard,
            and_(
                Shard.run_id == ImageScore.run_id,
                Shard.first_image_id <= ImageScore.image_id,
                Shard.last_image_id >= ImageScore.image_id,
            ),
        )
        .where(ImageScore.run_id == run_id, Shard.finished_at.is_not(None))
        .group_by(ImageScore.image_id, Image.uri)
    )
    return [(image_id, uri, at) for image_id, uri, at in session.execute(statement) if at is not None]


def insert_scores(session: Session, *, run_id: int, images: Columns, regions: Columns) -> None:
    """Write the scores of some images, as columns of `image_score` and `region_score`."""
    _insert_columns(session, ImageScore, run_id, images)
    _insert_columns(session, RegionScore, run_id, regions)


def forget_scores(session: Session, *, run_id: int, image_ids: Sequence[int]) -> None:
    """Take the scores of images back, so that the run is still to score them."""
    for start in range(0, len(image_ids), BATCH):
        part = image_ids[start : start + BATCH]
        for table in (RegionScore, ImageScore):
            session.execute(delete(table).where(table.run_id == run_id, table.image_id.in_(part)))


def finish_run(session: Session, *, run_id: int) -> None:
    """Say that the run has scored all that it could."""
    session.execute(update(ScoringRun).where(ScoringRun.id == run_id).values(finished_at=utc_now()))


def update_summary(session: Session, run_id: int, **parts: Any) -> dict[str, Any]:
    """Put parts of a run's summary in their places, by name; the other parts stay as they are.

    Returns:
        The whole summary.
    """
    statement = select(ScoringRun).where(ScoringRun.id == run_id).with_for_update()
    run = session.scalars(statement).one()
    summary = {**(run.summary or {}), **parts}
    run.summary = summary
    session.flush()
    return summary


def count_scores(session: Session, *, run_id: int) -> tuple[int, int]:
    """How many images and regions a run has scored."""
    images = session.scalar(select(func.count()).where(ImageScore.run_id == run_id)) or 0
    regions = session.scalar(select(func.count()).where(RegionScore.run_id == run_id)) or 0
    return images, regions


def top_regions(session: Session, *, run_id: int, measure: str, limit: int) -> Sequence[RegionScore]:
    """The regions of a run with the highest mean of a measure, highest first.

    Raises:
        ValueError: there is no such measure.
    """
    column = _column(RegionScore, measure)
    statement = (
        select(RegionScore)
        .where(RegionScore.run_id == run_id)
        .order_by(column.desc(), RegionScore.image_id, RegionScore.region_index)
        .limit(limit)
    )
    return session.scalars(statement).all()


def regions_at(
    session: Session, *, run_id: int, places: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], FoundRegion]:
    """Regions of a run by image id and region index; those that are asked for and there."""
    table = RegionScore
    columns = (
        *(Image.id, Image.uri, table.region_index, table.x, table.y, table.w, table.h, table.outline),
        *(table.predicted_class, table.class_share),
        *(table.expected_entropy, table.mutual_information, table.variation_ratio),
    )
    wanted, images = set(places), sorted({image_id for image_id, _ in places})
    found: dict[tuple[int, int], FoundRegion] = {}
    for start in range(0, len(images), BATCH):
        statement = (
            select(*columns)
            .join(Image, Image.id == table.image_id)
            .where(table.run_id == run_id, table.image_id.in_(images[start : start + BATCH]))
        )
        rows = (FoundRegion(*row) for row in session.execute(statement))
        found.update(
            ((row.image_id, row.region_index), row)
            for row in rows
            if (row.image_id, row.region_index) in wanted
        )
    return found


def top_images(session: Session, *, run_id: int, limit: int) -> list[tuple[ImageFile, dict[str, Any] | None]]:
    """The images of a run with the highest entropy, highest first, with the heat maps that they have."""
    statement = (
        select(Image.id, Image.uri, Image.width, Image.height, ImageScore.heatmaps)
        .join(ImageScore, ImageScore.image_id == Image.id)
        .where(ImageScore.run_id == run_id)
        .order_by(ImageScore.entropy.desc(), Image.id)
        .limit(limit)
    )
    return [(ImageFile(*row[:4]), row[4]) for row in session.execute(statement)]


def images_by_id(session: Session, *, image_ids: Sequence[int]) -> list[ImageFile]:
    """Images by id, as scoring wants to see them."""
    found: list[ImageFile] = []
    for start in range(0, len(image_ids), BATCH):
        statement = select(Image.id, Image.uri, Image.width, Image.height).order_by(Image.id)
        part = statement.where(Image.id.in_(image_ids[start : start + BATCH]))
        found.extend(ImageFile(*row) for row in session.execute(part))
    return found


def scored_regions(session: Session, *, run_id: int, image_ids: Sequence[int]) -> list[ScoredRegion]:
    """The regions of a few images, by image and index."""
    found: list[ScoredRegion] = []
    for start in range(0, len(image_ids), BATCH):
        statement = (
            select(
                RegionScore.image_id,
                RegionScore.region_index,
                RegionScore.x,
                RegionScore.y,
                RegionScore.w,
                RegionScore.h,
                RegionScore.outline,
                RegionScore.entropy,
            )
            .where(RegionScore.run_id == run_id, RegionScore.image_id.in_(image_ids[start : start + BATCH]))
            .order_by(RegionScore.image_id, RegionScore.region_index)
        )
        found.extend(ScoredRegion(*row) for row in session.execute(statement))
    return found


def set_heatmaps(session: Session, *, run_id: int, heatmaps: Mapping[int, dict[str, str]]) -> None:
    """Say where the heat maps of images are: URIs by measure, by image id."""
    for image_id, uris in heatmaps.items():
        mine = (ImageScore.run_id == run_id, ImageScore.image_id == image_id)
        session.execute(update(ImageScore).where(*mine).values(heatmaps=uris))


def region_columns(session: Session, *, run_id: int, columns: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Columns of a run's region scores as arrays, by image and region; NULL is NaN.

    Raises:
        ValueError: there is no such column.
    """
    order = (RegionScore.image_id, RegionScore.region_index)
    return _read_columns(session, RegionScore, run_id, columns, order)


def image_columns(session: Session, *, run_id: int, columns: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Columns of a run's image scores as arrays, by image; NULL is NaN.

    Raises:
        ValueError: there is no such column.
    """
    return _read_columns(session, ImageScore, run_id, columns, (ImageScore.image_id,))


def _insert_columns(
    session: Session, table: type[RegionScore] | type[ImageScore], run_id: int, columns: Columns
) -> None:
    names = list(columns)
    lists = [
        column.tolist() if isinstance(column, np.ndarray) else list(column) for column in columns.values()
    ]
    rows = [
        {"run_id": run_id, **dict(zip(names, values, strict=True))} for values in zip(*lists, strict=True)
    ]
    if rows:
        session.execute(insert(table.__table__), rows)  # pyright: ignore[reportArgumentType]


def _read_columns(
    session: Session,
    table: type[RegionScore] | type[ImageScore],
    run_id: int,
    columns: Sequence[str],
    order: tuple[InstrumentedAttribute[int], ...],
) -> dict[str, npt.NDArray[Any]]:
    statement = select(*(_column(table, name) for name in columns)).where(table.run_id == run_id)
    result = session.execute(statement.order_by(*order).execution_options(yield_per=PAGE))
    pages: list[list[npt.NDArray[Any]]] = [[] for _ in columns]
    for page in result.partitions(PAGE):
        for place, values in enumerate(zip(*page, strict=True)):
            filled = [np.nan if value is None else value for value in values]
            pages[place].append(np.asarray(filled))
    return {
        name: np.concatenate(parts) if parts else np.empty(0)
        for name, parts in zip(columns, pages, strict=True)
    }


def _column(table: type[RegionScore] | type[ImageScore], name: str) -> InstrumentedAttribute[Any]:
    column = getattr(table, name, None)
    if name.startswith("_") or not isinstance(column, InstrumentedAttribute):
        raise ValueError(f"Expected a column of {table.__tablename__}, but got {name!r}.")
    return column  # pyright: ignore[reportUnknownVariableType]
