"""Scoring in several processes: the work is shared, and a dead one costs only what it had begun."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sqlalchemy import select

from db.engine import Database
from db.queries import scores, shards
from db.queries.shards import MOST_ATTEMPTS
from db.tables import ScoringRun, Shard, utc_now
from pipeline.data.project import Project
from pipeline.errors import Busy, UserError
from pipeline.processes import this_process
from pipeline.steps.score import score
from pipeline.steps.score.local_workers import _Workers, score_on_devices, visible_devices
from pipeline.steps.score.step import plan_scoring
from pipeline.steps.score.worker import score_shards
from pipeline.uncertainty.measures import MEASURES
from tests.factories import ask, change, configured, fetch, make_pool

COLUMNS = ("image_id", "region_index", "x", "y", "w", "h", "pixels", "predicted_class", *MEASURES)


def pool_of(
    root: Path, sizes: Sequence[tuple[int, int]], *, scale: dict[str, Any] | None = None, **scoring: Any
) -> tuple[Project, Database]:
    settings: dict[str, Any] = {"samples": 3, "regions": {"cell": 32}, "batch_size": 1, "workers": 0}
    settings |= {"shard_images": 1, "heatmaps": {"images": "none"}} | scoring
    made = make_pool(root, sizes, scoring=settings)
    return made.configured(scale=scale or {}), made.database


def rows_of(database: Database) -> dict[str, np.ndarray]:
    """Every region row of the only run, by image and region."""
    (run_id,) = fetch(database, ScoringRun.id)
    return ask(database, scores.region_columns, run_id=run_id, columns=COLUMNS)


def shards_of(database: Database) -> list[Shard]:
    return list(fetch(database, select(Shard).order_by(Shard.first_image_id)))


def test_a_shard_that_was_planned_larger_is_scored_whole(tmp_path: Path) -> None:
    project, database = pool_of(tmp_path, [(96, 64)] * 5, shard_images=5)
    plan = plan_scoring(project, database)
    scoring = project.config.scoring.model_copy(update={"shard_images": 2})
    smaller = Project(config=project.config.model_copy(update={"scoring": scoring}), root=project.root)
    assert score_shards(smaller, database, run_id=plan.run_id).images == 5
    assert [(shard.status, shard.scored) for shard in shards_of(database)] == [("done", 5)]


def test_what_is_left_is_counted_while_another_process_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, database = pool_of(tmp_path, [(64, 64)] * 2)
    plan = plan_scoring(project, database)
    monkeypatch.setattr("db.engine.BUSY_TIMEOUT_MS", 200)
    impatient = Database(project.database_url)
    with database.session() as writer:
        writer.connection()
        assert _Workers(project, impatient, plan.run_id, ["cpu"]).open_shards() == 2
    impatient.close()


def test_every_visible_gpu_is_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project, _ = pool_of(tmp_path, [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    auto = configured(project, device="auto").config
    assert visible_devices(auto) == ["cuda:0", "cuda:1", "cuda:2"]
    assert visible_devices(configured(project, device="cuda:1").config) == ["cuda:1"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert visible_devices(auto) == ["cpu"]


def owners_amid(database: Database) -> list[str]:
    """The processes that have written a shard and are at another one."""
    status = {(shard.owner or "", shard.status) for shard in shards_of(database)}
    return [owner for owner, _ in status if {(owner, "done"), (owner, "running")} <= status]


def test_a_process_that_is_killed_costs_only_what_it_had_begun(tmp_path: Path, one_thread: None) -> None:
    sizes = [(192, 160)] * 40
    calm, calm_database = pool_of(tmp_path / "calm", sizes)
    score(calm, calm_database)

    project, database = pool_of(tmp_path / "two", sizes, scale={"workers": 2})
    killed: dict[str, list[int]] = {}

    def kill_one(title: str, done: int, total: int | None, note: str = "") -> None:
        if killed or not (amid := owners_amid(database)):
            return
        victim = amid[0]
        pid = int(victim.split(":")[-2])
        os.kill(pid, signal.SIGSTOP)  # so that it cannot end its shard between the look and the kill
        if victim in owners_amid(database):
            os.kill(pid, signal.SIGKILL)
            killed[victim] = [s.first_image_id for s in shards_of(database) if s.owner == victim]
        else:
            os.kill(pid, signal.SIGCONT)

    report = score(project, database, progress=kill_one)
    expected, found = rows_of(calm_database), rows_of(database)
    for name in COLUMNS:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert (report.images, report.regions) == (40, len(expected["image_id"]))
    assert any("was ended by SIGKILL" in line for line in report.lines())
    (victim,) = killed
    done = shards_of(database)
    assert {shard.status for shard in done} == {"done"}
    assert {victim} < {shard.owner for shard in done} - {this_process()}  # what it had written is kept
    repeated = [shard for shard in done if shard.attempts > 1]
    assert repeated
    assert {shard.first_image_id for shard in repeated} <= set(killed[victim])
    assert victim not in {shard.owner for shard in repeated}


def test_one_process_scores_right_here(tmp_path: Path) -> None:
    project, database = pool_of(tmp_path, [(32, 32)] * 3)
    plan = plan_scoring(project, database)
    totals = score_on_devices(project, database, run_id=plan.run_id)
    assert (totals.images, totals.workers, totals.remarks) == (3, (this_process(),), ())
    assert {shard.owner for shard in shards_of(database)} == {this_process()}


def test_images_that_end_every_worker_are_named_and_all_others_are_scored(tmp_path: Path) -> None:
    project, database = pool_of(tmp_path, [(32, 32)] * 5, shard_images=2)
    plan = plan_scoring(project, database)
    gone = f"{this_process().rpartition(':')[0]}:0.00"
    change(
        database,
        Shard,
        Shard.first_image_id == 3,
        status="running",
        owner=gone,
        attempts=MOST_ATTEMPTS,
        lease_until=utc_now() + timedelta(hours=1),
    )
    with pytest.raises(UserError, match=r"images/002.png to images/003.png \(ids 3 to 4\).*memory"):
        score_shards(project, database, run_id=plan.run_id)
    assert sorted(set(rows_of(database)["image_id"].tolist())) == [1, 2, 5]
    assert score(project, database).images == 2  # another run tries again


def test_a_shard_that_a_worker_died_of_is_scored_with_no_other_one_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, database = pool_of(tmp_path, [(32, 32)] * 6, batch_size=4)
    plan = plan_scoring(project, database)
    change(database, Shard, Shard.first_image_id.in_([1, 4]), attempts=1)
    begun_together: dict[int, int] = {}
    replace = shards.replace_shard

    def spy(session: Any, **arguments: Any) -> bool:
        running = session.scalars(select(Shard).where(Shard.status == "running")).all()
        begun_together[arguments["shard"].first] = len(running)
        return replace(session, **arguments)

    monkeypatch.setattr(shards, "replace_shard", spy)
    score_shards(project, database, run_id=plan.run_id)
    assert list(begun_together)[-2:] == [1, 4]
    assert (begun_together[1], begun_together[4]) == (1, 1)
    assert max(begun_together.values()) > 1  # the others are read ahead


def test_a_command_with_the_engine_ray_scores_here_and_says_so(tmp_path: Path) -> None:
    project, database = pool_of(tmp_path, [(32, 32)])
    scale = project.config.scale.model_copy(update={"engine": "ray", "workers": 2})
    ray = project.config.model_copy(update={"scale": scale})  # a whole configuration needs PostgreSQL for it
    report = score(Project(config=ray, root=project.root), database)
    assert report.images == 1
    assert "on this machine only" in report.lines()[-1]


def test_a_users_error_crosses_processes_as_it_is() -> None:
    error = Busy("train", owner="gpu1:77:1.0", since=utc_now())
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.problem, again.remedy) == (Busy, error.problem, error.remedy)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_gpu_scores_in_a_process_of_its_own(tmp_path: Path) -> None:
    sizes = [(192, 160)] * 64
    one, one_database = pool_of(tmp_path / "one", sizes, scale={"device": "cuda:0"})
    score(one, one_database)
    workers = max(2, torch.cuda.device_count())  # on a single GPU, two share it
    many, database = pool_of(tmp_path / "many", sizes, scale={"device": "auto", "workers": workers})
    report = score(many, database)
    assert report.images == 64
    assert this_process() not in {shard.owner for shard in shards_of(database)}
    expected, found = rows_of(one_database), rows_of(database)
    for name in COLUMNS:  # half precision: which batch an image was in moves the last digits
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-2, atol=2e-3, err_msg=name)
