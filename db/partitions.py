"""The partitions of the two score tables, one of each a run; on SQLite, which has none, nothing is done."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.orm import Session

PARTITIONED = ("image_score", "region_score")


def add_partitions(session: Session, *, run_id: int) -> None:
    """Make the partitions of a run, where they are missing.

    The caller has locked the run's row, so that no other process makes them at once. A partition is made
    apart and then attached: other runs may be written and read meanwhile.
    """
    if session.get_bind().dialect.name == "sqlite":
        return
    for table in PARTITIONED:
        mine = f"{table}_{run_id:d}"
        if session.scalar(text("SELECT to_regclass(:name)"), {"name": mine}) is None:
            session.execute(text(f"CREATE TABLE {mine} (LIKE {table} INCLUDING DEFAULTS INCLUDING INDEXES)"))
            session.execute(text(f"ALTER TABLE {table} ATTACH PARTITION {mine} FOR VALUES IN ({run_id:d})"))


def analyze_partitions(session: Session, *, run_id: int) -> None:
    """Tell the planner what a run holds: the server does so by itself only minutes later."""
    for mine in _of_run(session, run_id):
        session.execute(text(f"ANALYZE {mine}"))


def detach_partitions(session: Session, *, run_id: int, patience: float) -> None:
    """Take a run's partitions out of the tables: nothing finds their rows any more, though they are there.

    Args:
        patience: seconds to wait for those who read or write scores at the moment, of whatever run: the
            server makes everybody else wait behind the one who detaches.

    Raises:
        OperationalError: other transactions use the scores for longer.
    """
    for mine in _of_run(session, run_id):
        session.execute(text(f"SET LOCAL lock_timeout = {round(1000 * patience)}"))
        session.execute(text(f"ALTER TABLE {_parent(mine)} DETACH PARTITION {mine}"))


def drop_detached(session: Session, *, run_id: int) -> bool:
    """Drop a run's detached partitions. Large ones take long, but block no other transaction.

    Returns:
        Whether there were any.
    """
    found = _of_run(session, run_id)
    for mine in found:
        session.execute(text(f"DROP TABLE {mine}"))
    return bool(found)


def _of_run(session: Session, run_id: int) -> list[str]:
    """The partitions of a run that are there, attached or not."""
    if session.get_bind().dialect.name == "sqlite":
        return []
    names = [f"{table}_{run_id:d}" for table in PARTITIONED]
    found = text("SELECT to_regclass(:name) IS NOT NULL")
    return [name for name in names if session.scalar(found, {"name": name})]


def _parent(partition: str) -> str:
    return partition.rpartition("_")[0]
