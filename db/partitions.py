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
    if session.get_bind().dialect.name == "sqlite":
        return
    for table in PARTITIONED:
        if session.scalar(text("SELECT to_regclass(:name)"), {"name": f"{table}_{run_id:d}"}) is not None:
            session.execute(text(f"ANALYZE {table}_{run_id:d}"))


def drop_partitions(session: Session, *, run_id: int, patience: float) -> None:
    """Drop a run's partitions with all that they hold.

    Args:
        patience: seconds to wait for those who read or write scores at the moment, of whatever run: the
            server makes everybody else wait behind the one who drops.

    Raises:
        OperationalError: somebody is at it for longer.
    """
    session.execute(text(f"SET LOCAL lock_timeout = {round(1000 * patience)}"))
    for table in PARTITIONED:
        session.execute(text(f"DROP TABLE IF EXISTS {table}_{run_id:d}"))
