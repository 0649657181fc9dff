"""What the store holds, as tables of pandas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import inspect
from sqlalchemy.orm import Session

from db.queries import images as image_queries
from db.queries import scores
from db.queries.models import training_labels
from db.tables import ImageScore, RegionScore
from pipeline.errors import UserError
from pipeline.steps.ready import scored_run

if TYPE_CHECKING:
    import pandas

_LEFT_OUT = frozenset({"run_id", "outline", "heatmaps"})


def images_table(session: Session) -> pandas.DataFrame:
    """The images of the project, in the order in which they came."""
    frames = _pandas()
    labeled = {image.id for image in training_labels(session)}
    rows = image_queries.all_images(session)
    uri_of = {row.id: row.uri for row in rows}
    return frames.DataFrame(
        {
            "image": [row.uri for row in rows],
            "split": [row.split for row in rows],
            "group": [row.group_name for row in rows],
            "position": [row.position for row in rows],
            "width": [row.width for row in rows],
            "height": [row.height for row in rows],
            "has_mask": [row.mask_uri is not None for row in rows],
            "labeled": [row.id in labeled for row in rows],
            "duplicate_of": [uri_of.get(row.duplicate_of or 0) for row in rows],
        }
    )


def scores_table(
    session: Session, *, of: Literal["regions", "images"], class_names: list[str]
) -> pandas.DataFrame:
    """The newest finished scores of the serving model.

    Raises:
        UserError: there are none.
    """
    frames = _pandas()
    run = scored_run(session)
    table, read = (
        (RegionScore, scores.region_columns) if of == "regions" else (ImageScore, scores.image_columns)
    )
    names = [column.key for column in inspect(table).column_attrs if column.key not in _LEFT_OUT]
    columns = read(session, run_id=run.id, columns=names)
    ids = columns.pop("image_id")
    uris = image_queries.image_uris(session, sorted({int(image_id) for image_id in ids}))
    frame = frames.DataFrame(columns)
    frame.insert(0, "image", [uris[int(image_id)] for image_id in ids])
    for name in ("predicted_class", "stratum"):
        codes = frame[name].fillna(-1).astype(int)
        frame[name] = frames.Categorical.from_codes(codes, categories=class_names)
    return frame


def stored_heatmap(session: Session, *, image: str, measure: str) -> str:
    """The URI of a heat map of the newest finished scores.

    Raises:
        UserError: there is no such image, it is not scored, or it has no such map.
    """
    known = image_queries.images_by_uri(session, [image]).get(image)
    if known is None:
        raise UserError(f"There is no image {image!r}.", "Name it as the column `image` of `images()` does.")
    run = scored_run(session)
    scored = scores.scores_of_images(session, run_id=run.id, image_ids=[known.id]).get(known.id)
    if scored is None:
        raise UserError(f"{image} is not scored.", "Only images of the pool are; `scores()` lists them.")
    maps: dict[str, Any] = scored.heatmaps or {}
    if measure not in maps:
        none = "It has none: by default, only the most uncertain images have them."
        has = f"It has {', '.join(maps)}." if maps else none
        raise UserError(
            f"{image} has no heat map of {measure!r}. {has}",
            "See `scoring.heatmaps`: `images: all` makes maps of all images, and `measures` names them.",
        )
    return maps[measure]


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise UserError(
            "Tables need pandas, which is not installed.", "Run `pip install 'segcurate[pandas]'`."
        ) from error
    return pandas
