"""When a cancelled night whose process has died frees its slot, on a real server: `make test-prefect`."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State, StateType
from prefect.client.schemas.responses import SetStateStatus

from tests.conftest import draw, write_config
from tests.real.house import House

pytestmark = pytest.mark.timeout(900)

CANCELLED_WITHIN = 120
"""Seconds, as docs/operations.md says."""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("house"))
    draw(house.project / "images", house.project / "masks", name="frame.png", seed=0)
    write_config(house.project)
    house.start_server()
    house.run("segcurate", "deploy")
    try:
        yield house
    finally:
        house.leave()


def begin_and_die(house: House, deployment: str = "nightly") -> str:
    """A run that has started, and whose process does nothing more."""
    run = house.begin(deployment)
    assert advance(house, run, StateType.PENDING) is SetStateStatus.ACCEPT
    assert advance(house, run, StateType.RUNNING) is SetStateStatus.ACCEPT
    return run


def advance(house: House, run: str, state: StateType) -> SetStateStatus:
    """The server's answer to a process or a person that proposes this state."""
    with SyncPrefectClient(house.api) as client:
        return client.set_flow_run_state(run, State(type=state)).status


def slots(house: House) -> int:
    """How many slots of the deployment `nightly` are taken."""
    return house.deployment("nightly")["global_concurrency_limit"]["active_slots"]


@pytest.mark.parametrize("outage", [False, True], ids=["server stays", "server killed"])
def test_a_dead_night_that_is_cancelled_frees_its_slot_for_the_next(house: House, outage: bool) -> None:
    cancelled_by_its_process = begin_and_die(house, "retrain")
    assert advance(house, cancelled_by_its_process, StateType.CANCELLING) is SetStateStatus.ACCEPT
    assert advance(house, cancelled_by_its_process, StateType.CANCELLED) is SetStateStatus.ACCEPT
    before = house.state(cancelled_by_its_process)
    night = begin_and_die(house)
    assert slots(house) == 1
    assert advance(house, night, StateType.CANCELLING) is SetStateStatus.ACCEPT
    cancelled = time.monotonic()
    waiting = house.begin("nightly")
    assert advance(house, waiting, StateType.PENDING) is not SetStateStatus.ACCEPT
    if outage:
        house.kill("server")
        house.start_server()
        print(f"the server was away for {time.monotonic() - cancelled:.0f} s")
    back = time.monotonic()

    end = house.ended(night, seconds=CANCELLED_WITHIN)
    print(f"cancelled {time.monotonic() - cancelled:.0f} s after it was asked for")
    assert end["type"] == "CANCELLED", end
    assert time.monotonic() - back < CANCELLED_WITHIN
    assert slots(house) == 0
    assert house.state(cancelled_by_its_process) == before
    after = begin_and_die(house)
    assert slots(house) == 1
    assert advance(house, after, StateType.COMPLETED) is SetStateStatus.ACCEPT
    assert slots(house) == 0
