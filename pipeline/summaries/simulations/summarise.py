"""From the cells of a simulation to its summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from db.queries import simulations
from db.queries.simulations import CLICK, FULL, INITIAL, OTHER_INITIAL, CellKey
from db.tables import Simulation
from pipeline.config import ProjectConfig
from pipeline.evaluation.crossed import mean_over_seeds
from pipeline.evaluation.estimate import from_json
from pipeline.evaluation.learning_curves import (
    CONTROLS,
    COSTS,
    Curves,
    Trials,
    compare,
    compare_first,
    curve_at,
    full_share,
    mean_iou,
)
from pipeline.evaluation.overlap import Overlap
from pipeline.evaluation.simulation_verdict import verdict
from pipeline.summaries.simulations.figures import ColdStart, StrategySummary
from pipeline.summaries.simulations.summary import SimulationSummary


def simulation_summary(
    session: Session,
    simulation_id: int,
    config: ProjectConfig,
    *,
    strategies: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> SimulationSummary:
    """Summarise a simulation.

    Args:
        strategies, seeds: those that count; by default all that have a cell.
    """
    row = session.get_one(Simulation, simulation_id)
    budgets = tuple(row.settings["budgets"])
    known = simulations.cells(session, simulation_id)
    names = strategies or sorted(
        {key.strategy for key in known if not _is_first(key.strategy)} - {FULL},
        key=lambda name: (name in CONTROLS, name),
    )
    asked = sorted({key.seed for key in known}) if seeds is None else list(seeds)
    needed = {
        seed: [_key(name, seed, budget, budgets) for name in names for budget in budgets] for seed in asked
    }
    whole = tuple(seed for seed, keys in needed.items() if keys and all(key in known for key in keys))
    missing = len({key for keys in needed.values() for key in keys} - set(known))
    used = {
        key: known[key]
        for key in known
        if (key.strategy in (*names, FULL) or _is_first(key.strategy)) and key.seed in asked
    }
    trials = _trials(known, names, whole, row) if whole else None
    class_names = config.data.class_names
    confidence = config.evaluation.confidence
    comparisons = (
        [
            compare(trials, name, control, confidence=confidence)
            for name in names
            if name not in CONTROLS
            for control in names
            if control in CONTROLS
        ]
        if trials is not None
        else []
    )
    return SimulationSummary(
        hash=row.hash,
        unit=row.settings["unit"],
        budget_unit=row.settings.get("budget_unit", row.settings["unit"]),
        budgets=budgets,
        seeds=whole,
        missing=missing,
        class_names=tuple(class_names),
        rare=tuple(class_names[index] for index in trials.rare) if trials is not None else (),
        test_images=next((cell["images"] for cell in used.values()), 0),
        strategies=[_summary(trials, name, confidence=confidence) for name in names] if trials else [],
        comparisons=comparisons,
        verdicts=[
            verdict(of_one, cost=cost, unit=row.settings["unit"])
            for name in names
            if (of_one := [one for one in comparisons if one.strategy == name])
            for cost in of_one[0].compared
        ],
        cells=used,
        cold_starts=_cold_starts(known, whole, row, confidence=confidence),
    )


def newest_summary(session: Session, config: ProjectConfig) -> SimulationSummary | None:
    """The summary of the simulation that was computed last; None where there is none."""
    newest = simulations.newest_simulation(session)
    return None if newest is None else simulation_summary(session, newest.id, config)


def _is_first(strategy: str) -> bool:
    return strategy == INITIAL or strategy.startswith(OTHER_INITIAL)


def _cold_starts(
    known: Mapping[CellKey, Mapping[str, Any]], seeds: tuple[int, ...], row: Simulation, *, confidence: float
) -> list[ColdStart]:
    """The first labels of every way that is finished for these seeds; none where there is only one."""
    first = row.settings["budgets"][0]
    others = sorted({key.strategy for key in known if key.strategy.startswith(OTHER_INITIAL)})
    names = [name for name in others if all(CellKey(name, seed, first) in known for seed in seeds)]
    if not seeds or not names:
        return []
    trials = _trials(known, [INITIAL, *names], seeds, row, first_only=True)
    shown = {name: name.removeprefix(OTHER_INITIAL) for name in names}
    shown[INITIAL] = row.settings.get("cold_start", "random")
    return [
        ColdStart(
            shown[name],
            curve_at(trials, name, confidence=confidence)[0],
            None if name == INITIAL else compare_first(trials, name, INITIAL, confidence=confidence),
            float(trials.curves[name].costs["clicks"].mean()),
        )
        for name in (INITIAL, *names)
    ]


def _key(name: str, seed: int, budget: int, budgets: Sequence[int]) -> CellKey:
    """The cell of a strategy at a budget; the first one is shared, but for other ways to choose it."""
    return CellKey(INITIAL if budget == budgets[0] and not _is_first(name) else name, seed, budget)


def _trials(
    known: Mapping[CellKey, Mapping[str, Any]],
    names: Sequence[str],
    seeds: tuple[int, ...],
    row: Simulation,
    *,
    first_only: bool = False,
) -> Trials:
    """The cells of these strategies and seeds as arrays; `first_only` has those of the first labels."""
    budgets = tuple(row.settings["budgets"][: 1 if first_only else None])
    overlaps = {key: Overlap.from_document(cell["overlap"]) for key, cell in known.items()}
    first = overlaps[_key(names[0], seeds[0], budgets[0], budgets)]
    full = [CellKey(FULL, seed, 0) for seed in seeds]

    def curves(name: str) -> Curves:
        keys = [[_key(name, seed, budget, budgets) for budget in budgets] for seed in seeds]
        measured = [cost for cost in COSTS if all(cost in known[key] for of_seed in keys for key in of_seed)]
        return Curves(
            overlap=np.stack(
                [np.stack([_sums(overlaps[key], first) for key in of_seed]) for of_seed in keys]
            ),
            costs={
                cost: np.array([[float(known[key][cost]) for key in of_seed] for of_seed in keys])
                for cost in measured
            },
            ece=np.array([[from_json(known[key]["ece"]) for key in of_seed] for of_seed in keys]),
        )

    return Trials(
        unit=row.settings["unit"],
        budgets=budgets,
        seeds=seeds,
        groups=first.groups,
        least=first.least,
        curves={name: curves(name) for name in names},
        full=np.stack([_sums(overlaps[key], first) for key in full])
        if all(key in known for key in full)
        else None,
        budget_cost="clicks" if row.settings.get("budget_unit") == CLICK else "labels",
    )


def _sums(overlap: Overlap, first: Overlap) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[r, 3, C]

    Raises:
        ValueError: it was not measured on the same images as the first one.
    """
    if overlap.fingerprint != first.fingerprint:
        raise ValueError("Expected cells that were measured on the same images in the same runs.")
    return np.stack([overlap.true_positive, overlap.true, overlap.predicted], axis=1)


def _summary(trials: Trials, name: str, *, confidence: float) -> StrategySummary:
    curves = trials.curves[name]
    rare = None
    if trials.rare:
        last = mean_iou(curves.overlap[:, -1].sum(axis=1)[..., trials.rare])
        rare, _ = mean_over_seeds(last, confidence=confidence)
    return StrategySummary(
        name=name,
        curve=curve_at(trials, name, confidence=confidence),
        ece=mean_over_seeds(curves.ece[:, -1], confidence=confidence)[0],
        rare=rare,
        costs={cost: values.mean(axis=0).tolist() for cost, values in curves.costs.items()},
        full_share=full_share(trials, name, confidence=confidence),
    )
