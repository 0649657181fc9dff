"""The deployments file: what it says, how it is refused, and when the schedules fall due."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
import yaml

from flows.automations import SILENCE, START, TAG, alerts, dead_runs, dead_starts
from flows.deployments import DEPLOYMENTS_FILE, Deployment, Deployments, read_deployments, registrable
from flows.serving import next_run, put_alerts
from pipeline.errors import ConfigError, UserError

SHIPPED = Path(__file__).parents[2] / DEPLOYMENTS_FILE
CONFIG = Path("segcurate.yaml")


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Deployments:
    monkeypatch.setenv("SEGCURATE_TIMEZONE", "Europe/Berlin")
    return read_deployments(SHIPPED, config=CONFIG)


def nightly(deployments: Deployments) -> Deployment:
    return next(one for one in deployments.deployments if one.name == "nightly")


def written(folder: Path, **changes: object) -> Path:
    """The shipped file with changes to its first deployment."""
    document = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    document["deployments"][0].update(changes)
    path = folder / "prefect.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def test_the_shipped_file_names_flows_that_take_a_configuration(berlin: Deployments) -> None:
    made = {one.name: registrable(one, pool=True) for one in berlin.deployments}

    assert sorted(made) == ["export-queue", "import-labels", "loop", "nightly", "retrain"]
    for name, deployment in made.items():
        assert deployment.flow_name == name
        assert deployment.entrypoint == next(o.entrypoint for o in berlin.deployments if o.name == name)
        assert deployment.parameters == {"config": str(CONFIG.absolute())}
        assert deployment.work_pool_name == "segcurate"
        assert deployment.concurrency_limit == 1
        assert deployment.concurrency_options is not None
        assert deployment.concurrency_options.collision_strategy == "ENQUEUE"
        assert TAG in deployment.tags


def test_a_run_loses_its_slot_no_sooner_than_its_start_is_given_up(berlin: Deployments) -> None:
    for deployment in berlin.deployments:
        assert deployment.concurrency_limit is not None
        assert deployment.concurrency_limit.grace_period_seconds == START.total_seconds()


def test_dead_means_three_heartbeats_of_our_own_runs(berlin: Deployments) -> None:
    beat = int(berlin.environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
    assert SILENCE.total_seconds() == 3 * beat
    for automation in (dead_runs(), dead_starts()):
        trigger = automation.trigger.model_dump(mode="json")
        assert trigger["match_related"] == {
            "prefect.resource.role": "tag",
            "prefect.resource.id": "prefect.tag.segcurate",
        }
        assert trigger["expect"] == ["prefect.flow-run.*"]


@pytest.mark.parametrize(
    ("after", "due"),
    [
        ("2026-01-15T12:00", "2026-01-16T01:00"),  # winter: 02:00 in Berlin is 01:00 UTC
        ("2026-07-15T12:00", "2026-07-16T00:00"),  # summer: two hours ahead
        ("2026-03-28T12:00", "2026-03-29T00:00"),  # there is no 02:00: at 01:00, and once
        ("2026-03-29T12:00", "2026-03-30T00:00"),
        ("2026-10-24T12:00", "2026-10-25T00:00"),  # 02:00 comes twice: the first one
        ("2026-10-25T02:30", "2026-10-26T01:00"),
    ],
)
def test_the_night_begins_at_two_on_the_wall_in_summer_and_winter(
    berlin: Deployments, after: str, due: str
) -> None:
    start = datetime.fromisoformat(after).replace(tzinfo=UTC)
    found = next_run(nightly(berlin), after=start)
    assert found is not None
    assert found.astimezone(UTC) == datetime.fromisoformat(due).replace(tzinfo=UTC)


def test_a_schedule_that_is_off_is_never_due(berlin: Deployments) -> None:
    retrain = next(one for one in berlin.deployments if one.name == "retrain")
    assert [schedule.active for schedule in retrain.schedules] == [False]
    assert next_run(retrain) is None


def test_alerts_are_sent_for_the_ends_that_need_a_person() -> None:
    automation = alerts(uuid4()).model_dump(mode="json")
    ends = {event.removeprefix("prefect.flow-run.") for event in automation["trigger"]["expect"]}
    assert ends == {"Failed", "TimedOut", "Crashed", "Completed with warnings"}
    assert automation["trigger"]["match_related"]["prefect.resource.id"] == f"prefect.tag.{TAG}"


@pytest.mark.parametrize("address", ["", "carrier-pigeon", "http//forgotten.colon"])
def test_an_address_that_apprise_does_not_know_is_refused_before_it_is_stored(address: str) -> None:
    with pytest.raises(UserError, match="none that Apprise knows"):
        put_alerts(address)


def test_without_a_time_zone_the_schedules_are_in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEGCURATE_TIMEZONE", raising=False)
    assert nightly(read_deployments(SHIPPED, config=CONFIG)).schedules[0].timezone == "UTC"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schedule": []}, "Did you mean `schedules`"),
        ({"parameters": {"config": "{{ $NOWHERE }}"}}, r"\$NOWHERE, which is not set"),
        (
            {"schedules": [{"cron": "0 2 * * *", "timezone": "Europe/Berlln", "slug": "a"}]},
            "no time zone `Europe/Berlln`",
        ),
        ({"concurrency_limit": {"limit": 0}}, "greater than 0"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_deployments(written(tmp_path, **changes), config=CONFIG)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"entrypoint": "flows.nightly.weekly"}, "`flows.nightly.weekly` cannot be imported"),
        ({"entrypoint": "flows.cli.display.table"}, "`flows.cli.display.table` is not a Prefect flow"),
        ({"parameters": {"confg": "a"}}, "`nightly` has no parameter confg"),
        (
            {"schedules": [{"cron": "0 25 * * *", "timezone": "UTC", "slug": "a"}]},
            "schedule of `nightly` is not valid",
        ),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_registered(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    read = read_deployments(written(tmp_path, **changes), config=CONFIG)
    with pytest.raises(ConfigError, match=said):
        registrable(nightly(read), pool=False)


def test_a_file_beside_the_project_comes_before_the_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert nightly(read_deployments(None, config=CONFIG)).tags == ("segcurate",)
    (tmp_path / "configs").mkdir()
    written(tmp_path / "configs", tags=["mine"])
    assert nightly(read_deployments(None, config=CONFIG)).tags == ("mine",)


def test_reading_the_file_needs_no_prefect() -> None:
    look = (
        "import sys; from pathlib import Path; from flows.deployments import read_deployments;"
        "read_deployments(Path(sys.argv[1]), config=Path('a')); import flows.cli;"
        "print(sorted({'prefect', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", look, str(SHIPPED)], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
