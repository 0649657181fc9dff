"""Leases on pieces of work, so that only one process does each of them.

A process renews its leases from a thread; when it dies, they expire. A dead process of the same machine is
recognised immediately, so a killed run that is started again does not wait.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy.exc import DBAPIError

from db.engine import Database
from db.queries import leases
from db.queries.leases import TakenLease
from pipeline.data.project import Project
from pipeline.errors import Busy
from pipeline.processes import is_running, this_process

logger = logging.getLogger(__name__)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

LEASE_SECONDS = 60.0
"""How long a lease lasts without a renewal."""
POLL_SECONDS = 0.5


def dead_owners(owners: set[str]) -> set[str]:
    """The owners that were processes of this machine and have ended; others are unknown."""
    return {owner for owner in owners if is_running(owner) is False}


@contextmanager
def renewing(database: Database, *, seconds: float = LEASE_SECONDS) -> Generator[None]:
    """Renew the leases and shards of this process, in a thread, until the block ends."""
    ended = threading.Event()
    owner = this_process()

    def renew() -> None:
        while not ended.wait(seconds / 4):
            try:
                with database.session() as session:
                    leases.renew_leases(session, owner=owner, seconds=seconds)
            except DBAPIError as error:  # the next try may be in time; if not, another process takes over
                logger.warning("The leases could not be renewed: %s", error.orig)

    thread = threading.Thread(target=renew, name="renew leases", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def alone(
    database: Database, name: str, *, wait: bool = False, seconds: float = LEASE_SECONDS
) -> Generator[None]:
    """Hold the lease `name` until the block ends, so that no other process does the same work.

    Where another process has the lease, the caller waits until it is clear whether that process is alive.

    Args:
        wait: also wait for a living process, until it has ended its work.

    Raises:
        Busy: another process has the lease.
    """
    owner = this_process()
    first: TakenLease | None = None
    while (taken := _take(database, name, owner=owner, seconds=seconds)) is not None:
        first = first or taken
        if not wait and (is_running(taken.owner) or taken.until > first.until):  # or it has just been renewed
            raise Busy(name, owner=taken.owner, since=taken.taken_at)
        time.sleep(POLL_SECONDS)
    try:
        with renewing(database, seconds=seconds):
            yield
    finally:
        try:
            database.transact(lambda session: leases.give_lease_back(session, name=name, owner=owner))
        except DBAPIError as error:  # the lease expires by itself; an error of the block is not hidden
            logger.warning("The lease of `%s` could not be given back: %s", name, error.orig)


def one_at_a_time(
    name: str,
) -> Callable[
    [Callable[Concatenate[Project, Database, Arguments], Result]],
    Callable[Concatenate[Project, Database, Arguments], Result],
]:
    """A step that only one process of the project may run at a time; raises `Busy` in the others."""

    def decorate(
        step: Callable[Concatenate[Project, Database, Arguments], Result],
    ) -> Callable[Concatenate[Project, Database, Arguments], Result]:
        @wraps(step)
        def run(
            project: Project, database: Database, *args: Arguments.args, **kw: Arguments.kwargs
        ) -> Result:
            with alone(database, name):
                return step(project, database, *args, **kw)

        return run

    return decorate


def _take(database: Database, name: str, *, owner: str, seconds: float) -> TakenLease | None:
    with database.session(write=False) as session:
        dead = dead_owners(leases.owners(session))
    return database.transact(
        lambda session: leases.take_lease(session, name=name, owner=owner, seconds=seconds, dead=dead)
    )
