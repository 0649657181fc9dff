"""Select: from the scores of the serving model, or without any, to the round's queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import candidates as candidate_queries
from db.queries import images as image_queries
from db.queries import queue_items, queues
from db.queries import scores as score_queries
from db.queries import shards as shard_queries
from db.queries.queue_items import TakenRegions
from db.tables import Model, Queue, QueueItem, ScoringRun
from pipeline import rounds
from pipeline.acquisition.candidates import NOT_PREDICTED
from pipeline.acquisition.ranking import rank_items
from pipeline.acquisition.reasons import reasons
from pipeline.acquisition.selection import EmptyPool, Selection, choose
from pipeline.acquisition.strategies import STRATEGIES
from pipeline.config import RegionConfig, SelectionConfig
from pipeline.data.project import Project
from pipeline.errors import NothingLeft, NotYourTurn, UserError
from pipeline.format import count, counted, counts, named_slices, out_of
from pipeline.model.checkpoints import read_card
from pipeline.progress import Progress, silent
from pipeline.steps.ingest.splits import lock_project
from pipeline.steps.ready import scored_run, selection_to_make
from pipeline.steps.select.features import features_for
from pipeline.steps.select.first import first_queue
from pipeline.steps.select.gate import gate_warnings
from pipeline.steps.select.pool import Pool, ScoredPool, UnscoredPool

SHOWN_ITEMS = 10
SHOWN_PARTS = 12
NO_CLASS = "not predicted"
"""The class of an item that no model has scored."""
SHOWN_COLUMNS = (
    *("rank", "image_id", "region_index", "outline", "measure", "score", "predicted_class"),
    *("slice", "inclusion_probability", "reason"),
)


@dataclass(frozen=True)
class SelectionReport:
    """The round's queue: its items and counts of them.

    Attributes:
        items: the queue's rows, best rank first; they have no id after a dry run.
        uris, groups: of the items' images, by image id.
        candidates: regions, or images, that could have been chosen.
        score_range: the lowest and the highest score of the items; None for a strategy without a measure.
        notes: how the queue was chosen where that is not as configured.
    """

    name: str
    strategy: str
    unit: str
    items: list[QueueItem]
    uris: dict[int, str]
    groups: dict[int, str]
    class_names: list[str]
    candidates: int
    by_class: dict[str, int]
    by_group: dict[str, int]
    by_slice: dict[str, int]
    score_range: tuple[float, float] | None
    warnings: list[str]
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The counts, the first items and the warnings."""
        lines = [
            *self.notes,
            f"{self.name}: {out_of(len(self.items), self.candidates, self.unit)} by {self.strategy}.",
            f"  chosen   {counts(named_slices(self.by_slice))}",
            *([] if set(self.by_class) == {NO_CLASS} else [f"  mostly   {_counts(self.by_class)}"]),
            f"  groups   {_counts({f'in {name}': number for name, number in self.by_group.items()})}",
        ]
        if self.score_range is not None:
            low, high = self.score_range
            lines.append(f"  scores   {low:.3f} to {high:.3f}")
        lines += [
            f"  {item.rank:4d}  {self.uris[item.image_id]}  {item.reason}"
            for item in self.items[:SHOWN_ITEMS]
        ]
        if len(self.items) > SHOWN_ITEMS:
            lines.append(f"  … and {count(len(self.items) - SHOWN_ITEMS)} more")
        return lines + [f"warning: {warning}" for warning in self.warnings]

    def document(self) -> dict[str, Any]:
        """The report for JSON; each item names its image's file and group, and its class."""
        summary = {field.name: getattr(self, field.name) for field in fields(self)}
        for lookup in ("uris", "groups", "class_names"):
            del summary[lookup]
        return summary | {
            "items": [
                {column: getattr(item, column) for column in SHOWN_COLUMNS}
                | {"uri": self.uris[item.image_id], "group": self.groups[item.image_id]}
                | {"box": (item.x, item.y, item.w, item.h)}
                | {"class_name": _class_name(item, self.class_names)}
                for item in self.items
            ]
        }


def select(
    project: Project,
    database: Database,
    *,
    dry_run: bool = False,
    overrides: Mapping[str, Any] | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> SelectionReport:
    """Choose the round's queue, and store it in place of its draft if there is one.

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
    with database.session(write=False) as session:
        current, config = selection_to_make(session, project.config, overrides or {}, preview=dry_run)
        out = current.state == "import"
        draft = None if out else queues.round_queue(session, current.id)
        name = queues.free_queue_name(session, number=current.number, round_id=current.id)
        closed = queue_items.taken_regions(session, except_queue_id=draft.id if draft else None)
        if current.number == rounds.WITHOUT_MODEL:
            source = _unscored(session, project, config, overrides or {})
        else:
            source = _scored(session, project, config, force=force)
    config = source.config
    pool = source.pool(database, closed)
    class_names = project.config.data.class_names
    progress("Choosing", 0, None)
    try:
        selection = choose(
            pool.read,
            config,
            round_number=current.number,
            embed=features_for(project, database, config, progress),
            class_shares=source.class_shares,
        )
    except EmptyPool:
        selection = None
    if selection is None or pool.found == 0:
        with database.session(write=False) as session:
            if shard_queries.is_pool_labeled(session):
                raise NothingLeft(
                    "Nothing is left to choose from: every image of the pool is labeled.", source.more
                )
        raise UserError(f"{source.name} holds no {config.unit} of the pool.", source.more)
    if len(selection.items) == 0:
        raise NothingLeft(
            f"Nothing is left to choose from: every {config.unit} of the pool is queued or labeled already.",
            source.more,
        )
    ranks = rank_items(pool.read, selection)
    names = {"class_names": class_names, "group_names": pool.group_names}
    items = _queue_items(selection, config, reasons(selection, ranks, config, **names))
    chosen = selection.items
    groups = {
        int(image_id): pool.group_names[group]
        for image_id, group in zip(chosen.image_id, chosen.group, strict=True)
    }
    with database.session(write=False) as session:
        uris = image_queries.image_uris(session, list(groups))
    scores = [item.score for item in items if item.score is not None]
    report = SelectionReport(
        name="preview of the next queue" if out else name,
        strategy=config.strategy,
        unit=config.unit,
        items=items,
        uris=uris,
        groups=groups,
        class_names=class_names,
        candidates=selection.shortlist.available,
        by_class=_count_by(_class_name(item, class_names) for item in items),
        by_group=_count_by(groups[item.image_id] for item in items),
        by_slice=_count_by(item.slice for item in items),
        score_range=(min(scores), max(scores)) if scores else None,
        warnings=source.warnings
        + _warnings(
            selection, config, class_names=class_names, kept=pool.found, by_majority=source.by_majority
        ),
        notes=source.notes,
    )
    if not dry_run:
        _store(project, database, report, source, round_id=current.id)
    progress("Choosing", len(items), len(items))
    return report


@dataclass(frozen=True)
class _Source:
    """What a queue is chosen from, and how.

    Attributes:
        config: of the selection, as it is followed.
        run: whose scores are read; None before there is a model.
        regions: what the pool is divided into without scores.
        images: of the pool that can be queued, for later runs to tell whether there are more.
        by_majority: whether the run does not know the strata.
        class_shares: of the labeled pixels that the run's model was trained on, where they are asked for.
    """

    config: SelectionConfig
    images: int
    run: ScoringRun | None = None
    regions: RegionConfig = field(default_factory=RegionConfig)
    by_majority: bool = False
    class_shares: list[float] | None = None
    warnings: list[str] = field(default_factory=list[str])
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What holds no candidate, where there is none."""
        return "The project" if self.run is None else f"Scoring run {self.run.id}"

    @property
    def more(self) -> str:
        """How more candidates come."""
        return "Add images and run `segcurate ingest`" + (
            "." if self.run is None else ", then `segcurate score`."
        )

    def pool(self, database: Database, closed: TakenRegions) -> Pool:
        """The candidates without those that are queued or labeled."""
        if self.run is None:
            return UnscoredPool(database, self.regions, self.config, closed)
        return ScoredPool(database, self.run, self.config, closed)


def _unscored(
    session: Session, project: Project, config: SelectionConfig, overrides: Mapping[str, Any]
) -> _Source:
    first = first_queue(project, config, overrides)
    images = candidate_queries.count_eligible(session)
    return _Source(first.config, images, regions=first.regions, notes=first.notes)


def _scored(session: Session, project: Project, config: SelectionConfig, *, force: bool) -> _Source:
    run = scored_run(session)
    measure = STRATEGIES[config.strategy].measure
    _check_confidence(run, measure)
    shares = None
    if config.class_power:
        model = session.get_one(Model, run.model_id)
        shares = read_card(project.path(model.checkpoint_uri)).class_shares
    return _Source(
        config,
        score_queries.count_scored(session, run_id=run.id),
        run=run,
        class_shares=shares,
        by_majority=not candidate_queries.knows_strata(session, run_id=run.id),
        warnings=gate_warnings(session, run, measure=measure, config=project.config.evaluation, force=force),
    )


def _class_name(item: QueueItem, class_names: Sequence[str]) -> str:
    return NO_CLASS if item.predicted_class is None else class_names[item.predicted_class]


def _check_confidence(run: ScoringRun, measure: str | None) -> None:
    """Refuse the confidence of the pass without samples, which earlier versions stored beside samples."""
    scorer = run.scorer
    if (
        measure in ("least_confidence", "margin")
        and scorer.get("sampler", "none") != "none"
        and scorer.get("confidence") != "mean"
    ):
        raise UserError(
            f"The `{measure}` of the newest scores was computed by an earlier version, without the samples.",
            "Run `segcurate score`.",
        )


def _queue_items(selection: Selection, config: SelectionConfig, lines: Sequence[str]) -> list[QueueItem]:
    """The rows of the queue, without its id."""
    chosen, measure = selection.items, STRATEGIES[config.strategy].measure
    return [
        QueueItem(
            rank=index + 1,
            image_id=image_id,
            region_index=int(chosen.region_index[index]),
            **dict(zip("xywh", chosen.box[index].tolist(), strict=True)),
            outline=None if chosen.outline is None else chosen.outline[index],
            measure=measure,
            score=None if chosen.score is None else float(chosen.score[index]),
            predicted_class=None
            if chosen.predicted_class[index] == NOT_PREDICTED
            else int(chosen.predicted_class[index]),
            slice="audit" if selection.audit[index] else "selected",
            inclusion_probability=selection.inclusion_probability if selection.audit[index] else None,
            reason=reason,
        )
        for index, (image_id, reason) in enumerate(zip(chosen.owner.tolist(), lines, strict=True))
    ]


def _count_by(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())


def _counts(parts: Mapping[str, int]) -> str:
    shown = ", ".join(f"{number} {name}" for name, number in list(parts.items())[:SHOWN_PARTS])
    return shown + (f" and {len(parts) - SHOWN_PARTS} more" if len(parts) > SHOWN_PARTS else "")


def _missing_strata(missing: list[str], config: SelectionConfig, *, by_majority: bool) -> str:
    """What the absence of strata means, and what to do about it."""
    names = ", ".join(missing)
    if by_majority:
        return (
            f"No {config.unit} is predicted to be mostly {names}, and the model was trained before shares of "
            "classes were stored: the budget of these classes went to the others. The next model counts each "
            f"{config.unit} for the class of which it has most in proportion."
        )
    return (
        f"No {config.unit} counts for {names}: in proportion to the training labels, each is predicted to "
        "have more of another class (a share under 1 % does not count). The budget went to the others; "
        f"{config.unit}s with {names} are found by their uncertainty and by the audit."
    )


def _warnings(
    selection: Selection, config: SelectionConfig, *, class_names: list[str], kept: int, by_majority: bool
) -> list[str]:
    budget, shortlist = selection.budget, selection.shortlist
    found: list[str] = []
    if budget.requested > shortlist.available:
        found.append(
            f"The budget of {count(budget.requested)} is more than is left: "
            f"{counted(shortlist.available, config.unit)}."
        )
    if len(selection.index) < budget.total:
        found.append(
            f"Only {out_of(len(selection.index), budget.total, config.unit)} could be chosen: "
            "`per_image_cap`, `no_touching` and `min_gap` forbid the rest."
        )
    missing = [name for index, name in enumerate(class_names) if index not in shortlist.classes]
    if missing and shortlist.stratified:
        found.append(_missing_strata(missing, config, by_majority=by_majority))
    if config.unit == "region" and kept < shortlist.regions and budget.audit:
        found.append(
            "`scoring.keep_regions` dropped regions: the audit draws from those that were kept, and says "
            "nothing about the others."
        )
    if config.noise_beta is not None and not STRATEGIES[config.strategy].takes_noise:
        found.append(f"`noise_beta` does nothing with `strategy: {config.strategy}`.")
    return found


def _store(
    project: Project, database: Database, report: SelectionReport, source: _Source, *, round_id: int
) -> None:
    with database.session() as session:
        current = rounds.require(session, "select")
        if current.id != round_id:
            raise NotYourTurn("Another process has finished the round meanwhile.", "Run `segcurate status`.")
        lock_project(session, project)
        if candidate_queries.count_eligible(session, among=list(report.uris)) < len(report.uris):
            raise NotYourTurn(
                "Images have left the pool meanwhile, for a held-out split.", "Run `segcurate select` again."
            )
        config, run = source.config, source.run
        queue = Queue(
            round_id=round_id,
            name=report.name,
            kind="selected",
            run_id=None if run is None else run.id,
            strategy=config.strategy,
            unit=config.unit,
            seed=config.seed,
            spec={
                "selection": config.model_dump(mode="json"),
                **({} if run is None else {"scorer_hash": run.scorer_hash}),
                "images": source.images,
                "candidates": report.candidates,
                "by_slice": report.by_slice,
                "warnings": report.warnings,
            },
        )
        queues.replace_draft(session, queue, report.items)
        rounds.advance(session, current, "select")
