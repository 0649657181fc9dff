"""A simulation as JSON and CSV."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.evaluation.crossed import Crossed
from pipeline.evaluation.learning_curves import COSTS, Comparison
from pipeline.evaluation.overlap import Overlap, intersection_over_union
from pipeline.format import csv_line
from pipeline.summaries.simulations.figures import SimulationFigures, StrategySummary


def document(found: SimulationFigures) -> dict[str, Any]:
    """The summary as JSON."""
    return {
        "hash": found.hash,
        "unit": found.unit,
        "budget_unit": found.budget_unit,
        "budgets": list(found.budgets),
        "seeds": list(found.seeds),
        "missing": found.missing,
        "test_images": found.test_images,
        "rare_classes": list(found.rare),
        "verdicts": [
            {
                "strategy": one.strategy,
                "per": one.per,
                "answer": one.answer,
                "sentence": one.sentence,
                "seeds_needed": one.seeds_needed,
            }
            for one in found.verdicts
        ],
        "strategies": [_strategy_document(one, found.budgets) for one in found.strategies],
        "comparisons": [_comparison_document(one) for one in found.comparisons],
        "cold_starts": [
            {
                "name": one.name,
                "miou": _crossed_document(one.miou),
                "difference": None if one.difference is None else _crossed_document(one.difference),
                "clicks": one.clicks,
            }
            for one in found.cold_starts
        ],
    }


def csv(found: SimulationFigures) -> str:
    """A line a cell."""
    head = ["strategy", "seed", "budget", "budget_unit", *COSTS, "miou", "ece", "ece_before"]
    lines = [csv_line([*head, *(f"iou {name}" for name in found.class_names)])]
    for key, cell in found.cells.items():
        overlap = Overlap.from_document(cell["overlap"])
        sums = [part.sum(axis=0) for part in (overlap.true_positive, overlap.true, overlap.predicted)]
        ious = [None if np.isnan(value) else value for value in intersection_over_union(*sums).tolist()]
        figures = [cell.get(name) for name in (*COSTS, "miou", "ece", "ece_before")]
        lines.append(csv_line([*key, found.budget_unit, *figures, *ious]))
    return "".join(lines)


def _crossed_document(one: Crossed) -> dict[str, Any]:
    return {
        "seeds": one.over_seeds.document(),
        "seeds_and_images": one.over_both.document(),
        "units": one.units,
    }


def _strategy_document(one: StrategySummary, budgets: Sequence[int]) -> dict[str, Any]:
    return {
        "name": one.name,
        "miou": [
            {"budget": budget, **_crossed_document(found)}
            for budget, found in zip(budgets, one.curve, strict=True)
        ],
        "costs": one.costs,
        "ece": one.ece.document(),
        "rare_classes": None if one.rare is None else one.rare.document(),
        "share_of_all_labels": None if one.full_share is None else one.full_share.document(),
    }


def _comparison_document(one: Comparison) -> dict[str, Any]:
    return {
        "strategy": one.strategy,
        "control": one.control,
        "at": [{"budget": budget, **_crossed_document(found)} for budget, found in one.at.items()],
        "area": _crossed_document(one.area),
        **{f"area_by_{cost}": _crossed_document(one.areas[cost]) for cost in one.compared},
        "rare_classes": None if one.rare is None else _crossed_document(one.rare),
        "saved": {cost: found.document() for cost, found in one.saved.items()},
    }
