"""Leases: each names the one process that does a piece of work, and expires when the process dies.

The owner renews its lease. The times of a lease come from the database's clock where it has one (PostgreSQL),
so that they are the same on machines whose clocks differ.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from db.tables import Lease, Shard, utc_now

SILENT = timedelta(hours=1)
"""A lease that expired longer ago than this is deleted."""


class TakenLease(NamedTuple):
    """The lease of another process."""

    owner: str
    taken_at: datetime
    until: datetime


def store_time(session: Session) -> datetime:
    """The current time, the same for every process that shares the store."""
    if session.get_bind().dialect.name == "sqlite":
        return utc_now()
    return session.execute(select(func.clock_timestamp())).scalar_one()


def take_lease(
    session: Session, *, name: str, owner: str, seconds: float, dead: Collection[str] = ()
) -> TakenLease | None:
    """Take a lease that is free, expired, or of a dead owner.

    Other leases that expired long ago, or whose owner is dead, are removed.

    Returns:
        None if the caller has it now, else the lease of the other process.
    """
    now = store_time(session)
    is_over = or_(Lease.until <= now - SILENT, Lease.owner.in_(list(dead)))
    unused = session.scalars(select(Lease.name).where(is_over).with_for_update(skip_locked=True)).all()
    session.execute(delete(Lease).where(Lease.name.in_(unused)))
    row = session.scalars(select(Lease).where(Lease.name == name).with_for_update()).one_or_none()
    if row is None:
        try:
            with session.begin_nested():
                session.add(
                    Lease(name=name, owner=owner, taken_at=now, until=now + timedelta(seconds=seconds))
                )
        except IntegrityError:  # on PostgreSQL another process took it first
            return take_lease(session, name=name, owner=owner, seconds=seconds, dead=dead)
        return None
    if row.owner not in (owner, *dead) and row.until > now:
        return TakenLease(row.owner, row.taken_at, row.until)
    row.owner, row.taken_at, row.until = owner, now, now + timedelta(seconds=seconds)
    session.flush()
    return None


def renew_leases(session: Session, *, owner: str, seconds: float) -> None:
    """Renew every lease and every running shard of the owner."""
    until = store_time(session) + timedelta(seconds=seconds)
    session.execute(update(Lease).where(Lease.owner == owner).values(until=until))
    session.execute(
        update(Shard).where(Shard.owner == owner, Shard.status == "running").values(lease_until=until)
    )


def give_lease_back(session: Session, *, name: str, owner: str) -> None:
    """Remove a lease, if it is still the owner's."""
    session.execute(delete(Lease).where(Lease.name == name, Lease.owner == owner))


def owners(session: Session) -> set[str]:
    """The owners of leases and of running shards."""
    found = set(session.scalars(select(Lease.owner)))
    running = select(Shard.owner).where(Shard.status == "running", Shard.owner.is_not(None)).distinct()
    return found | {owner for owner in session.scalars(running) if owner is not None}


def list_leases(session: Session) -> list[Lease]:
    """All leases, those of dead processes included; oldest first."""
    return list(session.scalars(select(Lease).order_by(Lease.taken_at, Lease.name)))
