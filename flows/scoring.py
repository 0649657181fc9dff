"""Scoring the pool as tasks of a flow: plan shards, score them, finish the run."""

from __future__ import annotations

from collections.abc import Callable

from db.engine import Database
from flows.artifacts import scoring_progress
from flows.tasks import as_task, of_step
from pipeline.data.project import Project
from pipeline.steps.score.local_workers import score_on_devices
from pipeline.steps.score.scorer import open_scorer
from pipeline.steps.score.step import ScoreReport, ScoringPlan, finish_scoring, plan_scoring


def score_pool(
    project: Project,
    database: Database,
    *,
    any_time: bool = False,
    planned: Callable[[ScoringPlan], None] = lambda plan: None,
) -> ScoreReport:
    """Score the pool as `pipeline.steps.score.score` does, in tasks, with the progress as an artifact.

    With `scale.engine: ray`, tasks on the cluster score the shards; this process does the rest.

    Args:
        planned: called with the plan before scoring starts.

    Raises:
        ConfigError: with `scale.engine: ray`, the cluster does not match the configuration.
        UserError: as `score` does.
    """
    scorer = as_task(open_scorer, project, database)
    plan = as_task(plan_scoring, project, database, scorer=scorer)
    planned(plan)
    with scoring_progress(project, database, run_id=plan.run_id, total=plan.images) as shown:
        if project.config.scale.engine == "ray":
            from flows.ray_cluster import score_on_cluster

            totals = score_on_cluster(project, database, run_id=plan.run_id, began_at=plan.began_at)
        else:
            options = {"run_id": plan.run_id, "scorer": scorer, "progress": shown}
            work = of_step(lambda: score_on_devices(project, database, **options), "drain-everywhere")
            totals = work()
    options = {"plan": plan, "totals": totals, "any_time": any_time, "scorer": scorer}
    return as_task(finish_scoring, project, database, **options)
