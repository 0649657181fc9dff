"""One process at a time does a piece of work, and a dead one blocks nobody."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Generator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from db.engine import Database
from db.queries import leases as lease_queries
from db.tables import Lease, utc_now
from pipeline.errors import Busy
from pipeline.leases import alone, one_at_a_time, renewing
from pipeline.processes import is_running, name_process, this_process
from tests.factories import ask, replace_sleep

ELSEWHERE = "another-machine:4711:99"


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(f"sqlite:///{tmp_path / 'store.db'}")


@pytest.fixture
def other() -> Generator[subprocess.Popen[bytes]]:
    """Another process of this machine, which lives until the test ends it."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def hold(database: Database, owner: str, *, name: str = "train", seconds: float = 60) -> None:
    now = utc_now()
    with database.session() as session:
        session.merge(Lease(name=name, owner=owner, taken_at=now, until=now + timedelta(seconds=seconds)))


def holders(database: Database) -> dict[str, str]:
    with database.session(write=False) as session:
        return {lease.name: lease.owner for lease in session.query(Lease)}


def until_zombie(pid: int) -> None:
    for _ in range(500):
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.01)
    raise TimeoutError


def test_free_work_is_held_while_it_lasts_and_free_again_after(database: Database) -> None:
    with alone(database, "train"):
        assert holders(database) == {"train": this_process()}
    assert holders(database) == {}


def test_work_that_raises_is_free_again_too(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), alone(database, "train"):
        _ = 1 / 0
    assert holders(database) == {}


def test_a_living_process_is_not_disturbed_and_the_message_names_it(
    database: Database, other: subprocess.Popen[bytes]
) -> None:
    hold(database, name_process(other.pid))
    with (
        pytest.raises(Busy, match=rf"already runs `train`: process {other.pid} on ") as busy,
        alone(database, "train"),
    ):
        pytest.fail("It was held.")
    assert "Wait until it has ended" in busy.value.remedy
    assert holders(database) == {"train": name_process(other.pid)}


def test_another_work_is_free_meanwhile(database: Database, other: subprocess.Popen[bytes]) -> None:
    hold(database, name_process(other.pid))
    with alone(database, "export"):
        assert set(holders(database)) == {"train", "export"}


def test_what_a_killed_process_held_is_free_at_once(
    database: Database, other: subprocess.Popen[bytes]
) -> None:
    name = name_process(other.pid)
    hold(database, name, seconds=3600)
    other.kill()
    other.wait()
    began = time.monotonic()
    with alone(database, "train"):
        assert holders(database) == {"train": this_process()}
    assert time.monotonic() - began < 5


def test_a_killed_process_that_its_parent_has_not_asked_for_is_dead(other: subprocess.Popen[bytes]) -> None:
    name = name_process(other.pid)
    assert is_running(name) is True
    other.kill()
    until_zombie(other.pid)
    assert is_running(name) is False


def test_a_number_that_another_process_has_now_is_not_the_old_process() -> None:
    host_and_number = this_process().rpartition(":")[0]
    assert is_running(f"{host_and_number}:1") is False


def test_of_a_process_elsewhere_nothing_is_known() -> None:
    assert is_running(ELSEWHERE) is None
    assert is_running("nonsense") is None


def test_a_silent_process_elsewhere_is_waited_for_until_its_lease_ends(database: Database) -> None:
    hold(database, ELSEWHERE, seconds=0.8)
    began = time.monotonic()
    with alone(database, "train"):
        assert holders(database) == {"train": this_process()}
    assert 0.7 < time.monotonic() - began < 10


def test_a_process_elsewhere_that_renews_its_lease_is_alive(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(database, ELSEWHERE)
    replace_sleep(monkeypatch, lambda _: hold(database, ELSEWHERE, seconds=90))
    with pytest.raises(Busy, match="process 4711 on another-machine"), alone(database, "train"):
        pytest.fail("It was held.")


def test_who_waits_for_a_living_process_goes_on_when_that_is_through(
    database: Database, other: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(database, name_process(other.pid))
    polls = 0

    def let_go_at_the_third(_seconds: float) -> None:
        nonlocal polls
        polls += 1
        if polls == 3:
            ask(database, lease_queries.give_lease_back, name="train", owner=name_process(other.pid))

    replace_sleep(monkeypatch, let_go_at_the_third)
    with alone(database, "train", wait=True):
        assert polls == 3


def test_a_lease_is_renewed_while_the_work_lasts_and_the_thread_ends_with_it(database: Database) -> None:
    threads = threading.active_count()
    with alone(database, "train", seconds=0.4):
        time.sleep(1.0)
        with database.session(write=False) as session:
            assert session.get_one(Lease, "train").until > utc_now()
        assert threading.active_count() == threads + 1
    assert threading.active_count() == threads


def test_a_renewal_that_fails_is_tried_again_and_the_work_goes_on(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    renew = lease_queries.renew_leases
    tries: list[None] = []

    def lost_once(*args: Any, **options: Any) -> None:
        tries.append(None)
        if len(tries) == 1:
            raise OperationalError("UPDATE lease", None, Exception("server closed the connection"))
        renew(*args, **options)

    monkeypatch.setattr(lease_queries, "renew_leases", lost_once)
    with renewing(database, seconds=0.2):
        time.sleep(0.5)
    assert len(tries) > 1
    assert "could not be renewed: server closed the connection" in caplog.text


def test_a_lease_that_cannot_be_given_back_hides_no_error(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_args: Any, **_options: Any) -> None:
        raise OperationalError("DELETE FROM lease", None, Exception("database or disk is full"))

    monkeypatch.setattr(lease_queries, "give_lease_back", full)
    with pytest.raises(ZeroDivisionError), alone(database, "train"):
        _ = 1 / 0
    assert "could not be given back: database or disk is full" in caplog.text


def test_a_step_for_one_at_a_time_is_refused_while_another_process_is_at_it(
    database: Database, other: subprocess.Popen[bytes]
) -> None:
    @one_at_a_time("train")
    def step(project: Any, database: Database, *, number: int) -> int:
        """What it does."""
        return number + len(holders(database))

    assert step(None, database, number=6) == 7  # pyright: ignore[reportArgumentType]
    assert step.__doc__ == "What it does."
    hold(database, name_process(other.pid))
    with pytest.raises(Busy):
        step(None, database, number=6)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("state", ["train", "calibrate", "evaluate", "export", "import", "ingest"])
def test_every_step_that_replaces_what_it_made_is_done_by_one_at_a_time(
    database: Database, other: subprocess.Popen[bytes], state: str
) -> None:
    from pipeline.steps.calibrate import calibrate
    from pipeline.steps.evaluate import evaluate
    from pipeline.steps.export import export
    from pipeline.steps.import_labels import import_labels
    from pipeline.steps.ingest import ingest
    from pipeline.steps.train import train

    steps: dict[str, Any] = {
        "train": train,
        "calibrate": calibrate,
        "evaluate": evaluate,
        "export": export,
        "import": import_labels,
        "ingest": ingest,
    }
    hold(database, name_process(other.pid), name=state)
    with pytest.raises(Busy, match=f"`{state}`"):
        steps[state](None, database)


def test_leases_that_dead_processes_held_are_not_kept(
    database: Database, other: subprocess.Popen[bytes]
) -> None:
    hold(database, name_process(other.pid), name="finish run 7")
    hold(database, ELSEWHERE, name="finish run 8", seconds=-3601)
    hold(database, ELSEWHERE, name="finish run 9", seconds=-1)
    other.kill()
    other.wait()
    with alone(database, "train"):
        assert holders(database) == {"train": this_process(), "finish run 9": ELSEWHERE}
