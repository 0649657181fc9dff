"""Simulated labeling: strategies compared on a project whose images have masks."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from db.base import Base, utc_now


class Simulation(Base):
    """The settings that decide the numbers of its cells, `hash` is of them; strategies and seeds can be added
    later."""

    __tablename__ = "simulation"
    __table_args__ = (UniqueConstraint("hash"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    hash: Mapped[str] = mapped_column(String(64))
    settings: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class SimulationCell(Base):
    """One model of a simulation: what a strategy had reached with `budget` labels, and what these had cost;
    the budget counts clicks where `budget_unit` in the simulation's settings is `click`.

    `strategy` is also `initial` for the labels that all strategies of a seed start with, `initial:coverage`
    for first labels that were chosen in another way, and `full` for all labels of the pool, with budget 0. A
    cell that is computed again gets the same document.
    """

    __tablename__ = "simulation_cell"

    simulation_id: Mapped[int] = mapped_column(
        ForeignKey("simulation.id", ondelete="CASCADE"), primary_key=True
    )
    strategy: Mapped[str] = mapped_column(String(48), primary_key=True)
    seed: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    budget: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    document: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
