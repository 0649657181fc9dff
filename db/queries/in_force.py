"""Which labels are in force: the newest version of each annotator, for each image of each queue."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Subquery, and_, func, select

from db.tables import Label


def newest_versions(*, each_annotator: bool = True) -> Subquery:
    """`image_id`, `queue_id` and `version` of the labels in force; labels without a name are one annotator's.

    Args:
        each_annotator: otherwise only the newest of all annotators.
    """
    of_one = (Label.image_id, Label.queue_id, *((Label.annotator,) if each_annotator else ()))
    newest = select(Label.image_id, Label.queue_id, func.max(Label.version).label("version"))
    return newest.group_by(*of_one).subquery()


def is_version(newest: Subquery) -> ColumnElement[bool]:
    """That a `Label` is one of these versions; to join on."""
    return and_(
        newest.c.image_id == Label.image_id,
        newest.c.queue_id == Label.queue_id,
        newest.c.version == Label.version,
    )
