"""What was found out about a model's uncertainty, a document a kind."""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.tables import Assessment, utc_now

Kind = Literal["quality", "stress", "novelty"]


def put_assessment(session: Session, *, model_id: int, kind: Kind, document: dict[str, Any]) -> Assessment:
    """Store a document in the place of the one that is there."""
    found = assessment_of(session, model_id=model_id, kind=kind)
    if found is None:
        found = Assessment(model_id=model_id, kind=kind, document=document)
        session.add(found)
    found.document = document
    found.created_at = utc_now()
    session.flush()
    return found


def assessment_of(session: Session, *, model_id: int, kind: Kind) -> Assessment | None:
    """The document of one kind; None where nobody has asked yet."""
    return session.scalars(
        select(Assessment).where(Assessment.model_id == model_id, Assessment.kind == kind)
    ).one_or_none()
