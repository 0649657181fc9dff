"""The numbers of a simulation, and how they are shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.summaries.simulations import documents, tables
from pipeline.summaries.simulations.figures import SimulationFigures


@dataclass(frozen=True)
class SimulationSummary(SimulationFigures):
    """The comparison as text, as JSON and as CSV."""

    def lines(self) -> Iterator[str]:
        """The tables and the verdicts as text, at most 80 columns wide."""
        return tables.lines(self)

    def document(self) -> dict[str, Any]:
        """The summary as JSON."""
        return documents.document(self)

    def csv(self) -> str:
        """A line a cell."""
        return documents.csv(self)
