"""The flows, on a real Prefect server: what a person reads there, and that they do what the commands do."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, State
from prefect.flow_engine import run_flow
from prefect.states import Scheduled
from prefect.utilities.callables import parameter_schema

from flows import tasks
from flows.automations import LABELS_IMPORTED, resource_id
from flows.export_queue import export_queue
from flows.import_labels import import_labels_flow
from flows.loop import loop_flow
from flows.nightly import nightly
from flows.retrain import retrain
from flows.simulation import simulate_flow
from pipeline.operation.played_labels import play_rounds
from pipeline.operation.runner import Runner
from pipeline.ownership import identity_of
from pipeline.steps import ingest
from pipeline.steps.annotate import annotate
from tests.conftest import another_process, opened
from tests.flows.test_loop import remembered

pytestmark = pytest.mark.usefixtures("prefect_server")


def ran(flow: Flow[..., Any], project: Path, **parameters: Any) -> State[Any]:
    """The state that a run on the project in this folder ends in."""
    state = flow(config=project / "segcurate.yaml", **parameters, return_state=True)
    assert isinstance(state, State)
    return state


def run_of(client: SyncPrefectClient, state: State[Any]) -> FlowRun:
    assert state.state_details.flow_run_id is not None
    return client.read_flow_run(state.state_details.flow_run_id)


def test_a_night_reads_in_the_ui_like_what_it_has_done(trained: Path) -> None:
    state = ran(nightly, trained)
    assert state.message == "No new images, 8 scored by r01; round-01 is active: 6 regions to label."
    with get_client(sync_client=True) as client:
        run = run_of(client, state)
        steps = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
        assert {step.name for step in steps} >= {
            "ingest",
            "plan-scoring",
            "finish-scoring",
            "select",
            "export",
        }
        log = _log(client, run, until="scored 8 images")
    assert re.fullmatch(r"nightly \d{4}-\d\d-\d\d · model r01 · 8 images", run.name)
    assert "images/s" in log
    again = ran(nightly, trained)
    assert (
        again.message
        == "No new images, none scored by r01; round-01 is active: 6 of 6 regions wait for labels."
    )
    with get_client(sync_client=True) as client:
        assert run_of(client, again).name.endswith("· model r01 · nothing new")


def test_a_second_night_at_once_is_skipped_with_a_clear_word(out: Path) -> None:
    with opened(out) as (_, database), another_process(database, at="nightly") as process:
        state = ran(nightly, out)
    assert (state.name, state.is_completed()) == ("Skipped", True)
    assert f"process {process} on" in str(state.message)


def test_a_night_with_a_file_that_cannot_be_read_says_so_in_its_state(out: Path) -> None:
    (out / "images" / "broken.png").write_bytes(b"no image")
    state = ran(nightly, out)
    assert (state.name, state.is_completed()) == ("Completed with warnings", True)
    assert "1 file could not be used" in str(state.message)


def test_what_the_user_can_mend_fails_the_run_with_its_remedy_and_no_traceback(out: Path) -> None:
    shutil.rmtree(out / "images")
    state = ran(nightly, out)
    assert state.is_failed()
    assert str(state.message).startswith("`data.images` names 'images', and there is no")
    with get_client(sync_client=True) as client:
        run = run_of(client, state)
        log = _log(client, run, until="Correct the path")
        (step,) = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    assert "Traceback" not in log
    assert step.run_count == 1


def test_a_lost_connection_costs_a_retry(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = ingest.ingest

    @wraps(real)
    def fails_once(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionResetError("gone")
        return real(*arguments, **options)

    monkeypatch.setattr(ingest, "ingest", fails_once)
    monkeypatch.setattr(tasks, "FIRST_DELAY", 0.01)
    state = ran(nightly, out)
    assert state.is_completed()
    assert len(calls) == 2


def test_too_few_labels_end_a_retraining_at_once(out: Path) -> None:
    state = ran(retrain, out)
    assert (state.is_completed(), state.message) == (True, "0 of 4 new labels.")


def test_an_import_says_that_labels_have_come_and_only_then(out: Path, prefect_server: str) -> None:
    with opened(out) as (project, database):
        annotate(project, database, out / "queues" / "round-01")
        owner = identity_of(project, database).id
    before = len(_events(prefect_server, owner))
    state = ran(import_labels_flow, out, folder=Path("queues/round-01"), annotator="a person", close=True)
    again = ran(import_labels_flow, out, folder=Path("queues/round-01"))
    assert "5 masks imported" in str(state.message) or "6 masks imported" in str(state.message)
    assert "0 masks imported" in str(again.message)
    events = _events(prefect_server, owner, at_least=before + 1)
    assert len(events) == before + 1
    assert events[0]["payload"]["queue"] == "round-01"
    assert events[0]["payload"]["closed"] is True
    assert events[0]["payload"]["new_labels"] >= 5


def test_a_queue_is_exported_again_to_another_folder(out: Path) -> None:
    state = ran(export_queue, out, queue="round-01", folder=Path("elsewhere"))
    assert state.is_completed()
    assert (out / "elsewhere" / "manifest.jsonl").is_file()


def test_the_loop_as_a_flow_ends_where_the_command_does(out: Path, tmp_path: Path) -> None:
    twin = Path(shutil.copytree(out, tmp_path / "twin"))
    with opened(twin) as (project, database):
        play_rounds(Runner(project, database), rounds=2)
    assert ran(loop_flow, out, rounds=2).is_completed()
    assert remembered(out) == remembered(twin)
    assert len(remembered(out)["models"]) == 2


def test_a_simulation_as_a_flow_compares_strategies(trained: Path) -> None:
    state = ran(simulate_flow, trained, strategies="entropy,random", seeds=1, budgets="6,12", workers=1)
    assert state.is_completed()
    assert str(state.message).startswith("Not shown, per region, with 1 seed: entropy against random")


def test_a_late_night_gives_way_to_a_newer_one_that_is_due(out: Path) -> None:
    now = datetime.now(UTC)
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(flow_id=client.create_flow(nightly), name="late")
        parameters = {"config": str(out / "segcurate.yaml")}
        late, newer = (
            client.create_flow_run_from_deployment(
                deployment,
                parameters=parameters,
                state=Scheduled(scheduled_time=now - timedelta(hours=hours)),
            )
            for hours in (30, 6)
        )
        ends = [
            run_flow(
                nightly, flow_run=client.read_flow_run(run.id), parameters=parameters, return_type="state"
            )
            for run in (late, newer)
        ]
    assert isinstance(ends[0], State)
    assert isinstance(ends[1], State)
    assert (ends[0].name, ends[1].name) == ("Skipped", "Completed")
    assert f"is skipped: the newer run {newer.name} is due" in str(ends[0].message)


@pytest.mark.parametrize(
    "flow", [nightly, retrain, import_labels_flow, export_queue, loop_flow, simulate_flow]
)
def test_the_form_of_a_flow_explains_each_of_its_fields(flow: Callable[..., Any]) -> None:
    schema = parameter_schema(flow).model_dump()
    assert schema["required"][0] == "config"
    for name, field in schema["properties"].items():
        assert re.match(r"[A-Z].{10,}\.$", field["description"], re.DOTALL), name
        assert "default" in field or name in schema["required"], name


def test_a_value_that_no_field_takes_is_refused_before_the_run(out: Path) -> None:
    state = ran(loop_flow, out, rounds=0)
    assert state.is_failed()
    assert "greater than or equal to 1" in str(state.message)


def _log(client: SyncPrefectClient, run: FlowRun, *, until: str) -> str:
    """A run's log, once it holds a text; lines reach the server a little after the run has ended."""
    text = ""
    for _ in range(50):
        lines = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])))
        text = "\n".join(line.message for line in lines)
        if until in text:
            return text
        time.sleep(0.1)
    raise AssertionError(f"{until!r} is not in the log: {text}")


def _events(api: str, project: str, *, at_least: int = 0) -> list[dict[str, Any]]:
    """The events about imported labels of a project, newest first, once there are so many."""
    wanted = {"event": {"name": [LABELS_IMPORTED]}, "resource": {"id": [resource_id(project)]}}
    found: list[dict[str, Any]] = []
    for _ in range(100):
        found = httpx.post(f"{api}/events/filter", json={"filter": wanted}).json()["events"]
        if len(found) >= at_least:
            break
        time.sleep(0.1)
    return found
