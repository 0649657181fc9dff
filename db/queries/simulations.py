"""Simulations and their cells, and the images that a simulation plays with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import func, inspect, or_, select
from sqlalchemy.orm import Session

from db.tables import Image, Project, Simulation, SimulationCell

INITIAL, FULL = "initial", "full"
"""The strategies of cells that no strategy has chosen: the shared first labels, and all labels."""
OTHER_INITIAL = f"{INITIAL}:"
"""How the strategy of first labels begins that were chosen in another way than the shared ones."""
CLICK = "click"
"""The `budget_unit` in the settings of a simulation whose budgets are clicks; without it they are labels."""


class CellKey(NamedTuple):
    """Which cell of a simulation; `budget` counts labels, or clicks where the settings say so."""

    strategy: str
    seed: int
    budget: int


def open_simulation(session: Session, *, hash: str, settings: dict[str, Any]) -> Simulation:
    """The simulation of these settings, which is new where there is none."""
    row = session.scalars(select(Simulation).where(Simulation.hash == hash)).first()
    if row is None:
        row = Simulation(hash=hash, settings=settings)
        session.add(row)
        session.flush()
    return row


def newest_simulation(session: Session) -> Simulation | None:
    """The simulation with the newest cell."""
    newest = (
        select(SimulationCell.simulation_id)
        .order_by(SimulationCell.created_at.desc(), SimulationCell.simulation_id.desc())
        .limit(1)
    )
    return session.get(Simulation, found) if (found := session.scalar(newest)) is not None else None


def put_cell(session: Session, simulation_id: int, key: CellKey, document: dict[str, Any]) -> None:
    """Store a cell in place of an earlier one."""
    row = session.get(SimulationCell, (simulation_id, *key))
    if row is None:
        session.add(SimulationCell(simulation_id=simulation_id, **key._asdict(), document=document))
    else:
        row.document = document
    session.flush()


def cell_keys(session: Session, simulation_id: int) -> set[CellKey]:
    """The cells that are finished."""
    columns = (SimulationCell.strategy, SimulationCell.seed, SimulationCell.budget)
    statement = select(*columns).where(SimulationCell.simulation_id == simulation_id)
    return {CellKey(*row) for row in session.execute(statement)}


def cells(session: Session, simulation_id: int) -> dict[CellKey, dict[str, Any]]:
    """The documents of the finished cells."""
    statement = (
        select(SimulationCell)
        .where(SimulationCell.simulation_id == simulation_id)
        .order_by(SimulationCell.strategy, SimulationCell.seed, SimulationCell.budget)
    )
    return {CellKey(row.strategy, row.seed, row.budget): row.document for row in session.scalars(statement)}


def count_cells(session: Session, simulation_id: int) -> int:
    """How many cells are finished."""
    statement = select(func.count()).where(SimulationCell.simulation_id == simulation_id)
    return session.scalar(statement) or 0


def images_to_simulate(session: Session) -> Sequence[Image]:
    """The images that a simulation plays with, by id: those of the pool that have a mask, and those that
    models are measured on. Duplicates of any image are left out."""
    used = or_(Image.split == "pool", Image.split_version.is_not(None))
    statement = (
        select(Image)
        .where(Image.mask_uri.is_not(None), Image.duplicate_of.is_(None), used)
        .order_by(Image.id)
    )
    return session.scalars(statement).all()


def copy_rows(session: Session, rows: Sequence[Image | Project]) -> None:
    """Write rows of another store into this one, with their ids."""
    for row in rows:
        columns = inspect(type(row)).column_attrs.keys()
        session.add(type(row)(**{name: getattr(row, name) for name in columns}))
    session.flush()
