"""Scoring the pool as tasks of a flow: plan the shards, drain them, look at the whole."""

from __future__ import annotations

from collections.abc import Callable

from db.engine import Database
from flows.artifacts import scoring_progress
from flows.tasks import as_task
from pipeline.data.project import Project
from pipeline.progress import Progress, silent
from pipeline.steps.score.processes import drain_everywhere
from pipeline.steps.score.scorer import open_scorer
from pipeline.steps.score.step import ScoreReport, ScoringPlan, finish_scoring, plan_scoring


def score_pool(
    project: Project,
    database: Database,
    *,
    any_time: bool = False,
    planned: Callable[[ScoringPlan], None] = lambda plan: None,
    progress: Progress = silent,
) -> ScoreReport:
    """What `pipeline.steps.score.step.score` does, in tasks, with its progress as an artifact.

    With `scale.engine: ray`, the shards are drained by tasks on the cluster; all else is done here.

    Args:
        planned: told what is about to be scored.

    Raises:
        ConfigError: with `scale.engine: ray`, where the cluster is not as the configuration says.
        UserError: as `score` does.
    """
    scorer = as_task(open_scorer, project, database)
    plan = as_task(plan_scoring, project, database, scorer=scorer)
    planned(plan)
    with scoring_progress(plan.run_id, plan.images, database=database) as shown:
        if project.config.scale.engine == "ray":
            from flows.ray_cluster import drain_on_cluster

            drained = drain_on_cluster(project, database, run_id=plan.run_id, began_at=plan.began_at)
        else:
            options = {"run_id": plan.run_id, "scorer": scorer, "progress": shown}
            drained = as_task(drain_everywhere, project, database, **options)
    options = {"plan": plan, "drained": drained, "any_time": any_time, "scorer": scorer}
    return as_task(finish_scoring, project, database, **options)
