"""Files that a step could not use, and the reasons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import delete, func, insert, or_, select
from sqlalchemy.orm import Session

from db.queries.paging import in_parts
from db.tables import Failure, utc_now


def record_failures(session: Session, step: str, failures: Iterable[tuple[str, str]]) -> None:
    """Store the files that a step could not use, as (subject, reason), in place of an earlier reason."""
    reasons = dict(failures)
    clear_failures(session, step, list(reasons))
    now = utc_now()
    rows = [
        {"step": step, "subject": subject, "reason": reason, "at": now} for subject, reason in reasons.items()
    ]
    if rows:
        session.execute(insert(Failure), rows)


def clear_failures(session: Session, step: str, subjects: Sequence[str] | None = None) -> None:
    """Delete a step's failures: those of these subjects, or all."""
    of_step = delete(Failure).where(Failure.step == step)
    if subjects is None:
        session.execute(of_step)
        return
    for part in in_parts(subjects):
        session.execute(of_step.where(Failure.subject.in_(part)))


def clear_failures_of_files(session: Session, step: str) -> None:
    """Delete a step's failures except those of a server, whose subjects begin with its address."""
    of_server = or_(*(Failure.subject.startswith(scheme) for scheme in ("http://", "https://")))
    session.execute(delete(Failure).where(Failure.step == step, ~of_server))


def clear_failures_before(session: Session, step: str, moment: datetime) -> None:
    """Delete a step's failures that are older than `moment`."""
    session.execute(delete(Failure).where(Failure.step == step, Failure.at < moment))


def list_failures(
    session: Session, *, step: str | None = None, limit: int | None = None
) -> Sequence[Failure]:
    """Failures by step and subject; of one step only, or the first few, where these are given."""
    statement = select(Failure).order_by(Failure.step, Failure.subject).limit(limit)
    if step is not None:
        statement = statement.where(Failure.step == step)
    return session.scalars(statement).all()


def count_failures(session: Session) -> int:
    """How many failures there are."""
    return session.scalar(select(func.count()).select_from(Failure)) or 0
