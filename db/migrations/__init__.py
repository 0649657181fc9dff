"""The store's revisions: filling an empty database, upgrading an old one, refusing any other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, inspect, text

from db.errors import StoreError

if TYPE_CHECKING:  # Alembic takes a while, and a database at the newest revision does not need it
    from alembic.config import Config

PARTITION = re.compile(r"(region|image)_score_\d+")


def is_declared(name: str | None, kind: str, _parents: Any) -> bool:
    """Whether `db.tables` declares an object of the database; partitions are created with their runs."""
    return kind != "table" or PARTITION.fullmatch(name or "") is None


def alembic_config(engine: Engine) -> Config:
    """Alembic's settings, built in code: there is no alembic.ini."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "os")
    config.attributes["engine"] = engine
    return config


def head() -> str:
    """The revision that this code works with."""
    return revisions()[-1]


def revisions() -> list[str]:
    """Every revision in order: the numbers that the files of `versions` begin with."""
    return sorted(path.name[:4] for path in (Path(__file__).parent / "versions").glob("[0-9]*.py"))


def current(engine: Engine) -> str | None:
    """The revision that the database is at, or None where it has none."""
    with engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def upgrade(engine: Engine) -> tuple[str | None, str]:
    """Upgrade the database to this code's revision.

    Returns:
        The revision before, and the one after.

    Raises:
        StoreError: the database is newer than this code, or belongs to another program.
    """
    from alembic import command

    before = current(engine)
    _refuse_foreign(engine, before)
    command.upgrade(alembic_config(engine), "head")
    return before, head()


def prepare(engine: Engine) -> None:
    """Create the tables of an empty database; refuse one at another revision.

    Raises:
        StoreError: the database is at another revision, or has tables of another program.
    """
    revision = current(engine)
    if revision == head():
        return
    _refuse_foreign(engine, revision)
    if revision is not None:
        raise StoreError(
            f"The database is at revision {revision}, and this version of segcurate works with {head()}.",
            "Back it up, then run `segcurate db upgrade`.",
        )
    upgrade(engine)


def _refuse_foreign(engine: Engine, revision: str | None) -> None:
    if revision is None:
        if set(inspect(engine).get_table_names()) - {"alembic_version"}:
            raise StoreError(
                "The database has tables of another program.",
                "Point `database.url` at an empty database.",
            )
        return
    if revision not in revisions():
        raise StoreError(
            f"The database is at revision {revision}, which this version of segcurate does not know.",
            "Install the version of segcurate that wrote it, or a newer one.",
        )
