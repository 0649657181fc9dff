"""Images: their splits, masks, duplicates and names."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import case, func, insert, select, update
from sqlalchemy.orm import Session

from db.later import later
from db.queries.paging import PAGE, in_parts
from db.tables import Evaluation, Image, Label, Project

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
else:
    np = later("numpy")

SPLITS = ("pool", "calibration", "test", "guard")
"""The splits by their code in `SplitColumns`."""


class SplitColumns(NamedTuple):
    """The columns from which splits are drawn, a row an image, by id.

    Attributes:
        ids: int64 [N].
        groups: int32 [N], index into `names`.
        positions: int64 [N].
        splits: uint8 [N], index into `SPLITS`.
        has_mask: bool [N].
        originals: int64 [N], the id of the image that an exact copy stands for; of any other, its own.
        measured: bool [N], whether a held-out image is in a version of its split.
        names: the groups, in the order of their first image.
    """

    ids: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int64]
    splits: npt.NDArray[np.uint8]
    has_mask: npt.NDArray[np.bool_]
    originals: npt.NDArray[np.int64]
    measured: npt.NDArray[np.bool_]
    names: list[str]


class PoolSizes(NamedTuple):
    """The usable pool, by id: ids int64 [N], widths and heights int32 [N], has_mask bool [N]."""

    ids: npt.NDArray[np.int64]
    widths: npt.NDArray[np.int32]
    heights: npt.NDArray[np.int32]
    has_mask: npt.NDArray[np.bool_]


class ImageRow(NamedTuple):
    """The columns to read an image."""

    id: int
    uri: str
    width: int
    height: int


class ListedImage(NamedTuple):
    """An image as a table of all images shows it."""

    id: int
    uri: str
    split: str
    group_name: str
    position: int
    width: int
    height: int
    mask_uri: str | None
    duplicate_of: int | None


class NamedImage(NamedTuple):
    """An image that a name may refer to; a duplicate refers to its original."""

    id: int
    uri: str
    duplicate_of: int | None


def project_row(session: Session) -> Project | None:
    """The settings that must not change after the first ingest; None before it."""
    return session.scalars(select(Project).limit(1)).first()


def all_images(session: Session) -> list[ListedImage]:
    """Every image, in the order in which they came."""
    statement = select(*(getattr(Image, name) for name in ListedImage._fields)).order_by(Image.id)
    return [ListedImage(*row) for row in session.execute(statement.execution_options(yield_per=PAGE))]


def pool_images(session: Session, *, after_id: int = 0, limit: int) -> Sequence[Image]:
    """A page of the pool by id, without duplicates."""
    statement = (
        select(Image)
        .where(Image.split == "pool", Image.duplicate_of.is_(None), Image.id > after_id)
        .order_by(Image.id)
        .limit(limit)
    )
    return session.scalars(statement).all()


def spread_pool(session: Session, *, most: int) -> tuple[int, Sequence[ImageRow]]:
    """How many images the pool has, and some of them in even steps of their ids: at most about `most`."""
    in_pool = (Image.split == "pool", Image.duplicate_of.is_(None))
    total = session.scalar(select(func.count()).select_from(Image).where(*in_pool)) or 0
    columns = select(Image.id, Image.uri, Image.width, Image.height).where(*in_pool).order_by(Image.id)
    step = max(1, total // most)
    spread = [ImageRow(*row) for row in session.execute(columns.where(Image.id % step == 0)).tuples()]
    return total, spread or [ImageRow(*row) for row in session.execute(columns.limit(most)).tuples()]


def split_images(session: Session, split: str) -> Sequence[Image]:
    """Every image of a split by group and position, without duplicates."""
    statement = (
        select(Image)
        .where(Image.split == split, Image.duplicate_of.is_(None))
        .order_by(Image.group_name, Image.position, Image.id)
    )
    return session.scalars(statement).all()


def measured_images(session: Session, split: str) -> Sequence[Image]:
    """The images with a mask in the newest version of a held-out split, by group and position."""
    statement = (
        select(Image)
        .where(Image.split == split, Image.duplicate_of.is_(None))
        .where(Image.split_version.is_not(None), Image.mask_uri.is_not(None))
        .order_by(Image.group_name, Image.position, Image.id)
    )
    return session.scalars(statement).all()


def split_versions(session: Session) -> dict[str, int]:
    """The newest version of each held-out split, or the newest that a model was measured on, where all images
    of a later one wait again; 0 before the first."""
    versions = {"test": 0, "calibration": 0}
    for table in (Image, Evaluation):
        statement = select(table.split, func.max(table.split_version)).group_by(table.split)
        for split, version in session.execute(statement.where(table.split.in_(list(versions)))):
            versions[split] = max(versions[split], version or 0)
    return versions


def set_split_version(session: Session, ids: Sequence[int], version: int | None) -> None:
    """Images that are measured on from a version of their split on; with None, they wait for the next one."""
    for part in in_parts(ids):
        session.execute(update(Image).where(Image.id.in_(part)).values(split_version=version))


def mask_classes(session: Session) -> dict[int, list[int] | None]:
    """The indices of the classes in each image's mask, by the image's id; None where they are not known."""
    statement = select(Image.id, Image.mask_classes).where(Image.mask_uri.is_not(None))
    return dict(session.execute(statement.execution_options(yield_per=PAGE)).tuples().all())


def images_by_uri(session: Session, uris: Sequence[str]) -> dict[str, Image]:
    """The known images among these URIs."""
    pages = (session.scalars(select(Image).where(Image.uri.in_(part))) for part in in_parts(uris))
    return {row.uri: row for page in pages for row in page}


def images_by_id(session: Session, image_ids: Sequence[int]) -> list[Image]:
    """Images, by id."""
    statement = select(Image).order_by(Image.id)
    pages = (session.scalars(statement.where(Image.id.in_(part))) for part in in_parts(image_ids))
    return [row for page in pages for row in page]


def images_named(session: Session, *, stems: Collection[str], copies_of: Collection[int]) -> list[NamedImage]:
    """The images of the project whose name without its ending is one of these, and the duplicates of some
    images. Reads every URI once."""
    names = {unicodedata.normalize("NFC", stem) for stem in stems}
    statement = select(Image.id, Image.uri, Image.duplicate_of).execution_options(yield_per=10_000)
    rows = (NamedImage(*row) for row in session.execute(statement))
    return [
        row
        for row in rows
        if row.duplicate_of in copies_of or unicodedata.normalize("NFC", PurePosixPath(row.uri).stem) in names
    ]


def image_uris(session: Session, image_ids: Sequence[int]) -> dict[int, str]:
    """The URI of each image."""
    statement = select(Image.id, Image.uri)
    pages = (session.execute(statement.where(Image.id.in_(part))) for part in in_parts(image_ids))
    return {image_id: uri for page in pages for image_id, uri in page}


def originals(session: Session, hashes: Sequence[str]) -> dict[str, int]:
    """The id of the original image of each known content hash."""
    ids: dict[str, int] = {}
    for part in in_parts(hashes):
        statement = (
            select(Image.sha256, Image.id)
            .where(Image.sha256.in_(part), Image.duplicate_of.is_(None))
            .order_by(Image.id.desc())
        )
        ids.update(session.execute(statement).tuples().all())
    return ids


def insert_images(session: Session, rows: Sequence[dict[str, Any]]) -> None:
    """New images, each a dict of the table's columns."""
    if rows:
        session.execute(insert(Image), list(rows))


def update_images(session: Session, rows: Sequence[dict[str, Any]]) -> None:
    """New values of images: `id` and the columns to change, the same ones in each row."""
    if rows:
        session.execute(update(Image), list(rows))


def set_splits(session: Session, ids: npt.NDArray[np.int64], codes: npt.NDArray[np.uint8]) -> None:
    """Put images into splits (codes are indices into `SPLITS`)."""
    for start in range(0, len(ids), PAGE):
        page = slice(start, start + PAGE)
        rows = zip(ids[page].tolist(), codes[page].tolist(), strict=True)
        session.execute(update(Image), [{"id": id, "split": SPLITS[code]} for id, code in rows])


def link_duplicates(session: Session) -> None:
    """Of all images with the same content, make one the original and the others its duplicates.

    The original is the first in the order test, calibration, guard, pool, then by id. So no pool image with
    the content of a held-out image is used.
    """
    repeated = select(Image.sha256).group_by(Image.sha256).having(func.count() > 1)
    rank = case(
        (Image.split == "test", 0), (Image.split == "calibration", 1), (Image.split == "guard", 2), else_=3
    )
    statement = (
        select(Image.sha256, Image.id)
        .where(Image.sha256.in_(repeated))
        .order_by(Image.sha256, rank, Image.id)
        .execution_options(yield_per=PAGE)
    )
    links: list[dict[str, int | None]] = []
    original: tuple[str, int] | None = None
    for sha256, image_id in session.execute(statement).all():
        if original is None or original[0] != sha256:
            original = (sha256, image_id)
        links.append({"id": image_id, "duplicate_of": None if original[1] == image_id else original[1]})
    if links:
        session.execute(update(Image), links)


def split_columns(session: Session) -> SplitColumns:
    """Group, position and split of every image, as columns: some 35 bytes an image."""
    types = (np.int64, np.int32, np.int64, np.uint8, np.bool_, np.int64, np.bool_)
    kinds = zip(SplitColumns._fields, types, strict=False)
    index_of: dict[str, int] = {}
    of_mask = (
        Image.mask_uri.is_not(None),
        func.coalesce(Image.duplicate_of, Image.id),
        Image.split_version.is_not(None),
    )
    statement = (
        select(Image.id, Image.group_name, Image.position, Image.split, *of_mask)
        .order_by(Image.id)
        .execution_options(yield_per=PAGE)
    )
    rows = (
        (image_id, index_of.setdefault(group, len(index_of)), position, SPLITS.index(split), *rest)
        for image_id, group, position, split, *rest in session.execute(statement)
    )
    table = np.fromiter(rows, dtype=list(kinds))
    return SplitColumns(*(table[name].copy() for name in SplitColumns._fields[:-1]), names=list(index_of))


def pool_sizes(session: Session) -> PoolSizes:
    """Sizes of the usable pool, as columns."""
    kinds = zip(PoolSizes._fields, (np.int64, np.int32, np.int32, np.bool_), strict=True)
    statement = (
        select(Image.id, Image.width, Image.height, Image.mask_uri.is_not(None))
        .where(Image.split == "pool", Image.duplicate_of.is_(None))
        .order_by(Image.id)
        .execution_options(yield_per=PAGE)
    )
    table = np.fromiter((tuple(row) for row in session.execute(statement)), dtype=list(kinds))
    return PoolSizes(*(table[name].copy() for name in PoolSizes._fields))


def unlabeled_ids(session: Session) -> Sequence[int]:
    """The images of the pool without any label, by id; no duplicates."""
    statement = (
        select(Image.id)
        .where(
            Image.split == "pool",
            Image.duplicate_of.is_(None),
            ~select(Label.id).where(Label.image_id == Image.id).exists(),
        )
        .order_by(Image.id)
    )
    return session.scalars(statement).all()


def count_splits(session: Session) -> dict[str, int]:
    """Usable images by split; duplicates are counted under `duplicate`."""
    name = case((Image.duplicate_of.is_not(None), "duplicate"), else_=Image.split)
    return dict(session.execute(select(name, func.count()).group_by(name)).tuples().all())


def count_unmasked(session: Session) -> dict[str, int]:
    """Calibration and test images without a mask, which cannot be evaluated, by split."""
    statement = (
        select(Image.split, func.count())
        .where(
            Image.split.in_(("calibration", "test")), Image.duplicate_of.is_(None), Image.mask_uri.is_(None)
        )
        .group_by(Image.split)
    )
    return dict(session.execute(statement).tuples().all())


def count_masks(session: Session, *, outside: str | None = None) -> int:
    """Images with a mask.

    Args:
        outside: a folder's URI; masks in it do not count.
    """
    statement = select(func.count()).select_from(Image).where(Image.mask_uri.is_not(None))
    if outside is not None:
        statement = statement.where(~Image.mask_uri.startswith(f"{outside}/", autoescape=True))
    return session.scalar(statement) or 0
