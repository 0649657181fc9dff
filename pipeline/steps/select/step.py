"""Select: from the scores of the serving model to the round's queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from db.engine import Database
from db.queries import images as image_queries
from db.queries import queue_items, queues, runs
from db.queries import scores as score_queries
from db.tables import Queue, ScoringRun
from pipeline import rounds
from pipeline.acquisition.ranking import rank_items
from pipeline.acquisition.reasons import reasons
from pipeline.acquisition.selection import Selection, choose
from pipeline.acquisition.strategies import STRATEGIES
from pipeline.config import SelectionConfig
from pipeline.data.project import Project
from pipeline.errors import ConfigError, NothingLeft, NotYourTurn, UserError
from pipeline.format import count
from pipeline.progress import Progress, silent
from pipeline.steps.select.gate import gate_warnings
from pipeline.steps.select.pool import ScoredPool

SHOWN_ITEMS = 10
SHOWN_PARTS = 12


@dataclass(frozen=True)
class PlannedItem:
    """A row of the queue, as it is or would be stored."""

    rank: int
    image_id: int
    uri: str
    group: str
    region_index: int
    box: tuple[int, int, int, int]
    """x, y, w, h in image pixels."""
    outline: str | None
    """Which pixels of the box the region holds; None for all."""
    measure: str | None
    score: float | None
    predicted_class: int
    class_name: str
    slice: str
    inclusion_probability: float | None
    reason: str


@dataclass(frozen=True)
class QueuePreview:
    """A queue, and what it is made of."""

    name: str
    strategy: str
    unit: str
    items: list[PlannedItem]
    candidates: int
    """Regions, or images, that could have been chosen."""
    by_class: dict[str, int]
    by_group: dict[str, int]
    by_slice: dict[str, int]
    score_range: tuple[float, float] | None
    """Lowest and highest score of the items; None for a strategy without a measure."""
    warnings: list[str]

    def lines(self) -> list[str]:
        """The queue in words: what it is made of, and its first items."""
        said = [
            f"{self.name}: {len(self.items)} of {count(self.candidates)} {self.unit}s by {self.strategy}.",
            f"  slices   {_counts(self.by_slice)}",
            f"  classes  {_counts(self.by_class)}",
            f"  groups   {_counts(self.by_group)}",
        ]
        if self.score_range is not None:
            low, high = self.score_range
            said.append(f"  scores   {low:.3f} to {high:.3f}")
        said += [f"  {item.rank:4d}  {item.uri}  {item.reason}" for item in self.items[:SHOWN_ITEMS]]
        if len(self.items) > SHOWN_ITEMS:
            said.append(f"  … and {count(len(self.items) - SHOWN_ITEMS)} more")
        return said + [f"warning: {warning}" for warning in self.warnings]


def select(
    project: Project,
    database: Database,
    *,
    dry_run: bool = False,
    overrides: Mapping[str, Any] | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> QueuePreview:
    """Choose the round's queue and store it in place of the draft that there may be.

    Args:
        dry_run: store nothing.
        overrides: keys of `selection` that replace those of the configuration, for this queue.
        force: rank by mutual information even where it did not pass its gate.

    Raises:
        NotYourTurn: another step comes next.
        ConfigError: an override is not valid.
        UserError: nothing has been scored, nothing is left to choose from, the run lacks the measure, or it
            is mutual information and did not pass its gate.
    """
    config = _overridden(project.config.selection, overrides or {})
    with database.session(write=False) as session:
        current = rounds.require(session, "select")
        run = runs.finished_run(session)
        if run is None:
            raise UserError("The serving model has no finished scores yet.", "Run `segcurate score`.")
        draft = queues.round_queue(session, current.id)
        name = queues.free_queue_name(session, number=current.number, round_id=current.id)
        images = score_queries.count_scored(session, run_id=run.id)
        closed = queue_items.taken_regions(session, except_queue_id=draft.id if draft else None)
        gate = gate_warnings(
            session,
            run,
            measure=STRATEGIES[config.strategy].measure,
            config=project.config.evaluation,
            force=force,
        )
    pool = ScoredPool(database, run, config, closed)
    progress("Choosing", 0, None)
    try:
        selection = choose(pool.read, config, round_number=current.number)
    except LookupError:
        selection = None
    if selection is None or pool.scored == 0:
        raise UserError(
            f"Scoring run {run.id} holds no {config.unit} of the pool.",
            "Add images and run `segcurate ingest`, then `segcurate score`.",
        )
    if len(selection.items) == 0:
        raise NothingLeft(
            f"Nothing is left to choose from: every {config.unit} of the pool is queued or labeled already.",
            "Add images and run `segcurate ingest`, then `segcurate score`.",
        )
    lines = reasons(
        selection,
        rank_items(pool.read, selection),
        config,
        class_names=project.config.data.class_names,
        group_names=pool.group_names,
    )
    with database.session(write=False) as session:
        uris = image_queries.image_uris(session, selection.items.image_id.tolist())
    preview = _preview(
        name,
        selection,
        config,
        lines=lines,
        uris=uris,
        class_names=project.config.data.class_names,
        group_names=pool.group_names,
        warnings=gate
        + _warnings(selection, config, class_names=project.config.data.class_names, kept=pool.scored),
    )
    if not dry_run:
        _store(database, preview, config, round_id=current.id, run=run, images=images)
    progress("Choosing", len(preview.items), len(preview.items))
    return preview


def _counts(parts: Mapping[str, int]) -> str:
    shown = ", ".join(f"{count} {name}" for name, count in list(parts.items())[:SHOWN_PARTS])
    return shown + (f" and {len(parts) - SHOWN_PARTS} more" if len(parts) > SHOWN_PARTS else "")


def _overridden(config: SelectionConfig, overrides: Mapping[str, Any]) -> SelectionConfig:
    try:
        return SelectionConfig.model_validate({**config.model_dump(), **overrides})
    except ValidationError as error:
        problems = "; ".join(
            ".".join(["selection", *map(str, problem["loc"])])
            + ": "
            + problem["msg"].removeprefix("Value error, ")
            for problem in error.errors()
        )
        raise ConfigError(f"The queue cannot be chosen like this: {problems}") from error


def _warnings(
    selection: Selection, config: SelectionConfig, *, class_names: list[str], kept: int
) -> list[str]:
    budget, shortlist, unit = selection.budget, selection.shortlist, f"{config.unit}s"
    found: list[str] = []
    if budget.requested > shortlist.available:
        found.append(
            f"The budget of {count(budget.requested)} is more than the "
            f"{count(shortlist.available)} {unit} that are left."
        )
    if len(selection.index) < budget.total:
        found.append(
            f"Only {count(len(selection.index))} of {count(budget.total)} {unit} were chosen: "
            "`per_image_cap`, `no_touching` and `min_gap` forbid the rest."
        )
    missing = [name for index, name in enumerate(class_names) if index not in shortlist.classes]
    if missing and config.strategy in ("stratified", "class_random"):
        found.append(
            f"No {config.unit} is predicted to be mostly {', '.join(missing)}: the budget of these classes "
            "went to the others, and only chance finds them."
        )
    if config.unit == "region" and kept < shortlist.regions and budget.audit:
        found.append(
            "`scoring.keep_regions` dropped regions: the audit draws from those that were kept, and says "
            "nothing about the others."
        )
    if config.noise_beta is not None and not STRATEGIES[config.strategy].takes_noise:
        found.append(f"`noise_beta` does nothing with `strategy: {config.strategy}`.")
    return found


def _preview(
    name: str,
    selection: Selection,
    config: SelectionConfig,
    *,
    lines: list[str],
    uris: dict[int, str],
    class_names: list[str],
    group_names: list[str],
    warnings: list[str],
) -> QueuePreview:
    chosen = selection.items
    items: list[PlannedItem] = []
    for index, (audit, reason) in enumerate(zip(selection.audit.tolist(), lines, strict=True)):
        image = int(chosen.image[index])
        predicted_class = int(chosen.predicted_class[index])
        x, y, w, h = chosen.box[index].tolist()
        items.append(
            PlannedItem(
                rank=index + 1,
                image_id=int(chosen.image_id[image]),
                uri=uris[int(chosen.image_id[image])],
                group=group_names[int(chosen.group[image])],
                region_index=int(chosen.region_index[index]),
                box=(x, y, w, h),
                outline=None if chosen.outline is None else chosen.outline[index],
                measure=STRATEGIES[config.strategy].measure,
                score=None if chosen.score is None else float(chosen.score[index]),
                predicted_class=predicted_class,
                class_name=class_names[predicted_class],
                slice="audit" if audit else "selected",
                inclusion_probability=selection.inclusion_probability if audit else None,
                reason=reason,
            )
        )
    scores = [item.score for item in items if item.score is not None]
    return QueuePreview(
        name=name,
        strategy=config.strategy,
        unit=config.unit,
        items=items,
        candidates=selection.shortlist.available,
        by_class=dict(Counter(item.class_name for item in items).most_common()),
        by_group=dict(Counter(item.group for item in items).most_common()),
        by_slice=dict(Counter(item.slice for item in items).most_common()),
        score_range=(min(scores), max(scores)) if scores else None,
        warnings=warnings,
    )


def _store(
    database: Database,
    preview: QueuePreview,
    config: SelectionConfig,
    *,
    round_id: int,
    run: ScoringRun,
    images: int,
) -> None:
    with database.session() as session:
        current = rounds.require(session, "select")
        if current.id != round_id:
            raise NotYourTurn("Another process has finished the round meanwhile.", "Run `segcurate status`.")
        queue = Queue(
            round_id=round_id,
            name=preview.name,
            kind="selected",
            run_id=run.id,
            strategy=config.strategy,
            unit=config.unit,
            seed=config.seed,
            spec={
                "selection": config.model_dump(mode="json"),
                "scorer_hash": run.scorer_hash,
                "images": images,
                "candidates": preview.candidates,
                "by_slice": preview.by_slice,
                "warnings": preview.warnings,
            },
        )
        queues.replace_draft(session, queue, [_row(item) for item in preview.items])
        rounds.advance(session, current, "select")


def _row(item: PlannedItem) -> dict[str, Any]:
    x, y, w, h = item.box
    return {
        "rank": item.rank,
        "image_id": item.image_id,
        "region_index": item.region_index,
        "x": x,
        "y": y,
        "w": w,
        "h": h,
        "outline": item.outline,
        "measure": item.measure,
        "score": item.score,
        "predicted_class": item.predicted_class,
        "slice": item.slice,
        "inclusion_probability": item.inclusion_probability,
        "reason": item.reason,
    }
