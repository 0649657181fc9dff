"""Each scoring run, its workers and warnings: the rows of `segcurate runs`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from db.queries import runs, scores
from db.queries import shards as shard_queries
from db.queries.scores import Scored
from db.queries.shards import ShardTime, Worker

PAUSE = timedelta(minutes=15)
"""A longer time between two finished shards counts as a pause, in which nothing was scored."""


@dataclass(frozen=True)
class RunSummary:
    """A scoring run, which grows with the pool.

    Attributes:
        samples: stochastic passes an image; None for a sampler without a number of them.
        calibrator: of the single pass.
        images, regions: rows in the database; 0 for a pruned run.
        heatmap_images: images that have heat maps.
        shards_pending, shards_running: not claimed, and claimed by a worker, alive or dead.
        images_per_second: without pauses; None before stored is a second shard.
        pruned_at: when its scores were deleted; None while they are stored.
        drift, outliers: a warning about its images, and how many lie far outside the range of the training
            images.
    """

    id: int
    model: str
    sampler: str
    samples: int | None
    calibrator: str
    region_kind: str
    scorer_hash: str
    images: int
    regions: int
    heatmap_images: int
    shards_done: int
    shards_running: int
    shards_pending: int
    workers: list[Worker]
    started_at: datetime
    finished_at: datetime | None
    images_per_second: float | None
    pruned_at: datetime | None
    drift: str | None
    outliers: int


def run_history(session: Session) -> list[RunSummary]:
    """Every scoring run, oldest first."""
    scored = scores.rows_by_run(session)
    counted = shard_queries.shards_by_status(session)
    rows: list[RunSummary] = []
    for run, model in runs.list_runs(session):
        scorer, summary = run.scorer, run.summary or {}
        stored, by_status = scored.get(run.id, Scored(0, 0, 0)), counted.get(run.id, {})
        rows.append(
            RunSummary(
                id=run.id,
                model=model,
                sampler=str(scorer.get("sampler", "none")),
                samples=scorer.get("samples"),
                calibrator=str(scorer.get("calibrator", {}).get("name", "identity")),
                region_kind=str(scorer.get("regions", {}).get("kind", "grid")),
                scorer_hash=run.scorer_hash,
                images=stored.images,
                regions=stored.regions,
                heatmap_images=stored.heatmaps,
                shards_done=by_status.get("done", 0),
                shards_running=by_status.get("running", 0),
                shards_pending=by_status.get("pending", 0),
                workers=shard_queries.workers(session, run_id=run.id),
                started_at=run.created_at,
                finished_at=run.finished_at,
                images_per_second=images_per_second(
                    run.created_at, shard_queries.shard_times(session, run_id=run.id)
                ),
                pruned_at=run.pruned_at,
                drift=(summary.get("drift") or {}).get("warning"),
                outliers=(summary.get("input_range") or {}).get("outside", 0),
            )
        )
    return rows


def images_per_second(started_at: datetime, done: Sequence[ShardTime]) -> float | None:
    """The speed of a run without its pauses; None where it is unknown.

    Args:
        done: its shards, in the order in which they were finished.

    >>> from datetime import UTC
    >>> def at(minute: int) -> datetime:
    ...     return datetime(2026, 1, 1 + minute // 1440, minute // 60 % 24, minute % 60, tzinfo=UTC)
    >>> images_per_second(at(0), [ShardTime(at(1), 60), ShardTime(at(2), 60), ShardTime(at(1440), 999)])
    1.0
    """
    seconds, images, before = 0.0, 0, started_at
    for at, count in done:
        if at - before <= PAUSE:
            seconds += (at - before).total_seconds()
            images += count
        before = at
    return images / seconds if seconds > 0 and images else None
