"""What scoring on a Ray cluster asks for, without one."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from db.engine import Database
from flows.ray_cluster import score_on_cluster, tasks_for
from pipeline.config import ScaleConfig
from pipeline.data.project import Project
from pipeline.errors import ConfigError
from pipeline.steps.score.step import ScoringPlan, plan_scoring
from tests.pipeline.steps.score.test_workers import pool_of

CPU_NODES = [{"CPU": 4.0}, {"CPU": 8.0}]


def test_tasks_on_cpus_share_what_the_smallest_node_has() -> None:
    of = {
        workers: tasks_for(ScaleConfig(gpus_per_worker=0, workers=workers), CPU_NODES) for workers in (2, 3)
    }
    assert [(count, options["num_cpus"], options["num_gpus"]) for count, options in of.values()] == [
        (2, 4, 0),
        (3, 2, 0),
    ]


def test_half_a_gpu_a_worker_makes_twice_as_many_workers() -> None:
    count, options = tasks_for(ScaleConfig(gpus_per_worker=0.5), [{"CPU": 8.0, "GPU": 2.0}])
    assert (count, options["num_gpus"], options["num_cpus"]) == (4, 0.5, 2)


def test_a_cluster_without_gpus_is_refused_unless_it_may_grow() -> None:
    with pytest.raises(ConfigError, match=r"has 0 GPUs.*gpus_per_worker: 0"):
        tasks_for(ScaleConfig(), CPU_NODES)
    assert tasks_for(ScaleConfig(workers=6), CPU_NODES)[0] == 6


def ray_scoring_of(folder: Path) -> tuple[Project, Database, ScoringPlan]:
    """A planned run whose project asks for Ray."""
    project, database = pool_of(folder, [(32, 32)])
    plan = plan_scoring(project, database)
    scale = project.config.scale.model_copy(update={"engine": "ray"})
    ray = project.config.model_copy(update={"scale": scale})  # a whole configuration needs PostgreSQL for it
    return replace(project, config=ray, file=folder / "segcurate.yaml"), database, plan


def test_workers_of_the_cluster_look_for_no_modules_in_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray puts the working directory of the process that connects before its workers' installed packages."""
    folders: list[str] = []

    def connected(**settings: object) -> NoReturn:
        folders.append(os.getcwd())
        raise ConnectionError("no cluster")

    monkeypatch.setattr("prefect_ray.task_runners.RayTaskRunner", connected)
    monkeypatch.chdir(tmp_path)
    project, database, plan = ray_scoring_of(tmp_path)
    with pytest.raises(ConfigError, match="No Ray cluster answers"):
        score_on_cluster(project, database, run_id=plan.run_id, began_at=plan.began_at)
    assert folders == ["/"]
    assert Path.cwd() == tmp_path


def test_without_the_extra_the_error_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prefect_ray.task_runners", None)
    project, database, plan = ray_scoring_of(tmp_path)
    with pytest.raises(ConfigError, match=r"pip install 'segcurate\[ray\]'"):
        score_on_cluster(project, database, run_id=plan.run_id, began_at=plan.began_at)
