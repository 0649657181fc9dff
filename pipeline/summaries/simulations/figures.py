"""The numbers of a simulation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from db.queries.simulations import CLICK, CellKey
from pipeline.evaluation.crossed import Crossed
from pipeline.evaluation.estimate import Estimate
from pipeline.evaluation.learning_curves import Comparison
from pipeline.evaluation.simulation_verdict import Verdict


@dataclass(frozen=True)
class StrategySummary:
    """What one strategy reached.

    Attributes:
        curve: mIoU at each budget.
        ece, rare: at the last budget, over seeds; `rare` is the mean IoU of the rare classes, None without.
        costs: means at each budget, by cost.
        full_share: mIoU at the last budget as a share of that with all labels; None where that was not run.
    """

    name: str
    curve: list[Crossed]
    ece: Estimate
    rare: Estimate | None
    costs: dict[str, list[float]]
    full_share: Estimate | None


@dataclass(frozen=True)
class ColdStart:
    """What the first labels of one way to choose them reached.

    Attributes:
        difference: of mIoU, to those that the strategies start from; None for these themselves.
        clicks: that drawing the labels takes, in the mean of the seeds.
    """

    name: str
    miou: Crossed
    difference: Crossed | None
    clicks: float


@dataclass(frozen=True)
class SimulationFigures:
    """The comparison of strategies over the seeds whose cells are all finished.

    Attributes:
        unit: of a label, `region` or `image`.
        budget_unit: the same, or `click`.
        missing: cells of the strategies and seeds asked for that are not finished.
        comparisons: of each other strategy with each control.
        verdicts: of each other strategy, for each region or image, and for each click of drawing and of
            correcting.
        cells: the documents behind it.
    """

    hash: str
    unit: str
    budget_unit: str
    budgets: tuple[int, ...]
    seeds: tuple[int, ...]
    missing: int
    class_names: tuple[str, ...]
    rare: tuple[str, ...]
    test_images: int
    strategies: list[StrategySummary]
    comparisons: list[Comparison]
    verdicts: list[Verdict]
    cells: Mapping[CellKey, Mapping[str, Any]]
    cold_starts: list[ColdStart] = field(default_factory=list[ColdStart])
    """Those of the first labels, where they were chosen in several ways; the shared one first."""

    @property
    def in_clicks(self) -> bool:
        """Whether budgets are clicks."""
        return self.budget_unit == CLICK

    @property
    def budget_cost(self) -> str:
        """What budgets count, as one of the costs."""
        return "clicks" if self.in_clicks else "labels"
