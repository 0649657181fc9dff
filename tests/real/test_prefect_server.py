"""What dies in the night, on a real Prefect server with a real worker: `make test-prefect`.

The tests go through one house in this order, and each leaves a whole night behind.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.real.house import BIN, BUDGET, House, add_images, make_project, pool, queued, scores, wait_for

pytestmark = pytest.mark.timeout(900)  # of which most is waiting, on a busy machine

CRASHED_WITHIN = 120
ENOUGH = 300
"""Images that a night takes long enough for to be killed in the middle."""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("house"))
    house.project.mkdir()
    make_project(house.project)
    shutil.copytree(house.project / ".segcurate", house.folder / "before")
    house.start_server()
    try:
        yield house
    finally:
        house.leave()


def assert_scored_once(house: House) -> None:
    """Every image of the pool has exactly one row of the one run, and the queue is whole."""
    rows = scores(house.project)
    assert {count for _, count in rows.values()} == {1}
    assert set(rows) == pool(house.project)
    assert len(queued(house.project)) == BUDGET


def test_setting_up_and_deploying_twice_changes_nothing_the_second_time(house: House) -> None:
    def registered() -> list[tuple[Any, ...]]:
        pools = [(pool["id"], pool["name"], pool["type"]) for pool in house.ask("work_pools/filter")]
        automations = [(one["id"], one["name"], one["enabled"]) for one in house.ask("automations/filter")]
        deployments = [
            (
                one["id"],
                one["name"],
                one["entrypoint"],
                one["parameters"],
                one["global_concurrency_limit"]["limit"],
                one["concurrency_options"],
                [(s["id"], s["slug"], s["schedule"]["timezone"], s["active"]) for s in one["schedules"]],
            )
            for one in house.ask("deployments/filter")
        ]
        return [*sorted(pools), *sorted(automations), *sorted(deployments, key=lambda one: one[1])]

    house.run("segcurate", "deploy")
    first = registered()
    house.run("segcurate", "prefect", "setup")
    printed = house.run("segcurate", "deploy")

    assert registered() == first
    assert len(first) == 1 + 3 + 5
    night = house.deployment("nightly")
    assert night["parameters"] == {"config": str(house.project / "segcurate.yaml")}
    assert night["concurrency_options"]["collision_strategy"] == "ENQUEUE"
    assert [(s["schedule"]["cron"], s["schedule"]["timezone"]) for s in night["schedules"]] == [
        ("0 2 * * *", "Europe/Berlin")
    ]
    line = next(line for line in printed.splitlines() if line.startswith("nightly-squares"))
    assert " 02:00 CE" in line


def test_the_server_schedules_the_coming_nights(house: House) -> None:
    nights = wait_for(
        "scheduled nights",
        lambda: house.ask(
            "flow_runs/filter",
            {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}, "sort": "EXPECTED_START_TIME_ASC"},
        ),
        seconds=60,
    )
    first = datetime.fromisoformat(nights[0]["expected_start_time"])
    assert datetime.now(UTC) < first < datetime.now(UTC) + timedelta(hours=25)
    assert len(nights) == 3


def test_a_backlog_of_three_late_nights_is_one_real_one_and_two_no_ops(house: House) -> None:
    add_images(house.project, 12, name="backlog")
    nights = [
        house.begin(
            "nightly",
            state_details={"scheduled_time": (datetime.now(UTC) - timedelta(days=days)).isoformat()},
        )
        for days in (3, 2, 1)
    ]
    house.start_worker()

    ends = [house.ended(night, seconds=180) for night in nights]

    assert [end["type"] for end in ends] == ["COMPLETED"] * 3
    real = [end for end in ends if "12 scored" in end["message"]]
    idle = [end for end in ends if end["name"] == "Skipped" or "none scored" in end["message"]]
    assert (len(real), len(idle)) == (1, 2), ends
    assert_scored_once(house)


def test_a_night_goes_on_while_the_server_is_killed_and_started_again(house: House) -> None:
    add_images(house.project, ENOUGH, name="outage")
    before = house.shards_done()
    night = house.begin("nightly")
    wait_for("the night's first shards", lambda: house.shards_done() > before + 2, seconds=120)

    house.kill("server")
    time.sleep(5)
    house.start_server()

    end = house.ended(night, seconds=CRASHED_WITHIN + 60)
    assert end["type"] in ("COMPLETED", "CRASHED"), end
    after = house.ended(house.begin("nightly"), seconds=180)
    assert after["type"] == "COMPLETED", after
    assert_scored_once(house)


def test_a_night_whose_worker_is_killed_is_marked_crashed_and_the_next_one_finishes_it(house: House) -> None:
    add_images(house.project, ENOUGH, name="killed")
    before = house.shards_done()
    night = house.begin("nightly")
    wait_for("the night's first shards", lambda: house.shards_done() > before + 2, seconds=120)

    house.kill("worker")
    killed = time.monotonic()
    assert house.shards_done() < before + ENOUGH / 4, "the night was over before its worker was killed"
    assert set(scores(house.project)) < pool(house.project)
    end = house.ended(night, seconds=CRASHED_WITHIN)
    print(f"marked crashed {time.monotonic() - killed:.0f} s after the kill")
    assert end["type"] == "CRASHED"
    assert "its process has died" in end["message"]

    house.start_worker()
    after = house.ended(house.begin("nightly"), seconds=180)
    print(f"the next night was through {time.monotonic() - killed:.0f} s after the kill")

    assert after["type"] == "COMPLETED", after
    assert_scored_once(house)


def test_after_all_this_the_scores_are_those_of_one_undisturbed_night(house: House) -> None:
    control = Path(shutil.copytree(house.project, house.folder / "control"))
    shutil.rmtree(control / ".segcurate")
    shutil.copytree(house.folder / "before", control / ".segcurate")
    done = subprocess.run([str(BIN / "segcurate"), "nightly"], cwd=control, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

    assert scores(house.project) == scores(control)


def test_no_run_that_completed_is_taken_for_dead(house: House) -> None:
    completed = house.ask("flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}})
    crashed = house.ask("flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["CRASHED"]}}}})
    assert len(completed) >= 5
    assert len(crashed) <= 2
    for run in crashed:
        history = httpx.get(f"{house.api}/flow_run_states/", params={"flow_run_id": run["id"]}).json()
        assert "COMPLETED" not in [state["type"] for state in history]


def test_without_a_server_the_commands_say_what_to_do(house: House) -> None:
    away = House(house.folder)
    for command in (("deploy",), ("prefect", "setup"), ("serve",)):
        said = away.run("segcurate", *command, expect=1)
        assert f"No Prefect server answers at {away.api}" in said
        assert "Traceback" not in said


def test_serve_brings_a_server_and_its_schedules_survive_kill_and_restart(house: House) -> None:
    served = House(house.folder / "served")
    served.folder.mkdir()
    shutil.copytree(house.project, served.project)

    def serve() -> None:
        served.start("serve", "segcurate", "serve", "--port", str(served.port), with_api=False)
        served.wait_for_server()
        wait_for("deployments", lambda: len(served.ask("deployments/filter")) == 5, seconds=60)

    try:
        serve()
        served.kill("serve")
        serve()
        schedules = {one["name"]: one for one in served.ask("deployments/filter")}
        assert not schedules["nightly-squares"]["paused"]
        assert [s["active"] for s in schedules["nightly-squares"]["schedules"]] == [True]
        assert [s["active"] for s in schedules["retrain-squares"]["schedules"]] == [False]
        add_images(served.project, 4, name="served")
        assert served.ended(served.begin("nightly"), seconds=120)["type"] == "COMPLETED"

        serving = served.processes["serve"]
        serving.terminate()
        assert serving.wait(60) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{served.api}/health")
    finally:
        served.leave()
