"""Retention: the scores of old runs go, and what explains a queue stays."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from sqlalchemy.exc import OperationalError

from db.engine import Database, lock_refused
from db.queries import pruning
from db.queries.pruning import RunSize
from pipeline.data.project import Project
from pipeline.errors import UserError
from pipeline.format import counted
from pipeline.leases import alone
from pipeline.progress import Progress, silent
from pipeline.steps.score.region_maps import maps_folder
from pipeline.steps.score.writer import heatmap_folder

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 20_000
"""Rows that one transaction deletes on SQLite: others write in between. PostgreSQL drops tables."""
PATIENCE = 2.0
"""Seconds for which one try to detach a partition makes others wait."""
TRIES = 5


@dataclass(frozen=True)
class PruneReport:
    """What one call of `prune` did.

    Attributes:
        kept: runs older than the newest ones that are needed still, and why.
        busy: runs whose scores were being read all the time; the next call tries again.
        folders: folders of heat maps that were deleted, also of runs that were pruned before.
    """

    pruned: list[RunSize] = field(default_factory=list)
    kept: dict[int, str] = field(default_factory=dict)
    busy: list[int] = field(default_factory=list)
    folders: int = 0

    def lines(self) -> list[str]:
        """The report as text."""
        lines = [
            f"Run {run.run_id} of {run.model}: {counted(run.images, 'image')} and "
            f"{counted(run.regions, 'region')} are forgotten."
            for run in self.pruned
        ]
        lines += [f"Run {run_id} stays: {why}." for run_id, why in sorted(self.kept.items())]
        lines += [f"Run {run_id} stays for now: its scores are being read." for run_id in sorted(self.busy)]
        if self.folders:
            lines.append(f"{self.folders} folder{'s' if self.folders > 1 else ''} of heat maps deleted.")
        return lines or ["There is nothing to prune."]


def prune(
    project: Project, database: Database, *, keep_runs: int, progress: Progress = silent
) -> PruneReport:
    """Delete the scores, shards and heat maps of all but the newest runs; killed and repeated, it goes on.

    A run's row stays, as the provenance of the queues that were selected from it. What its scorer scores from
    then on is another run. Never pruned are the runs that the serving model's scores, the current round's
    queue or an open review depend on, nor a run that a worker is scoring. Two at once wait for each other.

    Args:
        keep_runs: runs that stay, at least 1, those that are needed included.

    Raises:
        UserError: `keep_runs` is less than 1.
    """
    if keep_runs < 1:
        raise UserError(f"Expected to keep at least 1 run, but got {keep_runs}.", "Write `--keep-runs 1`.")
    with alone(database, "prune", wait=True):
        with database.session(write=False) as session:
            old = pruning.runs_by_age(session)[keep_runs:]
            needed = pruning.needed_runs(session)
        report = PruneReport(kept={run_id: needed[run_id] for run_id in old if run_id in needed})
        for done, run_id in enumerate(old, start=1):
            if run_id not in needed:
                _prune_run(database, run_id, report)
            progress("prune", done, len(old))
        with database.session(write=False) as session:
            pruned = pruning.pruned_runs(session)
        for run_id in pruned:
            _delete_rows(database, run_id)
        return PruneReport(report.pruned, report.kept, report.busy, folders=_delete_folders(project, pruned))


def _prune_run(database: Database, run_id: int, report: PruneReport) -> None:
    with database.session(write=False) as session:
        size = pruning.run_size(session, run_id=run_id)
    for _ in range(TRIES):
        try:
            if database.transact(
                lambda session: pruning.prune_run(session, run_id=run_id, patience=PATIENCE)
            ):
                report.pruned.append(size)
            return
        except OperationalError as error:
            if not lock_refused(error):
                raise
            logger.info("The scores of run %d are being read; trying again.", run_id)
    report.busy.append(run_id)


def _delete_rows(database: Database, run_id: int) -> None:
    while database.transact(
        lambda session: pruning.delete_pruned_rows(session, run_id=run_id, rows=ROWS_AT_ONCE)
    ):
        pass


def _delete_folders(project: Project, pruned: Sequence[int]) -> int:
    """Delete the heat maps of pruned runs, and the versions of their region maps.

    A worker that had lost its shard may have written some after an earlier call.

    Returns:
        The number of folders of heat maps deleted.
    """
    deleted = 0
    for run_id in pruned:
        shutil.rmtree(maps_folder(project, run_id), ignore_errors=True)
        with suppress(FileNotFoundError):
            shutil.rmtree(heatmap_folder(project, run_id))
            deleted += 1
    return deleted
