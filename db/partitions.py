"""The partitions of the two score tables, one of each for every run; SQLite has none, and nothing is done."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.orm import Session

PARTITIONED = ("image_score", "region_score")


def add_partitions(session: Session, *, run_id: int) -> None:
    """Create the missing partitions of a run.

    The caller has locked the run's row, so that no other process creates them at the same time. A partition
    is created apart and then attached: other runs may be written and read meanwhile.
    """
    if session.get_bind().dialect.name == "sqlite":
        return
    for table in PARTITIONED:
        partition = f"{table}_{run_id:d}"
        if session.scalar(text("SELECT to_regclass(:name)"), {"name": partition}) is None:
            session.execute(
                text(f"CREATE TABLE {partition} (LIKE {table} INCLUDING DEFAULTS INCLUDING INDEXES)")
            )
            session.execute(
                text(f"ALTER TABLE {table} ATTACH PARTITION {partition} FOR VALUES IN ({run_id:d})")
            )


def analyze_partitions(session: Session, *, run_id: int) -> None:
    """Update the planner's statistics of a run, which the server itself does only minutes later."""
    for partition in _of_run(session, run_id):
        session.execute(text(f"ANALYZE {partition}"))


def detach_partitions(session: Session, *, run_id: int, patience: float) -> None:
    """Detach a run's partitions: queries no longer find their rows, which still exist.

    Args:
        patience: seconds to wait for transactions that read or write scores of any run; meanwhile new ones
            wait behind this one.

    Raises:
        OperationalError: other transactions use the scores for longer.
    """
    for partition in _of_run(session, run_id):
        session.execute(text(f"SET LOCAL lock_timeout = {round(1000 * patience)}"))
        session.execute(text(f"ALTER TABLE {_parent(partition)} DETACH PARTITION {partition}"))


def drop_detached(session: Session, *, run_id: int) -> bool:
    """Drop a run's detached partitions. Large ones take long, but block no other transaction.

    Returns:
        Whether there were any.
    """
    partitions = _of_run(session, run_id)
    for partition in partitions:
        session.execute(text(f"DROP TABLE {partition}"))
    return bool(partitions)


def _of_run(session: Session, run_id: int) -> list[str]:
    """The existing partitions of a run, attached or not."""
    if session.get_bind().dialect.name == "sqlite":
        return []
    names = [f"{table}_{run_id:d}" for table in PARTITIONED]
    exists = text("SELECT to_regclass(:name) IS NOT NULL")
    return [name for name in names if session.scalar(exists, {"name": name})]


def _parent(partition: str) -> str:
    return partition.rpartition("_")[0]
