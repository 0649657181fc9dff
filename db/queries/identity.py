"""The project that a database belongs to."""

from __future__ import annotations

from uuid import uuid4

from sqlalchemy import select
from sqlalchemy.orm import Session

from db.tables import Identity


def read_identity(session: Session) -> Identity | None:
    """The project's id and name, or None before a project has opened the database."""
    return session.scalars(select(Identity)).first()


def new_id() -> str:
    """An id that no other project has: 32 hex digits."""
    return uuid4().hex


def claim(session: Session, *, name: str) -> Identity:
    """The identity of the project, created with this name if the database belongs to no project yet.

    Where two processes create it at once, the second one fails with an IntegrityError.
    """
    identity = read_identity(session)
    if identity is None:
        identity = Identity(key=1, id=new_id(), name=name)
        session.add(identity)
        session.flush()
    return identity
