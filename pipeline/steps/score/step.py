"""Scoring the pool with the serving model: what this scorer has not scored yet, a shard a transaction.

`plan_scoring` cuts the work into shards, any number of workers score them (`pipeline.steps.score.worker`),
in any number of processes and on any number of machines, and `finish_scoring` looks at the whole. `score`
does all three on this machine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import rounds as round_queries
from db.queries import runs, scores
from db.queries import shards as shard_queries
from db.queries.images import ImageRow
from db.queries.leases import owners, store_time
from pipeline import rounds
from pipeline.config import HeatmapSize, RegionConfig
from pipeline.data.images import probe_image
from pipeline.data.loading import Unreadable
from pipeline.data.project import Project
from pipeline.drawing.heatmaps import TWO_COLOUR
from pipeline.errors import DataError
from pipeline.files import sweep
from pipeline.format import counted
from pipeline.leases import alone, dead_owners
from pipeline.progress import Progress, silent
from pipeline.regions.sources import RegionFiles, region_source
from pipeline.steps.score.drift import watch_drift
from pipeline.steps.score.local_workers import score_on_devices
from pipeline.steps.score.region_maps import changed_maps, maps_folder
from pipeline.steps.score.reordering import measure_reordering, reordering_line
from pipeline.steps.score.scorer import Scorer, open_scorer
from pipeline.steps.score.writer import ScoringTotals, heatmap_folder, outlier_line, write_heatmaps
from pipeline.uncertainty.scoring import ScoredImage, heatmap_size, score_images

MOST_SHOWN = 10
ONLY_HERE = "`scale.engine: ray` is for the flows: this command has scored on this machine only."


@dataclass(frozen=True)
class ScoringPlan:
    """The work of one call of `score`; small enough to be passed to another process.

    Attributes:
        images: still to be scored, by any worker.
        shards: that are not done, those that a worker has begun included.
        began_at: by the store's clock.
    """

    run_id: int
    scorer_hash: str
    model: str
    images: int
    shards: int
    began_at: datetime


@dataclass(frozen=True, kw_only=True)
class ScoreReport(ScoringTotals):
    """The totals of one call of `score`, and its findings about the whole run."""

    seconds: float
    run_id: int
    drift: str | None = None
    """A warning, where the new images differ from earlier ones."""
    reordering: dict[str, Any] | None = None
    """How far calibration reorders the queue, as `scoring_run.summary` has it."""

    def lines(self) -> list[str]:
        """The report as text."""
        if self.images == 0 and self.failed == 0:
            return [f"Run {self.run_id}: nothing is left to score.", *self.remarks]
        rate = self.images / self.seconds if self.seconds else 0.0
        lines = [
            f"Run {self.run_id}: scored {counted(self.images, 'image')}, {counted(self.regions, 'region')}, "
            f"in {self.seconds:.1f} s ({rate:.1f} images/s)."
        ]
        if self.failed:
            lines.append(f"{counted(self.failed, 'image')} could not be read: `segcurate failures` says why.")
        if self.reordering is not None:
            lines.append(reordering_line(self.reordering))
        if self.outliers:
            lines.append(
                f"warning: the pixels of {counted(len(self.outliers), 'image')} lie far outside of what the "
                "model has seen, and their scores mean little:"
            )
            lines.extend(f"  {outlier_line(item)}" for item in self.outliers[:MOST_SHOWN])
        if self.drift is not None:
            lines.append(f"warning: {self.drift}")
        return [*lines, *self.remarks]


def score(
    project: Project,
    database: Database,
    *,
    any_time: bool = False,
    heatmaps: HeatmapSize | None = None,
    progress: Progress = silent,
) -> ScoreReport:
    """Score every pool image that this scorer has not scored yet; killed and run again, it goes on.

    Images of other splits, duplicates, and images with a label that covers them whole are not scored. A file
    that cannot be read is recorded with its reason, and tried again by the next call. An image whose region
    map has changed since it was scored is scored again. Two at once share the work.

    Args:
        any_time: score whatever the round's next step is; the round goes on only if this is it.
        heatmaps: instead of `scoring.heatmaps.size`; the maps of the most uncertain images are made again
            where they have another size.

    Raises:
        NotYourTurn: another step comes next.
        UserError: there is no serving model, or it cannot be loaded, or the disk is full, or some images end
            every process that scores them.
    """
    if not any_time:
        with database.session(write=False) as session:
            rounds.require(session, "score")
    if heatmaps is not None:
        scoring = project.config.scoring
        drawn = scoring.heatmaps.model_copy(update={"size": heatmaps})
        config = {"scoring": scoring.model_copy(update={"heatmaps": drawn})}
        project = replace(project, config=project.config.model_copy(update=config))
    scorer = open_scorer(project, database)
    plan = plan_scoring(project, database, scorer=scorer)
    totals = score_on_devices(project, database, run_id=plan.run_id, scorer=scorer, progress=progress)
    if project.config.scale.engine == "ray":
        totals += ScoringTotals(remarks=(ONLY_HERE,))
    return finish_scoring(project, database, plan=plan, totals=totals, any_time=any_time, scorer=scorer)


def plan_scoring(project: Project, database: Database, *, scorer: Scorer | None = None) -> ScoringPlan:
    """Open the scorer's run, and cut what it is still to score into shards.

    Args:
        scorer: where it is open already.

    Raises:
        UserError: there is no serving model, or it cannot be loaded.
    """
    scorer = scorer or open_scorer(project, database)
    scoring = project.config.scoring
    source = region_source(project, scoring.regions)

    def plan(session: Session) -> ScoringPlan:
        run = runs.open_run(
            session, model_id=scorer.model_id, scorer_hash=scorer.hash, scorer=scorer.document
        )
        if isinstance(source, RegionFiles):
            changed = changed_maps(session, project, source, run_id=run.id)
            scores.forget_scores(session, run_id=run.id, image_ids=changed)
        opened = shard_queries.plan_shards(
            session, run_id=run.id, shard_images=scoring.shard_images, dead=dead_owners(owners(session))
        )
        return ScoringPlan(
            run_id=run.id,
            scorer_hash=scorer.hash,
            model=scorer.model_name,
            images=shard_queries.count_to_score(session, run_id=run.id),
            shards=opened.pending + opened.running,
            began_at=store_time(session),
        )

    planned = database.transact(plan)
    for folder in (heatmap_folder, maps_folder):
        sweep(folder(project, planned.run_id))
    return planned


def finish_scoring(
    project: Project,
    database: Database,
    *,
    plan: ScoringPlan,
    totals: ScoringTotals,
    any_time: bool = False,
    scorer: Scorer | None = None,
) -> ScoreReport:
    """Finish a run: heat maps of the most uncertain images, drift, and what calibration reorders.

    Raises:
        NotYourTurn: another step comes next.
        UserError: the disk is full.
    """
    scorer = scorer or open_scorer(project, database)
    run_id = plan.run_id
    with alone(database, f"finish run {run_id}", wait=True):
        heatmaps = _top_heatmaps(project, database, scorer, run_id=run_id)
        drift = watch_drift(project, database, run_id=run_id, model=scorer.model)
        reordering = measure_reordering(project, database, run_id=run_id, model=scorer.model)

        def finish(session: Session) -> datetime:
            scores.set_heatmaps(session, run_id=run_id, heatmaps=heatmaps)
            runs.finish_run(session, run_id=run_id)
            current = round_queries.current_round(session)
            if not any_time or (current is not None and current.state in rounds.ALLOWED["score"]):
                rounds.advance(session, rounds.require(session, "score"), "score")
            return store_time(session)

        ended_at = database.transact(finish)
    return ScoreReport(
        **vars(totals),
        seconds=(ended_at - plan.began_at).total_seconds(),
        run_id=run_id,
        drift=drift["warning"] if drift else None,
        reordering=reordering,
    )


def _top_heatmaps(
    project: Project, database: Database, scorer: Scorer, *, run_id: int
) -> dict[int, dict[str, str]]:
    """Heat maps of the most uncertain images that have none yet: URIs by name, by image id."""
    scoring = project.config.scoring
    if scoring.heatmaps.images != "top":
        return {}
    top = database.transact(
        lambda session: scores.top_images(session, run_id=run_id, limit=scoring.heatmaps.top), write=False
    )
    needed: set[str] = set(scoring.heatmaps.maps)
    if scoring.heatmaps.two_colour:
        needed.add(TWO_COLOUR)
    if scoring.heatmaps.per_class:
        prefix = scorer.model.predictor.calibrators.class_map
        needed |= {f"{prefix}_{index}" for index in range(len(scorer.model.card.class_names))}
    refs = [
        project.ref(row)
        for row, uris in top
        if not needed <= set(uris or {})
        or not all(_is_drawn(project, uri, row) for uri in (uris or {}).values())
    ]
    written: dict[int, dict[str, str]] = {}

    def sink(item: ScoredImage | Unreadable) -> None:
        if isinstance(item, ScoredImage):
            written[item.id] = write_heatmaps(project, run_id, item)

    score_images(
        refs,
        model=scorer.model,
        regions=RegionConfig(kind="image"),
        sink=sink,
        heatmaps=scoring.heatmaps,
    )
    return written


def _is_drawn(project: Project, uri: str, image: ImageRow) -> bool:
    """Whether a heat map is there, at the size that is wanted or at the image's own."""
    path = project.path(uri)
    if not path.is_file():
        return False
    full = image.height, image.width
    try:
        info = probe_image(path, max_pixels=full[0] * full[1])
    except DataError:
        return False
    return (info.height, info.width) in (full, heatmap_size(full, project.config.scoring.heatmaps))
