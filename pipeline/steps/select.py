"""Select: from the scores of the serving model to the round's queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError
from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import candidates as scored
from db.queries import queues
from db.queries import rounds as round_queries
from db.tables import Queue, ScoringRun
from pipeline import rounds
from pipeline.acquisition.candidates import Candidates
from pipeline.acquisition.exclusion import taken
from pipeline.acquisition.reasons import grouped, reasons
from pipeline.acquisition.selection import Selection, choose
from pipeline.acquisition.strategies import STRATEGIES
from pipeline.config import Project, SelectionConfig
from pipeline.errors import ConfigError, NotYourTurn, UserError
from pipeline.progress import Progress, silent
from pipeline.steps.gate import gate_warnings

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
            f"{self.name}: {len(self.items)} of {grouped(self.candidates)} {self.unit}s by {self.strategy}.",
            f"  slices   {_counts(self.by_slice)}",
            f"  classes  {_counts(self.by_class)}",
            f"  groups   {_counts(self.by_group)}",
        ]
        if self.score_range is not None:
            low, high = self.score_range
            said.append(f"  scores   {low:.3f} to {high:.3f}")
        said += [f"  {item.rank:4d}  {item.uri}  {item.reason}" for item in self.items[:SHOWN_ITEMS]]
        if len(self.items) > SHOWN_ITEMS:
            said.append(f"  … and {grouped(len(self.items) - SHOWN_ITEMS)} more")
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
        run = scored.finished_run(session)
        if run is None:
            raise UserError("The serving model has no finished scores yet.", "Run `segcurate score`.")
        draft = round_queries.round_queue(session, current.id)
        progress("Reading scores", 0, None)
        everything, group_names = _scored_candidates(session, run, config)
        closed = queues.taken_regions(session, except_queue_id=draft.id if draft else None)
    scored_count = len(everything)
    if scored_count == 0:
        raise UserError(
            f"Scoring run {run.id} holds no {config.unit} of the pool.",
            "Add images and run `segcurate ingest`, then `segcurate score`.",
        )
    progress("Choosing", 0, None)
    candidates = _without_taken(everything, closed)
    del everything  # a million regions are 50 MB
    _check(candidates, config)
    with database.session(write=False) as session:
        gate = gate_warnings(
            session,
            run,
            measure=STRATEGIES[config.strategy].measure,
            config=project.config.evaluation,
            force=force,
        )
    selection = choose(candidates, config, round_number=current.number)
    lines = reasons(
        candidates,
        selection,
        config,
        class_names=project.config.data.class_names,
        group_names=group_names,
    )
    with database.session(write=False) as session:
        chosen_images = candidates.image_id[candidates.image[selection.index]]
        uris = queues.image_uris(session, np.unique(chosen_images).tolist())
    preview = _preview(
        f"round-{current.number:02d}",
        candidates,
        selection,
        config,
        lines=lines,
        uris=uris,
        class_names=project.config.data.class_names,
        group_names=group_names,
        warnings=gate
        + _warnings(
            candidates,
            selection,
            config,
            class_names=project.config.data.class_names,
            kept=scored_count,
        ),
    )
    if not dry_run:
        _store(database, preview, config, round_id=current.id, run=run)
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


def _scored_candidates(
    session: Session, run: ScoringRun, config: SelectionConfig
) -> tuple[Candidates, list[str]]:
    """All that the run has scored in eligible images, and the names of their groups."""
    images = scored.image_columns(session, run_id=run.id)
    measure = STRATEGIES[config.strategy].measure
    if config.unit == "region":
        boxes_only = run.scorer.get("regions", {}).get("kind", "grid") in ("grid", "image")
        columns = scored.region_candidates(session, run_id=run.id, measure=measure, outlines=not boxes_only)
    else:
        columns = scored.image_candidates(session, run_id=run.id, measure=measure)
    candidates = Candidates(
        image_id=images.id,
        group=images.group,
        position=images.position,
        regions=images.regions,
        image=np.searchsorted(images.id, columns.image_id),
        region_index=columns.region_index,
        box=columns.box,
        predicted_class=columns.predicted_class,
        class_share=columns.class_share,
        impurity=columns.impurity,
        score=columns.score,
        pixels=columns.pixels,
        outline=columns.outline,
        expected_entropy=columns.expected_entropy,
        mutual_information=columns.mutual_information,
    )
    return candidates, images.group_names


def _without_taken(candidates: Candidates, closed: queues.TakenRegions) -> Candidates:
    """The candidates that are neither queued nor labeled."""
    known = np.isin(closed.image_id, candidates.image_id)
    outline = closed.outline[known]
    return candidates.where(
        ~taken(
            candidates.image,
            candidates.box,
            np.searchsorted(candidates.image_id, closed.image_id[known]),
            closed.box[known],
            pixels=candidates.pixels,
            outline=candidates.outline,
            taken_outline=outline if outline.any() else None,
        )
    )


def _check(candidates: Candidates, config: SelectionConfig) -> None:
    if len(candidates) == 0:
        raise UserError(
            f"Nothing is left to choose from: every {config.unit} of the pool is queued or labeled already.",
            "Add images and run `segcurate ingest`, then `segcurate score`.",
        )
    if candidates.score is not None and not np.isfinite(candidates.score).all():
        raise UserError(
            f"The newest scoring run has no `{STRATEGIES[config.strategy].measure}`, which "
            f"`selection.strategy: {config.strategy}` ranks by.",
            "Set `scoring.sampler: mc_dropout` and run `segcurate score`, or choose another strategy.",
        )


def _warnings(
    candidates: Candidates,
    selection: Selection,
    config: SelectionConfig,
    *,
    class_names: list[str],
    kept: int,
) -> list[str]:
    budget, unit = selection.budget, f"{config.unit}s"
    found: list[str] = []
    if budget.asked > len(candidates):
        found.append(
            f"The budget of {grouped(budget.asked)} is more than the {grouped(len(candidates))} {unit} "
            "that are left."
        )
    if len(selection.index) < budget.total:
        found.append(
            f"Only {grouped(len(selection.index))} of {grouped(budget.total)} {unit} were chosen: "
            "`per_image_cap`, `no_touching` and `min_gap` forbid the rest."
        )
    predicted = set(np.unique(candidates.predicted_class).tolist())
    missing = [name for index, name in enumerate(class_names) if index not in predicted]
    if missing and config.strategy in ("stratified", "class_random"):
        found.append(
            f"No {config.unit} is predicted to be mostly {', '.join(missing)}: the budget of these classes "
            "went to the others, and only chance finds them."
        )
    if config.unit == "region" and kept < int(candidates.regions.sum()) and budget.audit:
        found.append(
            "`scoring.keep_regions` dropped regions: the audit draws from those that were kept, and says "
            "nothing about the others."
        )
    if config.noise_beta is not None and not STRATEGIES[config.strategy].takes_noise:
        found.append(f"`noise_beta` does nothing with `strategy: {config.strategy}`.")
    return found


def _preview(
    name: str,
    candidates: Candidates,
    selection: Selection,
    config: SelectionConfig,
    *,
    lines: list[str],
    uris: dict[int, str],
    class_names: list[str],
    group_names: list[str],
    warnings: list[str],
) -> QueuePreview:
    outlines = None if candidates.outline is None else candidates.outline[selection.index].tolist()
    items: list[PlannedItem] = []
    for rank, (index, audit, reason) in enumerate(
        zip(selection.index.tolist(), selection.audit.tolist(), lines, strict=True), start=1
    ):
        image = int(candidates.image[index])
        predicted_class = int(candidates.predicted_class[index])
        x, y, w, h = candidates.box[index].tolist()
        items.append(
            PlannedItem(
                rank=rank,
                image_id=int(candidates.image_id[image]),
                uri=uris[int(candidates.image_id[image])],
                group=group_names[int(candidates.group[image])],
                region_index=int(candidates.region_index[index]),
                box=(x, y, w, h),
                outline=None if outlines is None else outlines[rank - 1],
                measure=STRATEGIES[config.strategy].measure,
                score=None if candidates.score is None else float(candidates.score[index]),
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
        candidates=len(candidates),
        by_class=dict(Counter(item.class_name for item in items).most_common()),
        by_group=dict(Counter(item.group for item in items).most_common()),
        by_slice=dict(Counter(item.slice for item in items).most_common()),
        score_range=(min(scores), max(scores)) if scores else None,
        warnings=warnings,
    )


def _store(
    database: Database, preview: QueuePreview, config: SelectionConfig, *, round_id: int, run: ScoringRun
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
