"""Two projects on one Prefect server, and a third whose deployments would have the names of the first's.

The tests go through them in this order: `make test-prefect`. The first project has a worker, the second one
`segcurate serve`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from db.queries.identity import read_identity
from db.queries.queues import current_queue
from db.tables import Model
from flows.deployments import PROJECT_TAG
from pipeline.data.project import load_project
from pipeline.ownership import open_database
from pipeline.steps.annotate import annotate
from tests.conftest import opened
from tests.real.house import House, add_images, free_port, pool, scores, wait_for

pytestmark = pytest.mark.timeout(900)  # of which most is waiting, on a busy machine

FLOWS = ("export-queue", "import-labels", "loop", "nightly", "retrain")
KEPT = ("id", "created", "name", "entrypoint", "parameters", "tags", "paused", "work_pool_name")
"""What a deployment must keep while another project registers its own."""
Houses = tuple[House, House, House]


@pytest.fixture(scope="module")
def houses(trained_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Houses]:
    """The projects roads, trees and Roads, each with a model, and one server."""
    folder, port = tmp_path_factory.mktemp("shared"), free_port()
    first, second, third = (
        House(folder / str(number), port, name=name)
        for number, name in enumerate(("roads", "trees", "Roads"))
    )
    for house in (first, second, third):
        shutil.copytree(trained_once, house.project)
        config = house.project / "segcurate.yaml"
        text = re.sub("^name: .*$", f"name: {house.name}", config.read_text(), flags=re.MULTILINE)
        config.write_text(text)
        open_database(load_project(config)).close()  # which gives the project its id
    assert len({project_id(house) for house in (first, second, third)}) == 3
    first.start_server()
    try:
        yield first, second, third
    finally:
        for house in (first, second, third):
            house.leave()


def project_id(house: House) -> str:
    with opened(house.project) as (_, database), database.session(write=False) as session:
        identity = read_identity(session)
    assert identity is not None
    return identity.id


def registered(house: House) -> dict[str, dict[str, Any]]:
    """The deployments of a project by their names."""
    tagged = {"deployments": {"tags": {"all_": [PROJECT_TAG + project_id(house)]}}}
    return {one["name"]: {key: one[key] for key in KEPT} for one in house.ask("deployments/filter", tagged)}


def runs_of(house: House, flow: str) -> list[str]:
    of_deployment = {"deployments": {"id": {"any_": [house.deployment(flow)["id"]]}}}
    return [run["id"] for run in house.ask("flow_runs/filter", of_deployment)]


def artifacts_of(house: House, run: str) -> set[str]:
    found = house.ask("artifacts/filter", {"flow_runs": {"id": {"any_": [run]}}})
    return {one["key"] for one in found if one["key"] is not None}


def models(house: House) -> int:
    with opened(house.project) as (_, database), database.session(write=False) as session:
        return session.scalar(select(func.count()).select_from(Model)) or 0


def test_a_project_that_is_served_leaves_the_deployments_of_the_other(houses: Houses) -> None:
    roads, trees, _ = houses
    roads.run("segcurate", "deploy")
    before = registered(roads)

    trees.start("serve", "segcurate", "serve")

    wait_for("the deployments of trees", lambda: len(registered(trees)) == len(FLOWS), seconds=180)
    assert registered(roads) == before
    for house in (roads, trees):
        found = registered(house)
        assert sorted(found) == [f"{flow}-{house.name}" for flow in FLOWS]
        config = {"config": str(house.project / "segcurate.yaml")}
        assert [one["parameters"] for one in found.values()] == [config] * len(FLOWS)


def test_each_night_runs_on_its_own_store_and_has_artifacts_of_its_own(houses: Houses) -> None:
    roads, trees, _ = houses
    add_images(roads.project, 3, name="road")
    add_images(trees.project, 2, name="tree")
    roads.start_worker()

    nights = [house.begin("nightly") for house in (roads, trees)]
    ends = [house.ended(night, seconds=240) for house, night in zip((roads, trees), nights, strict=True)]

    assert [end["type"] for end in ends] == ["COMPLETED"] * 2, ends
    assert len(pool(roads.project)) == len(pool(trees.project)) + 1
    for house, night, end in zip((roads, trees), nights, ends, strict=True):
        assert f"{len(pool(house.project))} scored" in end["message"]
        assert set(scores(house.project)) == pool(house.project)
        keys = artifacts_of(house, night)
        assert {key.partition("-")[0] for key in keys} == {"scoring", "queue", "export", "round"}
        assert all(f"-{house.name}-{project_id(house)[:8]}" in key for key in keys)


def test_an_import_starts_the_retraining_of_its_own_project_only(houses: Houses) -> None:
    roads, trees, _ = houses
    with opened(roads.project) as (project, database):
        with database.session(write=False) as session:
            queue = current_queue(session)
            assert queue is not None
            folder = str(queue.export_uri)
        annotate(project, database, project.path(folder))

    end = roads.ended(roads.begin("import-labels", parameters={"folder": folder}), seconds=120)
    assert end["type"] == "COMPLETED", end
    (run,) = wait_for("a retraining of roads", lambda: runs_of(roads, "retrain"), seconds=60)
    trained = roads.ended(run, seconds=240)

    assert trained["type"] == "COMPLETED", trained
    assert runs_of(trees, "retrain") == []
    assert (models(roads), models(trees)) == (2, 1)


@pytest.mark.parametrize("command", ["deploy", "serve", "prefect setup"])
def test_a_project_with_the_deployments_names_of_another_is_refused(houses: Houses, command: str) -> None:
    roads, trees, other = houses
    before = registered(roads), registered(trees)

    said = " ".join(other.run("segcurate", *command.split(), expect=1).split())

    assert "belongs to the project 'roads', and this is the project 'Roads', with another database" in said
    assert (registered(roads), registered(trees)) == before
    assert registered(other) == {}


def test_a_project_that_is_deployed_leaves_the_deployments_of_the_other(houses: Houses) -> None:
    roads, trees, _ = houses
    trees.kill("serve")
    before, served = registered(roads), registered(trees)

    trees.run("segcurate", "deploy")

    assert registered(roads) == before
    assert {name: one["id"] for name, one in registered(trees).items()} == {
        name: one["id"] for name, one in served.items()
    }
