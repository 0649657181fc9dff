"""Opening a project's database, which belongs to one project."""

from __future__ import annotations

from sqlalchemy.exc import IntegrityError

from db.engine import Database
from db.queries.identity import claim, new_id, read_identity
from db.tables import Identity
from pipeline.data.project import Project
from pipeline.errors import UserError


def open_database(project: Project) -> Database:
    """The project's database. The first project that opens a database owns it from then on.

    Raises:
        UserError: it belongs to a project of another name.
        StoreError: it cannot be opened, or is at another revision.
    """
    database = Database(project.database_url)
    try:
        owner, name = identity_of(project, database).name, project.config.name
        if owner != name:
            raise UserError(
                f"The database belongs to the project {owner!r}, and the configuration is of {name!r}.",
                "Correct `database.url`; if this project was given a new name, run `segcurate db rename`.",
            )
    except BaseException:
        database.close()
        raise
    return database


def identity_of(project: Project, database: Database) -> Identity:
    """The id and the name of the database's owner, which this project becomes if there is none."""
    with database.session(write=False) as session:
        known = read_identity(session)
    if known is not None:
        return known
    name = project.config.name
    try:
        return database.transact(lambda session: claim(session, name=name))
    except IntegrityError:  # another process was first
        return database.transact(lambda session: claim(session, name=name))


def rename(project: Project, database: Database, *, copied: bool = False) -> tuple[str, str]:
    """Give the database the configuration's name for its project; returns the names before and after.

    Args:
        copied: the database is a copy of another project's, which keeps its id: give this one a new id, with
            which servers do not take the two for one project.

    Raises:
        UserError: a copy has the name of the other project, whose deployments it would replace.
    """
    before, after = identity_of(project, database).name, project.config.name
    if copied and before == after:
        raise UserError(
            f"The copy is still named {before!r}, as the project that it was copied from.",
            "Change `name` in its configuration; then run the command again.",
        )
    with database.session() as session:
        identity = claim(session, name=after)
        identity.name = after
        if copied:
            identity.id = new_id()
    return before, after
