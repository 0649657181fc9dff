"""What may be queried: the scored regions and images of a run, as numpy columns.

Legend: N candidates, M images. An image is eligible when it is in the pool, is no duplicate, and shares its
content with no image outside the pool. This is the only door to a queue.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import ColumnElement, Executable, exists, literal, select
from sqlalchemy.orm import InstrumentedAttribute, Session, aliased

from db.tables import Image, ImageScore, Model, RegionScore, ScoringRun

FETCH_ROWS = 20_000
WHOLE_IMAGE = -1
"""The region index of a candidate that is a whole image rather than a region of the run's grid."""


@dataclass(frozen=True)
class ImageColumns:
    """The eligible images of a run, M rows by ascending id."""

    id: npt.NDArray[np.int64]
    group: npt.NDArray[np.int32]
    """Index into `group_names`."""
    position: npt.NDArray[np.int64]
    regions: npt.NDArray[np.int32]
    """Regions that the run saw in the image, whether their rows were kept or not."""
    group_names: list[str]


@dataclass(frozen=True)
class CandidateColumns:
    """Scored boxes of eligible images, N rows by ascending image id and region index."""

    image_id: npt.NDArray[np.int64]
    region_index: npt.NDArray[np.int32]
    box: npt.NDArray[np.int32]
    """[N, 4]: x, y, w, h in image pixels."""
    predicted_class: npt.NDArray[np.int16]
    class_share: npt.NDArray[np.float32]
    impurity: npt.NDArray[np.float32]
    score: npt.NDArray[np.float32] | None
    """The measure that was asked for; NaN where the run has none."""
    expected_entropy: npt.NDArray[np.float32] | None
    """None, as `mutual_information`, where the run has no samples."""
    mutual_information: npt.NDArray[np.float32] | None
    pixels: npt.NDArray[np.int64] | None
    """None, as `outline`, where every region fills its box."""
    outline: npt.NDArray[np.object_] | None


def finished_run(session: Session) -> ScoringRun | None:
    """The newest finished scoring run of the newest promoted model."""
    serving = select(Model.id).where(Model.status == "promoted").order_by(Model.id.desc()).limit(1)
    statement = (
        select(ScoringRun)
        .where(ScoringRun.model_id == serving.scalar_subquery(), ScoringRun.finished_at.is_not(None))
        .order_by(ScoringRun.finished_at.desc(), ScoringRun.id.desc())
        .limit(1)
    )
    return session.scalars(statement).first()


def image_columns(session: Session, *, run_id: int) -> ImageColumns:
    """The eligible images that a run has scored."""
    statement = (
        select(Image.id, Image.group_name, Image.position, ImageScore.regions)
        .join(ImageScore, ImageScore.image_id == Image.id)
        .where(ImageScore.run_id == run_id, _is_eligible(Image.id))
        .order_by(Image.id)
    )
    codes: dict[str, int] = {}
    blocks: list[npt.NDArray[np.int64]] = []
    for rows in _blocks(session, statement):
        coded = [(row[0], codes.setdefault(row[1], len(codes)), row[2], row[3]) for row in rows]
        blocks.append(np.array(coded, dtype=np.int64))
    table = np.concatenate(blocks) if blocks else np.empty((0, 4), dtype=np.int64)
    return ImageColumns(
        id=table[:, 0].copy(),
        group=table[:, 1].astype(np.int32),
        position=table[:, 2].copy(),
        regions=table[:, 3].astype(np.int32),
        group_names=list(codes),
    )


def region_candidates(
    session: Session, *, run_id: int, measure: str | None, outlines: bool = False
) -> CandidateColumns:
    """The regions of a run that lie in eligible images.

    Args:
        measure: the column of `region_score` to read as the score; None reads none.
        outlines: read them too: a hundred bytes a region.
    """
    shapes = (RegionScore.pixels, RegionScore.outline) if outlines else ()
    statement = (
        select(
            RegionScore.image_id,
            RegionScore.region_index,
            RegionScore.x,
            RegionScore.y,
            RegionScore.w,
            RegionScore.h,
            RegionScore.predicted_class,
            RegionScore.class_share,
            RegionScore.impurity,
            literal(0.0) if measure is None else RegionScore.__table__.c[measure],
            RegionScore.expected_entropy,
            RegionScore.mutual_information,
            *shapes,
        )
        .where(RegionScore.run_id == run_id, _is_eligible(RegionScore.image_id))
        .order_by(RegionScore.image_id, RegionScore.region_index)
    )
    return _candidates(session, statement, scored=measure is not None, outlines=outlines)


def image_candidates(session: Session, *, run_id: int, measure: str | None) -> CandidateColumns:
    """The eligible images of a run, each as one box, with region index `WHOLE_IMAGE`.

    Args:
        measure: the column of `image_score` to read as the score; None reads none.
    """
    statement = (
        select(
            Image.id,
            literal(WHOLE_IMAGE),
            literal(0),
            literal(0),
            Image.width,
            Image.height,
            ImageScore.predicted_class,
            ImageScore.class_share,
            ImageScore.impurity,
            literal(0.0) if measure is None else ImageScore.__table__.c[measure],
            ImageScore.expected_entropy,
            ImageScore.mutual_information,
        )
        .join(ImageScore, ImageScore.image_id == Image.id)
        .where(ImageScore.run_id == run_id, _is_eligible(Image.id))
        .order_by(Image.id)
    )
    return _candidates(session, statement, scored=measure is not None)


def _is_eligible(image_id: InstrumentedAttribute[int]) -> ColumnElement[bool]:
    held_out = aliased(Image)
    leaks = exists().where(held_out.sha256 == Image.sha256, held_out.split != "pool")
    return image_id.in_(select(Image.id).where(Image.split == "pool", Image.duplicate_of.is_(None), ~leaks))


def _candidates(
    session: Session, statement: Executable, *, scored: bool, outlines: bool = False
) -> CandidateColumns:
    row = np.dtype(
        [
            ("image_id", np.int64),
            ("region_index", np.int32),
            ("box", np.int32, (4,)),
            ("predicted_class", np.int16),
            ("class_share", np.float32),
            ("impurity", np.float32),
            ("score", np.float32),
            ("expected_entropy", np.float32),
            ("mutual_information", np.float32),
            *([("pixels", np.int64), ("outline", np.object_)] if outlines else []),
        ]
    )
    blocks = [_columns(rows, row) for rows in _blocks(session, statement)]
    empty = [np.empty(0, dtype=row)]

    def column(name: str) -> npt.NDArray[Any]:
        return np.concatenate([block[name] for block in blocks or empty])

    def sampled(name: str) -> npt.NDArray[np.float32] | None:
        values = column(name)
        return None if np.isnan(values).all() else values

    return CandidateColumns(
        image_id=column("image_id"),
        region_index=column("region_index"),
        box=column("box"),
        predicted_class=column("predicted_class"),
        class_share=column("class_share"),
        impurity=column("impurity"),
        score=column("score") if scored else None,
        expected_entropy=sampled("expected_entropy"),
        mutual_information=sampled("mutual_information"),
        pixels=column("pixels") if outlines else None,
        outline=column("outline") if outlines else None,
    )


def _columns(rows: Sequence[Sequence[Any]], row: np.dtype[np.void]) -> npt.NDArray[np.void]:
    """Rows as one block: column by column, which is several times faster than row by row."""
    image_id, region_index, x, y, w, h, predicted_class, class_share, impurity, *others = zip(
        *rows, strict=True
    )
    block = np.empty(len(rows), dtype=row)
    block["image_id"] = image_id
    block["region_index"] = region_index
    for side, values in enumerate((x, y, w, h)):
        block["box"][:, side] = values
    block["predicted_class"] = predicted_class
    block["class_share"] = class_share
    block["impurity"] = impurity
    measures, shapes = others[:3], others[3:]
    for name, values in zip(("score", "expected_entropy", "mutual_information"), measures, strict=True):
        block[name] = np.array(values, dtype=np.float32)  # NULL becomes NaN
    if shapes:
        block["pixels"], block["outline"] = shapes
    return block


def _blocks(session: Session, statement: Executable) -> Iterator[Sequence[Sequence[Any]]]:
    # on the connection, not the session: half the time a row, as the ORM makes none of its own
    options = {"yield_per": FETCH_ROWS}
    yield from session.connection().execute(statement, execution_options=options).partitions()
