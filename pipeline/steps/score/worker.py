"""One worker: it claims shards of a run, scores them and writes them, until all are done."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from functools import partial

from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import shards
from db.queries.images import ImageRow
from db.queries.leases import owners
from db.queries.shards import MOST_ATTEMPTS, PlannedShard
from db.tables import Image, ScoringRun
from pipeline.data.image_info import ImageRef
from pipeline.data.project import Project
from pipeline.errors import ConfigError, UserError
from pipeline.leases import POLL_SECONDS, dead_owners, renewing
from pipeline.processes import this_process
from pipeline.progress import Progress, apart_from_tiles, silent
from pipeline.regions.sources import RegionFiles, region_source
from pipeline.steps.score.scorer import Scorer, open_scorer
from pipeline.steps.score.writer import ScoringTotals, ShardWriter
from pipeline.uncertainty.scoring import score_images

logger = logging.getLogger(__name__)


def score_shards(
    project: Project,
    database: Database,
    *,
    run_id: int,
    scorer: Scorer | None = None,
    progress: Progress = silent,
) -> ScoringTotals:
    """Claim shards, score them and write them, until every shard of the run is done, by any worker.

    Another worker scores the shard of a worker that has died. A worker that is stopped releases its shards.

    Raises:
        ConfigError: the run is of another scorer: the settings, or the serving model, have changed since.
        UserError: the disk is full, or the folder of the heat maps cannot be written; or the only shards left
            have killed each worker that began them.
    """
    scorer = scorer or open_scorer(project, database)
    scoring = project.config.scoring
    seconds = project.config.scale.lease_seconds
    run, total = database.transact(
        lambda session: (session.get_one(ScoringRun, run_id), shards.count_to_score(session, run_id=run_id)),
        write=False,
    )
    if run.scorer_hash != scorer.hash:
        raise ConfigError(
            f"The settings of `scoring`, or the serving model, have changed since run {run_id} was planned.",
            "Run the command again.",
        )
    owner = this_process()
    source = region_source(project, scoring.regions)
    writer = ShardWriter(
        project=project,
        database=database,
        run_id=run_id,
        owner=owner,
        seen=scorer.model.card.input_range,
        maps=source if isinstance(source, RegionFiles) else None,
    )

    def release(session: Session) -> None:
        shards.release_shards(session, run_id=run_id, owner=owner)

    with renewing(database, seconds=seconds):
        try:
            while True:
                before = writer.totals.images + writer.totals.failed
                score_images(
                    _claimed_images(project, database, writer, seconds=seconds),
                    model=scorer.model,
                    regions=scoring.regions,
                    sink=writer,
                    source=source,
                    heatmaps=scoring.heatmaps if scoring.heatmaps.images == "all" else None,
                    total=total,
                    progress=apart_from_tiles(partial(_counted_on, progress, before), tiles=progress),
                )
                database.transact(release)  # a claim may have been committed although the connection was lost
                if database.transact(lambda session: _all_is_done(session, run_id=run_id), write=False):
                    break
                if writer.totals.images + writer.totals.failed == before:
                    time.sleep(
                        POLL_SECONDS
                    )  # others score the rest, and the shard of a dead one becomes free
        except BaseException:
            try:
                database.transact(release)
            except DBAPIError as failure:  # such as a full disk; the first error is the one to raise
                logger.warning("The begun shards could not be released: %s", failure.orig)
            raise
    return writer.totals


def _counted_on(
    progress: Progress, before: int, title: str, done: int, total: int | None, note: str = "", /
) -> None:
    """The progress of the images of one shard after those of the shards before it."""
    progress(title, before + done, total, note)


def _claimed_images(
    project: Project, database: Database, writer: ShardWriter, *, seconds: float
) -> Iterator[ImageRef]:
    """The images of one free shard after another.

    A shard whose worker has died comes last and alone, so that a further death is not blamed on another shard
    that was begun beside it.
    """

    def claim(session: Session, *, unbegun: bool) -> tuple[PlannedShard, list[ImageRow]] | None:
        shard = shards.claim_shard(
            session,
            run_id=writer.run_id,
            owner=writer.owner,
            seconds=seconds,
            dead=dead_owners(owners(session)),
            unbegun=unbegun,
        )
        if shard is None:
            return None
        return shard, shards.unscored_images(session, run_id=writer.run_id, shard=shard)

    def announce(shard: PlannedShard, rows: list[ImageRow]) -> list[ImageRef]:
        refs = [project.ref(row, shard=shard.first) for row in rows]
        writer.expect(shard, refs)
        return refs

    claimed = database.transact(lambda session: claim(session, unbegun=True))
    if claimed is None:
        claimed = database.transact(lambda session: claim(session, unbegun=False))
        yield from announce(*claimed) if claimed is not None else ()
        return
    while claimed is not None:
        yield from announce(*claimed)
        claimed = database.transact(lambda session: claim(session, unbegun=True))


def _all_is_done(session: Session, *, run_id: int) -> bool:
    """Whether no shard is left.

    Raises:
        UserError: the only shards left have killed every worker that began them.
    """
    left = shards.open_shards(session, run_id=run_id)
    if left.pending + left.running == 0:
        return True
    fatal = shards.fatal_shards(session, run_id=run_id, dead=dead_owners(owners(session)))
    if len(fatal) == left.pending + left.running:
        ranges = ", and ".join(
            f"{session.get_one(Image, shard.first).uri} to {session.get_one(Image, shard.last).uri} "
            f"(ids {shard.first} to {shard.last})"
            for shard in fatal
        )
        raise UserError(
            f"{MOST_ATTEMPTS} workers have died while they scored the images {ranges}. "
            "All others are scored.",
            "Most often the memory is too small for them: set a lower `scoring.batch_size`, "
            "`scoring.workers` or `data.max_pixels`; or one of these files crashes its decoder: remove it. "
            "Then run `segcurate score` again.",
        )
    return False
