"""The two score tables: written in bulk, and read as rows or as columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from sqlalchemy import Table, and_, delete, func, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from db.bulk import Columns, Values, insert_columns
from db.later import later
from db.queries.images import ImageRow
from db.queries.paging import PAGE, in_parts
from db.tables import Image, ImageScore, RegionScore, Shard

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
else:
    np = later("numpy")

_IMAGES, _REGIONS = cast(Table, ImageScore.__table__), cast(Table, RegionScore.__table__)


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
    """A region and its entropy."""

    image_id: int
    region_index: int
    x: int
    y: int
    w: int
    h: int
    outline: str | None
    entropy: float


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
    brightness: float | None
    contrast: float | None


class Scored(NamedTuple):
    """Rows that a run has in the score tables."""

    images: int
    regions: int
    heatmaps: int
    """Images that have heat maps."""


def insert_scores(session: Session, *, run_id: int, images: Columns, regions: Columns) -> None:
    """Write the scores of some images.

    Args:
        images: columns of `image_score`, without `run_id` and `entropy_max`.
        regions: columns of `region_score`, without `run_id`.

    Raises:
        ValueError: a region lies in an image without a row, or the columns do not fit the tables.
    """
    ids, found = np.asarray(images.get("image_id", ())), np.asarray(regions.get("image_id", ()))
    peaks = _peaks(ids, found, regions.get("entropy", ()))
    insert_columns(session, _IMAGES, {"run_id": np.full(len(ids), run_id), **images, "entropy_max": peaks})
    insert_columns(session, _REGIONS, {"run_id": np.full(len(found), run_id), **regions})


def forget_scores(session: Session, *, run_id: int, image_ids: Sequence[int]) -> None:
    """Delete the scores of images, so that the run scores them again."""
    for part in in_parts(image_ids):
        for table in (RegionScore, ImageScore):
            session.execute(delete(table).where(table.run_id == run_id, table.image_id.in_(part)))


def set_heatmaps(session: Session, *, run_id: int, heatmaps: Mapping[int, dict[str, str]]) -> None:
    """Store the URIs of images' heat maps: by measure, by image id."""
    for image_id, uris in heatmaps.items():
        of_image = (ImageScore.run_id == run_id, ImageScore.image_id == image_id)
        session.execute(update(ImageScore).where(*of_image).values(heatmaps=uris))


def count_scored(session: Session, *, run_id: int) -> int:
    """How many images have scores of this run."""
    statement = select(func.count()).select_from(ImageScore).where(ImageScore.run_id == run_id)
    return session.scalar(statement) or 0


def rows_by_run(session: Session) -> dict[int, Scored]:
    """The rows of each run, by run; runs without a row are left out. Reads every image score."""
    statement = select(
        ImageScore.run_id, func.count(), func.sum(ImageScore.regions), func.count(ImageScore.heatmaps)
    ).group_by(ImageScore.run_id)
    return {
        run_id: Scored(images, int(regions), heatmaps)
        for run_id, images, regions, heatmaps in session.execute(statement)
    }


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


def scored_ids(session: Session, run_id: int) -> npt.NDArray[np.int64]:
    """The images that a run has scored, int64 [n], ascending."""
    statement = select(ImageScore.image_id).where(ImageScore.run_id == run_id).order_by(ImageScore.image_id)
    return np.fromiter(session.scalars(statement.execution_options(yield_per=10_000)), dtype=np.int64)


def scored_rows(session: Session, run_id: int, image_ids: Sequence[int]) -> list[ScoredRow]:
    """The scores of images, by id."""
    rows: list[ScoredRow] = []
    for part in in_parts(image_ids):
        statement = (
            select(
                *(Image.id, Image.uri, Image.group_name, Image.position),
                *(_column(ImageScore, name) for name in ScoredRow._fields[4:]),
            )
            .join(ImageScore, ImageScore.image_id == Image.id)
            .where(ImageScore.run_id == run_id, Image.id.in_(part))
            .order_by(Image.id)
        )
        rows.extend(ScoredRow(*row) for row in session.execute(statement))
    return rows


def scores_of_images(session: Session, *, run_id: int, image_ids: Sequence[int]) -> dict[int, ImageScore]:
    """The image scores of one run, by image id."""
    statement = select(ImageScore).where(ImageScore.run_id == run_id)
    return {
        row.image_id: row
        for part in in_parts(image_ids)
        for row in session.scalars(statement.where(ImageScore.image_id.in_(part)))
    }


def top_images(session: Session, *, run_id: int, limit: int) -> list[tuple[ImageRow, dict[str, Any] | None]]:
    """The images of a run with the highest entropy, highest first, with the heat maps that they have."""
    statement = (
        select(Image.id, Image.uri, Image.width, Image.height, ImageScore.heatmaps)
        .join(ImageScore, ImageScore.image_id == Image.id)
        .where(ImageScore.run_id == run_id)
        .order_by(ImageScore.entropy.desc(), Image.id)
        .limit(limit)
    )
    return [(ImageRow(*row[:4]), row[4]) for row in session.execute(statement)]


def top_regions(session: Session, *, run_id: int, limit: int) -> Sequence[RegionScore]:
    """The regions of a run with the highest mean entropy, highest first.

    Only the `limit` images with the highest peaks are read: the regions of all other images rank below
    these peaks.
    """
    peaked = (ImageScore.run_id == run_id, ImageScore.entropy_max.is_not(None))
    by_peak = (ImageScore.entropy_max.desc(), ImageScore.image_id)
    highest = select(ImageScore.image_id).where(*peaked).order_by(*by_peak).limit(limit)
    least = select(ImageScore.entropy_max).where(*peaked).order_by(*by_peak).offset(limit - 1).limit(1)
    statement = (
        select(RegionScore)
        .where(
            RegionScore.run_id == run_id,
            RegionScore.image_id.in_(highest),
            RegionScore.entropy >= func.coalesce(least.scalar_subquery(), 0.0),
        )
        .order_by(RegionScore.entropy.desc(), RegionScore.image_id, RegionScore.region_index)
        .limit(limit)
    )
    return session.scalars(statement).all()


def regions_at(
    session: Session, *, run_id: int, places: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], FoundRegion]:
    """Regions of a run by image id and region index; missing ones are left out."""
    table = RegionScore
    columns = (
        *(Image.id, Image.uri, table.region_index, table.x, table.y, table.w, table.h, table.outline),
        *(table.predicted_class, table.class_share),
        *(table.expected_entropy, table.mutual_information, table.variation_ratio),
    )
    requested, images = set(places), sorted({image_id for image_id, _ in places})
    found: dict[tuple[int, int], FoundRegion] = {}
    for part in in_parts(images):
        statement = (
            select(*columns)
            .join(Image, Image.id == table.image_id)
            .where(table.run_id == run_id, table.image_id.in_(part))
        )
        rows = (FoundRegion(*row) for row in session.execute(statement))
        found.update(
            ((row.image_id, row.region_index), row)
            for row in rows
            if (row.image_id, row.region_index) in requested
        )
    return found


def scored_regions(session: Session, *, run_id: int, image_ids: Sequence[int]) -> list[ScoredRegion]:
    """The regions of a few images, by image and index."""
    found: list[ScoredRegion] = []
    for part in in_parts(image_ids):
        statement = (
            select(*(_column(RegionScore, name) for name in ScoredRegion._fields))
            .where(RegionScore.run_id == run_id, RegionScore.image_id.in_(part))
            .order_by(RegionScore.image_id, RegionScore.region_index)
        )
        found.extend(ScoredRegion(*row) for row in session.execute(statement))
    return found


def class_pixels(
    session: Session, run_id: int, image_ids: Sequence[int], *, num_classes: int
) -> npt.NDArray[np.float64]:
    """Pixels of the regions that each class is predicted on, [n, C], in the order of `image_ids`."""
    place = {image_id: row for row, image_id in enumerate(image_ids)}
    pixels = np.zeros((len(image_ids), num_classes))
    for part in in_parts(image_ids):
        statement = (
            select(RegionScore.image_id, RegionScore.predicted_class, func.sum(RegionScore.pixels))
            .where(RegionScore.run_id == run_id, RegionScore.image_id.in_(part))
            .group_by(RegionScore.image_id, RegionScore.predicted_class)
        )
        for image_id, predicted, count in session.execute(statement):
            pixels[place[image_id], predicted] = count
    return pixels


def region_columns(session: Session, *, run_id: int, columns: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Columns of a run's region scores as arrays, by image and region; NULL is NaN.

    Raises:
        ValueError: there is no such column.
    """
    return _read_columns(session, RegionScore, run_id, columns)


def region_pages(
    session: Session, *, run_id: int, columns: Sequence[str]
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """As `region_columns`, `PAGE` rows at a time."""
    return _column_pages(session, RegionScore, run_id, columns)


def image_columns(session: Session, *, run_id: int, columns: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Columns of a run's image scores as arrays, by image; NULL is NaN.

    Raises:
        ValueError: there is no such column.
    """
    return _read_columns(session, ImageScore, run_id, columns)


def _peaks(
    image_ids: npt.NDArray[np.int64], of_regions: npt.NDArray[np.int64], entropy: Values
) -> npt.NDArray[np.float32]:
    """The highest entropy of each image's regions; NaN where it has none."""
    if not np.isin(of_regions, image_ids).all():
        raise ValueError("Expected a row of `image_score` for the image of each region.")
    peaks = np.full(len(image_ids), -np.inf, dtype=np.float32)
    order = np.argsort(image_ids)
    places = np.searchsorted(image_ids, of_regions, sorter=order)
    np.fmax.at(peaks, order[places], np.asarray(entropy, dtype=np.float32))
    return np.where(np.isneginf(peaks), np.nan, peaks)


def _read_columns(
    session: Session, table: type[RegionScore] | type[ImageScore], run_id: int, columns: Sequence[str]
) -> dict[str, npt.NDArray[Any]]:
    pages = list(_column_pages(session, table, run_id, columns))
    return {
        name: np.concatenate([page[name] for page in pages]) if pages else np.empty(0) for name in columns
    }


def _column_pages(
    session: Session, table: type[RegionScore] | type[ImageScore], run_id: int, columns: Sequence[str]
) -> Iterator[dict[str, npt.NDArray[Any]]]:
    order = (table.image_id, *((table.region_index,) if issubclass(table, RegionScore) else ()))
    statement = select(*(_column(table, name) for name in columns)).where(table.run_id == run_id)
    result = session.execute(statement.order_by(*order).execution_options(yield_per=PAGE))
    for page in result.partitions(PAGE):
        yield {
            name: np.asarray([np.nan if value is None else value for value in values])
            for name, values in zip(columns, zip(*page, strict=True), strict=True)
        }


def _column(table: type[RegionScore] | type[ImageScore], name: str) -> InstrumentedAttribute[Any]:
    column = getattr(table, name, None)
    if name.startswith("_") or not isinstance(column, InstrumentedAttribute):
        raise ValueError(f"Expected a column of {table.__tablename__}, but got {name!r}.")
    return column  # pyright: ignore[reportUnknownVariableType]
