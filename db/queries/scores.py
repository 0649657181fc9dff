"""Scoring runs, their shards, and the two score tables, which are written in bulk and read as columns.

A shard is a range of image ids that is scored and committed together. What a run has scored is known from
its image scores alone, so a shard that was planned and never finished can be forgotten and planned anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sqlalchemy import ColumnElement, and_, delete, func, insert, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from db.tables import Image, ImageScore, Label, LabelRegion, RegionScore, ScoringRun, Shard, utc_now

Columns = Mapping[str, npt.NDArray[Any] | Sequence[Any]]
"""Columns of a table by name, all of one length. `run_id` is added by the query."""

PAGE = 10_000
BATCH = 500
"""Values in one `IN (…)`; SQLite's oldest limit is 999."""


class Unscored(NamedTuple):
    """A pool image that a run has not scored yet."""

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


class PlannedShard(NamedTuple):
    """Image ids from `first` to `last`, both inclusive."""

    first: int
    last: int


def open_run(session: Session, *, model_id: int, scorer_hash: str, scorer: dict[str, Any]) -> ScoringRun:
    """The run of this scorer, made when there is none."""
    statement = select(ScoringRun).where(ScoringRun.scorer_hash == scorer_hash)
    row = session.scalars(statement).one_or_none()
    if row is None:
        row = ScoringRun(model_id=model_id, scorer_hash=scorer_hash, scorer=scorer)
        session.add(row)
        session.flush()
    return row


def unscored_images(
    session: Session, *, run_id: int, after_id: int = 0, last_id: int | None = None, limit: int
) -> list[Unscored]:
    """A page, by id, of the images that this run is still to score.

    They are in the pool, are no duplicates, and have no label that covers them whole.
    """
    condition = and_(_to_score(run_id), Image.id > after_id)
    if last_id is not None:
        condition = and_(condition, Image.id <= last_id)
    statement = (
        select(Image.id, Image.uri, Image.width, Image.height)
        .where(condition)
        .order_by(Image.id)
        .limit(limit)
    )
    return [Unscored(*row) for row in session.execute(statement)]


def plan_shards(session: Session, *, run_id: int, shard_images: int) -> int:
    """Cut what the run is still to score into shards of ascending ids; forget what was planned before.

    Returns:
        The number of images to score.
    """
    session.execute(delete(Shard).where(Shard.run_id == run_id, Shard.status == "pending"))
    total, members = 0, 0
    first = last = 0
    for image_id in _ids_to_score(session, run_id):
        if members == shard_images:
            _put_shard(session, run_id=run_id, shard=PlannedShard(first, last))
            members = 0
        first = image_id if members == 0 else first
        last = image_id
        members += 1
        total += 1
    if members:
        _put_shard(session, run_id=run_id, shard=PlannedShard(first, last))
    if total:
        session.execute(update(ScoringRun).where(ScoringRun.id == run_id).values(finished_at=None))
    return total


def pending_shards(session: Session, *, run_id: int) -> list[PlannedShard]:
    """The shards that are still to be scored, by id."""
    statement = (
        select(Shard.first_image_id, Shard.last_image_id)
        .where(Shard.run_id == run_id, Shard.status == "pending")
        .order_by(Shard.first_image_id)
    )
    return [PlannedShard(*row) for row in session.execute(statement)]


def replace_shard(
    session: Session,
    *,
    run_id: int,
    shard: PlannedShard,
    image_ids: Sequence[int],
    images: Columns,
    regions: Columns,
) -> None:
    """Put the rows of a shard in the place of what is there of these images, and mark it done.

    Args:
        image_ids: all that were tried; those without a row in `images` count as failed.
        images: columns of `image_score`.
        regions: columns of `region_score`.
    """
    forget_scores(session, run_id=run_id, image_ids=image_ids)
    _insert_columns(session, ImageScore, run_id, images)
    _insert_columns(session, RegionScore, run_id, regions)
    scored = len(images.get("image_id", ()))
    values = {
        "last_image_id": shard.last,
        "status": "done",
        "scored": scored,
        "failed": len(image_ids) - scored,
        "finished_at": utc_now(),
    }
    found = session.scalars(
        select(Shard).where(Shard.run_id == run_id, Shard.first_image_id == shard.first)
    ).one_or_none()
    if found is None:  # another process planned the run anew in the meantime
        session.execute(insert(Shard).values(run_id=run_id, first_image_id=shard.first, **values))
    else:
        session.execute(update(Shard).where(Shard.id == found.id).values(**values))


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


def top_images(session: Session, *, run_id: int, limit: int) -> list[tuple[Unscored, dict[str, Any] | None]]:
    """The images of a run with the highest entropy, highest first, with the heat maps that they have."""
    statement = (
        select(Image.id, Image.uri, Image.width, Image.height, ImageScore.heatmaps)
        .join(ImageScore, ImageScore.image_id == Image.id)
        .where(ImageScore.run_id == run_id)
        .order_by(ImageScore.entropy.desc(), Image.id)
        .limit(limit)
    )
    return [(Unscored(*row[:4]), row[4]) for row in session.execute(statement)]


def images_by_id(session: Session, *, image_ids: Sequence[int]) -> list[Unscored]:
    """Images by id, as scoring wants to see them."""
    found: list[Unscored] = []
    for start in range(0, len(image_ids), BATCH):
        statement = select(Image.id, Image.uri, Image.width, Image.height).order_by(Image.id)
        part = statement.where(Image.id.in_(image_ids[start : start + BATCH]))
        found.extend(Unscored(*row) for row in session.execute(part))
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


def _to_score(run_id: int) -> ColumnElement[bool]:
    scored = select(ImageScore.image_id).where(ImageScore.run_id == run_id, ImageScore.image_id == Image.id)
    labeled_whole = (
        select(Label.id)
        .join(LabelRegion, LabelRegion.label_id == Label.id)
        .where(
            Label.image_id == Image.id,
            LabelRegion.x == 0,
            LabelRegion.y == 0,
            LabelRegion.w == Image.width,
            LabelRegion.h == Image.height,
            LabelRegion.outline.is_(None),
        )
    )
    return and_(
        Image.split == "pool", Image.duplicate_of.is_(None), ~scored.exists(), ~labeled_whole.exists()
    )


def _ids_to_score(session: Session, run_id: int) -> Iterator[int]:
    """Page by page: nothing may be read from a cursor while shards are written through its session."""
    after = 0
    while True:
        statement = select(Image.id).where(_to_score(run_id), Image.id > after).order_by(Image.id).limit(PAGE)
        page = session.scalars(statement).all()
        yield from page
        if len(page) < PAGE:
            return
        after = page[-1]


def _put_shard(session: Session, *, run_id: int, shard: PlannedShard) -> None:
    """A planned shard. Where a finished one began at the same image, which failed, it takes its place."""
    mine = (Shard.run_id == run_id, Shard.first_image_id == shard.first)
    found = session.scalars(select(Shard.id).where(*mine)).one_or_none()
    values: dict[str, Any] = {"last_image_id": shard.last, "status": "pending", "finished_at": None}
    if found is None:
        session.execute(insert(Shard).values(run_id=run_id, first_image_id=shard.first, **values))
    else:
        session.execute(update(Shard).where(Shard.id == found).values(**values))


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
