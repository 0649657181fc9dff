"""What a simulation says: learning curves, differences to the controls, and a verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from db.queries import simulations
from db.queries.simulations import FULL, INITIAL, OTHER_INITIAL, CellKey
from db.tables import Simulation
from pipeline.config import ProjectConfig
from pipeline.evaluation.crossed import Crossed, mean_over_seeds
from pipeline.evaluation.estimate import Estimate, from_json
from pipeline.evaluation.learning_curves import (
    CONTROLS,
    COSTS,
    Comparison,
    Curves,
    Trials,
    compare,
    compare_first,
    curve_at,
    full_share,
    mean_iou,
)
from pipeline.evaluation.overlap import Overlap, intersection_over_union
from pipeline.evaluation.simulation_verdict import Verdict, verdict
from pipeline.format import count, counted, csv_line, number, percent, table


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
class SimulationSummary:
    """The comparison of strategies over the seeds whose cells are all finished.

    Attributes:
        missing: cells of the strategies and seeds asked for that are not finished.
        comparisons: of each other strategy with each control.
        verdicts: of each other strategy, for each region or image, and for each click.
        cells: the documents behind it.
    """

    hash: str
    unit: str
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

    def lines(self) -> Iterator[str]:
        """The tables and the verdicts as text, at most 80 columns wide."""
        yield (
            f"Simulation {self.hash[:8]}: {counted(len(self.seeds), 'seed')}, measured on "
            f"{counted(self.test_images, 'test image')}."
        )
        if self.missing:
            yield f"warning: a seed with an unfinished cell is left out: {counted(self.missing, 'cell')}."
        if not self.seeds:
            return
        yield f"mIoU by {self.unit}s labeled, ± the half of its interval over seeds and test images:"
        yield from table(
            ("strategy", *map(count, self.budgets)),
            [(one.name, *map(_half, one.curve)) for one in self.strategies],
        )
        yield from self._last()
        yield from self._differences()
        yield from self._first()
        yield from (one.sentence for one in self.verdicts)

    def _last(self) -> Iterator[str]:
        """What the last budget has reached and cost."""
        head = ["strategy", "ECE", "rare classes", "of all labels", "clicks", "pixels"]
        rows = [
            [
                one.name,
                number(one.ece.value),
                "–" if one.rare is None else number(one.rare.value),
                "–" if one.full_share is None else percent(one.full_share.value),
                count(round(one.costs["clicks"][-1])),
                count(round(one.costs["pixels"][-1])),
            ]
            for one in self.strategies
        ]
        kept = [at for at in range(len(head)) if any(row[at] != "–" for row in rows)]
        yield f"With {count(self.budgets[-1])} {self.unit}s:"
        yield from table([head[at] for at in kept], [[row[at] for at in kept] for row in rows])
        if self.rare:
            yield f"  rare classes: {', '.join(self.rare)}"

    def _differences(self) -> Iterator[str]:
        """Each strategy against each control."""
        for name in dict.fromkeys(one.strategy for one in self.comparisons):
            yield f"{name} − control: mIoU along the curve; {self.unit}s and clicks saved at equal mIoU:"
            yield from table(
                ("control", f"per {self.unit}", "per click", "saved"),
                [
                    (
                        one.control,
                        *(_signed(part.over_both) for part in (one.area, one.area_by_clicks)),
                        f"{percent(one.saved['labels'].value)}, {percent(one.saved['clicks'].value)}",
                    )
                    for one in self.comparisons
                    if one.strategy == name
                ],
            )

    def _first(self) -> Iterator[str]:
        """The ways to choose the first labels."""
        if not self.cold_starts:
            return
        shared = self.cold_starts[0].name
        yield f"The first {counted(self.budgets[0], self.unit)}, chosen in several ways:"
        yield from table(
            ("first labels", "mIoU", f"− {shared}", "clicks"),
            [
                (
                    one.name,
                    _half(one.miou),
                    "–" if one.difference is None else _signed(one.difference.over_both),
                    count(round(one.clicks)),
                )
                for one in self.cold_starts
            ],
        )

    def document(self) -> dict[str, Any]:
        """The summary as JSON."""
        return {
            "hash": self.hash,
            "unit": self.unit,
            "budgets": list(self.budgets),
            "seeds": list(self.seeds),
            "missing": self.missing,
            "test_images": self.test_images,
            "rare_classes": list(self.rare),
            "verdicts": [
                {
                    "strategy": one.strategy,
                    "per": one.per,
                    "answer": one.answer,
                    "sentence": one.sentence,
                    "seeds_needed": one.seeds_needed,
                }
                for one in self.verdicts
            ],
            "strategies": [_strategy_document(one, self.budgets) for one in self.strategies],
            "comparisons": [_comparison_document(one) for one in self.comparisons],
            "cold_starts": [
                {
                    "name": one.name,
                    "miou": _crossed_document(one.miou),
                    "difference": None if one.difference is None else _crossed_document(one.difference),
                    "clicks": one.clicks,
                }
                for one in self.cold_starts
            ],
        }

    def csv(self) -> str:
        """A line a cell."""
        head = ["strategy", "seed", "budget", *COSTS, "miou", "ece", "ece_before"]
        lines = [csv_line([*head, *(f"iou {name}" for name in self.class_names)])]
        for key, cell in self.cells.items():
            overlap = Overlap.from_document(cell["overlap"])
            sums = [part.sum(axis=0) for part in (overlap.true_positive, overlap.true, overlap.predicted)]
            ious = [None if np.isnan(value) else value for value in intersection_over_union(*sums).tolist()]
            figures = [cell[name] for name in (*COSTS, "miou", "ece", "ece_before")]
            lines.append(csv_line([*key, *figures, *ious]))
        return "".join(lines)


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
    whole = tuple(seed for seed, keys in needed.items() if all(key in known for key in keys))
    missing = len({key for keys in needed.values() for key in keys} - set(known))
    used = {
        key: known[key]
        for key in known
        if (key.strategy in (*names, FULL) or _is_first(key.strategy)) and key.seed in asked
    }
    trials = _trials(known, names, whole, budgets, unit=row.settings["unit"]) if whole else None
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
        budgets=budgets,
        seeds=whole,
        missing=missing,
        class_names=tuple(class_names),
        rare=tuple(class_names[index] for index in trials.rare) if trials is not None else (),
        test_images=next((cell["images"] for cell in used.values()), 0),
        strategies=[_summary(trials, name, confidence=confidence) for name in names] if trials else [],
        comparisons=comparisons,
        verdicts=[
            verdict(of_one, per=per)
            for name in names
            if (of_one := [one for one in comparisons if one.strategy == name])
            for per in (row.settings["unit"], "click")
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
    trials = _trials(known, [INITIAL, *names], seeds, (first,), unit=row.settings["unit"])
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
    budgets: tuple[int, ...],
    *,
    unit: str,
) -> Trials:
    """The cells of these strategies and seeds as arrays."""
    overlaps = {key: Overlap.from_document(cell["overlap"]) for key, cell in known.items()}
    first = overlaps[_key(names[0], seeds[0], budgets[0], budgets)]
    full = [CellKey(FULL, seed, 0) for seed in seeds]

    def curves(name: str) -> Curves:
        keys = [[_key(name, seed, budget, budgets) for budget in budgets] for seed in seeds]
        return Curves(
            overlap=np.stack([np.stack([_sums(overlaps[key], first) for key in row]) for row in keys]),
            costs={
                cost: np.array([[float(known[key][cost]) for key in row] for row in keys]) for cost in COSTS
            },
            ece=np.array([[from_json(known[key]["ece"]) for key in row] for row in keys]),
        )

    return Trials(
        unit=unit,
        budgets=budgets,
        seeds=seeds,
        groups=first.groups,
        least=first.least,
        curves={name: curves(name) for name in names},
        full=np.stack([_sums(overlaps[key], first) for key in full])
        if all(key in known for key in full)
        else None,
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


def _half(one: Crossed) -> str:
    reach = (one.over_both.high - one.over_both.low) / 2
    return number(one.value) + ("" if np.isnan(reach) else f" ± {number(reach)}")


def _signed(one: Estimate) -> str:
    return one.text(sign="+").replace(" (no interval)", "")


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
        "area_by_clicks": _crossed_document(one.area_by_clicks),
        "rare_classes": None if one.rare is None else _crossed_document(one.rare),
        "saved": {cost: found.document() for cost, found in one.saved.items()},
    }
