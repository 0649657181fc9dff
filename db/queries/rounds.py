"""Rounds."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.tables import Round


def current_round(session: Session) -> Round | None:
    """The round with the highest number, or None before the first."""
    return session.scalars(select(Round).order_by(Round.number.desc()).limit(1)).first()


def list_rounds(session: Session) -> Sequence[Round]:
    """All rounds, oldest first."""
    return session.scalars(select(Round).order_by(Round.number)).all()


def open_round(session: Session, *, number: int, state: str) -> Round:
    """A new round."""
    row = Round(number=number, state=state)
    session.add(row)
    session.flush()
    return row
