"""Several processes that score: what ends one of them, and what ends their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from db.engine import Database
from db.queries.shards import MOST_ATTEMPTS
from pipeline.data.project import Project
from pipeline.errors import UserError
from pipeline.steps.score.local_workers import score_on_devices
from pipeline.steps.score.step import plan_scoring
from tests.pipeline.steps.score.test_workers import pool_of, rows_of, shards_of
from tests.real.house import wait_for

pytestmark = pytest.mark.timeout(600)

DEADLY = """
import os, sys
if "spawn_main" in " ".join(sys.orig_argv):
    import pipeline.data.loading as loading
    read = loading.read_image
    def deadly(path, **settings):
        if path.name == "004.png":
            os.kill(os.getpid(), 9)
        return read(path, **settings)
    loading.read_image = deadly
"""

SCORE = """
import signal
import sys
from pathlib import Path
from db.engine import Database
from pipeline.data.project import load_project
from pipeline.steps.score import score
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it starts with &
    project = load_project(Path(sys.argv[1]))
    score(project, Database(project.database_url))
"""


def test_an_image_that_kills_whoever_reads_it_is_named_and_all_others_are_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, database = pool_of(tmp_path, [(64, 64)] * 12, shard_images=2, scale={"workers": 2})
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(DEADLY)
    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), root]))
    plan = plan_scoring(project, database)
    with pytest.raises(UserError, match=r"images/004.png to images/005.png \(ids 5 to 6\)"):
        score_on_devices(project, database, run_id=plan.run_id)
    assert sorted(set(rows_of(database)["image_id"].tolist())) == [1, 2, 3, 4, *range(7, 13)]
    attempts = {shard.first_image_id: shard.attempts for shard in shards_of(database)}
    assert attempts[5] == MOST_ATTEMPTS
    assert max(count for first, count in attempts.items() if first != 5) < MOST_ATTEMPTS


def test_what_the_user_must_mend_ends_all_processes(tmp_path: Path) -> None:
    heatmaps = {"images": "all"}
    project, database = pool_of(tmp_path, [(64, 64)] * 8, scale={"workers": 2}, heatmaps=heatmaps)
    plan = plan_scoring(project, database)
    (project.workdir / "heatmaps").write_text("a file where a folder must be")
    with pytest.raises(UserError, match="heatmaps"):
        score_on_devices(project, database, run_id=plan.run_id)
    assert multiprocessing.active_children() == []
    assert {shard.status for shard in shards_of(database)} == {"pending"}


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent(tmp_path: Path, end: signal.Signals) -> None:
    project, database = pool_of(tmp_path, [(480, 360)] * 90, samples=8, scale={"workers": 2})
    parent = start(project)
    workers: set[int] = set()

    def both_have_been_at_it() -> bool:
        workers.update(workers_of(database))
        return len(workers) == 2

    wait_for("both workers", both_have_been_at_it, seconds=300)
    assert all(psutil.Process(pid).ppid() == parent.pid for pid in workers)
    parent.send_signal(end)
    parent.wait(60)
    wait_for("their end", lambda: not any(psutil.pid_exists(pid) for pid in workers), seconds=20)
    status = {shard.status for shard in shards_of(database)}
    assert "pending" in status  # it was amid its work
    assert ("running" in status) == (end != signal.SIGINT)  # in order, what was begun is given back


def start(project: Project) -> subprocess.Popen[bytes]:
    config = project.root / "segcurate.yaml"
    config.write_text(yaml.safe_dump(project.config.model_dump(mode="json")))
    script = project.root / "run.py"
    script.write_text(SCORE)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen([sys.executable, str(script), str(config)], env=environment)


def workers_of(database: Database) -> set[int]:
    """The processes that are at a shard."""
    found = {shard.owner for shard in shards_of(database) if shard.status == "running" and shard.owner}
    return {int(owner.split(":")[-2]) for owner in found}
