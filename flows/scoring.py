"""Scoring the pool as tasks of a flow: plan the shards, drain them, look at the whole."""

from __future__ import annotations

from collections.abc import Callable

from db.engine import Database
from flows.artifacts import scoring_progress
from flows.tasks import as_task
from pipeline.config import Project
from pipeline.engine import drain_everywhere
from pipeline.progress import Progress, silent
from pipeline.steps.score import ScoreReport, ScoringPlan, finish_scoring, plan_scoring


def score_pool(
    project: Project,
    database: Database,
    *,
    any_time: bool = False,
    planned: Callable[[ScoringPlan], None] = lambda plan: None,
    progress: Progress = silent,
) -> ScoreReport:
    """What `pipeline.steps.score.score` does, in three tasks, with its progress as an artifact.

    Args:
        planned: told what is about to be scored.

    Raises:
        UserError: as `score` does.
    """
    plan = as_task(plan_scoring, project, database)
    planned(plan)
    with scoring_progress(plan.run_id, plan.images, database=database) as shown:
        drained = as_task(drain_everywhere, project, database, run_id=plan.run_id, progress=shown)
    return as_task(finish_scoring, project, database, plan=plan, drained=drained, any_time=any_time)
