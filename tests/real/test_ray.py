"""Scoring on a real Ray cluster of two worker nodes, with PostgreSQL as the store and a Prefect server.

Each node has one CPU and a worker asks for one, so two that work at once are on both.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.logging.loggers import disable_run_logger
from prefect.testing.utilities import prefect_test_harness
from ray.cluster_utils import Cluster
from sqlalchemy import URL, make_url, select

from db.engine import Database
from db.queries import shards, simulations
from db.tables import Shard
from flows.ray_cluster import score_on_cluster
from flows.scoring import score_pool
from flows.simulation import simulate_flow
from flows.tasks import opened
from pipeline.data.project import Project
from pipeline.errors import ConfigError, UserError
from pipeline.operation.runner import Runner
from pipeline.operation.simulate import run_simulate
from pipeline.steps.ingest import ingest
from pipeline.steps.score import score
from pipeline.steps.score.step import ScoreReport, plan_scoring
from tests.conftest import QUICK, draw, write_config
from tests.conftest import opened as opened_project
from tests.db.conftest import postgresql as server  # noqa: F401  (a fixture)
from tests.db.private_server import empty_database
from tests.factories import add_files, ask, configured, fetch, make_project, serve_random_model
from tests.pipeline.steps.score.test_workers import COLUMNS, pool_of, rows_of

PASSWORD = "not-to-be-seen-4711"
SIZES = [(480, 360)] * 60
"""Enough to be at it for some seconds."""


@flow(persist_result=False)
def scoring(config: Path) -> ScoreReport:
    """As the nightly flow scores."""
    with opened(config) as (project, database):
        return score_pool(project, database)


@pytest.fixture(scope="module")
def prefect_server() -> Generator[None]:
    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture(scope="module")
def cluster(prefect_server: None) -> Generator[Cluster]:
    """A cluster of a head that works at nothing, and two nodes of one CPU each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def store(server: URL) -> Generator[str]:  # noqa: F811
    """The URL of an empty database, with a password that must not be seen anywhere."""
    with empty_database(server) as url:
        yield make_url(url).set(password=PASSWORD).render_as_string(hide_password=False)


def on_the_cluster(calm: Project, root: Path, *, url: str, **scale: Any) -> tuple[Project, Database]:
    """The same images and model as a project that scores on a cluster, read from its file."""
    scale = {"engine": "ray", "gpus_per_worker": 0} | scale
    document = configured(calm, database={"url": url}, scale=scale).config.model_dump(mode="json")
    project, database = make_project(root, **document)
    serve_random_model(project, database)
    add_files(project, database, sorted((calm.root / "images").iterdir()))
    return project, database


@contextmanager
def looking(look: Callable[[], None]) -> Iterator[None]:
    """Call `look` again and again while the block runs."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            look()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def watching(database: Database, *, kill: bool) -> Iterator[dict[str, Any]]:
    """Note each worker's raylet while a run goes on, and kill the first that is amid its work."""
    seen: dict[str, Any] = {"raylets": {}, "victim": None, "begun": []}

    def look() -> None:
        rows = [(s.first_image_id, s.owner, s.status) for s in fetch(database, Shard) if s.owner]
        for _, owner, status in rows:
            pid = int(owner.split(":")[-2])
            if status == "running" and owner not in seen["raylets"] and psutil.pid_exists(pid):
                seen["raylets"][owner] = psutil.Process(pid).ppid()
        amid = {owner for _, owner, status in rows if status == "done"}
        amid &= {owner for _, owner, status in rows if status == "running"}
        if kill and seen["victim"] is None and len(amid) == 2:
            seen["victim"] = sorted(amid)[0]
            os.kill(int(seen["victim"].split(":")[-2]), signal.SIGKILL)
            mine = select(Shard).where(Shard.owner == seen["victim"])
            seen["begun"] = [s.first_image_id for s in fetch(database, mine) if s.status == "running"]

    with looking(look):
        yield seen


@pytest.mark.timeout(900)
def test_two_nodes_score_as_one_machine_does_and_a_killed_worker_costs_its_shards_repeat(
    tmp_path: Path, cluster: Cluster, store: str, one_thread: None, capfd: pytest.CaptureFixture[str]
) -> None:
    calm, calm_database = pool_of(tmp_path / "calm", SIZES, samples=8)
    score(calm, calm_database)
    project, database = on_the_cluster(calm, tmp_path / "ray", url=store, ray_address=cluster.address)
    assert project.file is not None
    began = time.monotonic()
    with watching(database, kill=True) as seen:
        report = scoring(project.file)
    seconds = time.monotonic() - began

    expected, found = rows_of(calm_database), rows_of(database)
    for name in COLUMNS:  # bit for bit; SQLite gives back as double what PostgreSQL gives back as float
        columns = (np.asarray(rows[name], dtype=np.float32) for rows in (found, expected))
        np.testing.assert_array_equal(*columns, err_msg=name)
    assert (report.images, report.regions) == (len(SIZES), len(expected["image_id"]))
    workers = ask(database, shards.workers, run_id=report.run_id)
    done = list(fetch(database, select(Shard).order_by(Shard.first_image_id)))
    victim = seen["victim"]
    assert victim is not None
    assert any(victim in line and "has died" in line for line in report.lines())
    assert len(set(seen["raylets"].values())) == 2  # both nodes have worked
    assert len(workers) >= 2
    assert {shard.status for shard in done} == {"done"}
    repeated = [shard.first_image_id for shard in done if shard.attempts > 1]
    assert repeated == sorted(seen["begun"])
    assert victim not in {shard.owner for shard in done if shard.first_image_id in seen["begun"]}
    with capfd.disabled():
        print(
            f"\n{len(SIZES)} images, {len(done)} shards, {seconds:.1f} s; killed: {victim}; "
            f"repeated: {repeated}"
        )
        for worker in workers:
            print(f"  {worker.owner}: {worker.shards} shards, {worker.images} images")

    with get_client(sync_client=True) as client:
        runs = client.read_task_runs()
        told = [run.model_dump_json() for run in (*client.read_flow_runs(), *runs)]
        told += [log.model_dump_json() for log in client.read_logs()]
    assert {"drain", "plan-scoring", "finish-scoring"} <= {run.name for run in runs}
    logs = Path(cluster.list_all_nodes()[0].get_logs_dir_path())
    told += [path.read_text(errors="replace") for path in logs.rglob("*") if path.is_file()]
    assert not [text for text in told if PASSWORD in text]


@pytest.mark.timeout(900)
def test_a_cluster_simulates_what_one_machine_does_and_a_killed_worker_costs_nothing(
    tmp_path: Path, cluster: Cluster, store: str
) -> None:
    asked: dict[str, Any] = {"strategies": "entropy,random", "seeds": 2, "budgets": "6,12", "iterations": 2}
    cells: list[dict[Any, Any]] = []
    killed: list[int] = []
    for name, settings in (
        ("calm", {}),
        (
            "ray",
            {
                "database": {"url": store},
                "scale": {"engine": "ray", "gpus_per_worker": 0, "ray_address": cluster.address},
            },
        ),
    ):
        for index in range(16):
            draw(
                tmp_path / name / "images",
                tmp_path / name / "masks",
                name=f"frame_{index:03d}.png",
                seed=index,
            )
        write_config(tmp_path / name, **QUICK, **settings)
        with opened_project(tmp_path / name) as (project, database):
            ingest(project, database)
            assert project.file is not None
            if name == "calm":
                run_simulate(Runner(project, database), workers=1, **asked)
            else:
                with killing_a_worker_amid(project.workdir / "simulations", killed):
                    simulate_flow(project.file, **asked)
            with database.session(write=False) as session:
                found = simulations.newest_simulation(session)
                assert found is not None
                cells.append(simulations.cells(session, found.id))
    assert len(killed) == 1
    assert len(cells[0]) == 6
    assert cells[0] == cells[1]
    assert (tmp_path / "ray" / ".segcurate" / "report" / "simulation.html").is_file()


@contextmanager
def killing_a_worker_amid(folder: Path, killed: list[int]) -> Iterator[None]:
    """Kill the process of one task while it computes."""

    def look() -> None:
        if killed or len(list(folder.glob("*/seed-*/initial/store.db"))) < 2:
            return
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if any(str(folder) in file.path for file in process.open_files()):
                    killed.append(process.pid)
                    process.kill()
                    return

    with looking(look):
        yield


@pytest.mark.timeout(600)
def test_what_the_user_must_mend_ends_all_workers_with_its_own_words(
    tmp_path: Path, cluster: Cluster, store: str
) -> None:
    calm, _ = pool_of(tmp_path / "calm", [(32, 32)] * 4, heatmaps={"images": "all"})
    project, database = on_the_cluster(calm, tmp_path / "ray", url=store, ray_address=cluster.address)
    (project.workdir / "heatmaps").write_text("a file where a folder must be")
    assert project.file is not None
    with pytest.raises(UserError, match="heatmaps"):
        scoring(project.file)
    assert set(fetch(database, Shard.status)) == {"pending"}  # all is given back


@pytest.mark.timeout(600)
def test_a_cluster_without_gpus_is_an_error_where_they_are_asked_for(
    tmp_path: Path, cluster: Cluster, store: str
) -> None:
    calm, _ = pool_of(tmp_path / "calm", [(32, 32)])
    project, database = on_the_cluster(
        calm, tmp_path / "ray", url=store, ray_address=cluster.address, gpus_per_worker=1
    )
    plan = plan_scoring(project, database)
    with disable_run_logger(), pytest.raises(ConfigError, match=r"has 0 GPUs.*gpus_per_worker: 0"):
        score_on_cluster(project, database, run_id=plan.run_id, began_at=plan.began_at)
