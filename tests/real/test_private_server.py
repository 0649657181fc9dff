"""The Prefect server of `segcurate serve`: a page of another origin, or another user, gets nothing from it.

Whoever may create a deployment may run a command: the page tries what an attacker's page would.
"""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from flows.prefect_server import private_password, private_server
from pipeline.errors import UserError
from pipeline.processes import is_running
from tests.real.house import free_port, wait_for
from tests.real.test_prefect_ui import CHROMIUM

pytestmark = pytest.mark.timeout(600)

ATTACK = """
async (api) => {
  const outcomes = [];
  const attempt = async (path, options) => {
    try { outcomes.push((await fetch(api + path, options)).status); }
    catch (error) { outcomes.push("blocked"); }
  };
  const body = JSON.stringify({name: "attack"});
  const json = {"Content-Type": "application/json"};
  await attempt("/deployments/filter", {method: "POST", headers: json, body: "{}"});
  await attempt("/flows/", {method: "POST", headers: json, body});
  await attempt("/flows/", {method: "POST", headers: {"Content-Type": "text/plain"}, body});
  await attempt("/flows/", {method: "POST", mode: "no-cors", body});
  await attempt("/flows/", {method: "POST", headers: {...json, Authorization: "Basic YTpi"}, body});
  return outcomes;
}
"""


@pytest.fixture(scope="module")
def password(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("project") / ".segcurate" / "prefect-password"
    drawn = private_password(file)
    assert private_password(file) == drawn
    assert file.stat().st_mode & 0o777 == 0o600
    assert len(drawn) > 40
    return drawn


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("project") / ".segcurate" / "prefect-server"


@pytest.fixture(scope="module")
def api(password: str, record: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        patch.delenv("PREFECT_API_URL", raising=False)
        with private_server(free_port(), password=password, record=record) as url:
            yield url


def flows_of(api: str, password: str) -> list[str]:
    user, _, secret = password.partition(":")
    answer = httpx.post(f"{api}/flows/filter", json={}, auth=(user, secret))
    answer.raise_for_status()
    return [flow["name"] for flow in answer.json()]


def test_another_user_of_the_machine_gets_401(api: str, password: str) -> None:
    assert httpx.post(f"{api}/flows/", json={"name": "attack"}).status_code == 401
    assert httpx.post(f"{api}/flows/", json={"name": "attack"}, auth=("segcurate", "")).status_code == 401
    assert flows_of(api, password) == []


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_page_of_another_origin_gets_nothing(api: str, password: str, host: str, tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    (tmp_path / "index.html").write_text("<title>attack</title>")

    class Page(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, format: str, *args: Any) -> None: ...

    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    try:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page()
            page.goto(f"http://{host}:{site.server_port}/")
            outcomes = page.evaluate(ATTACK, api)
            browser.close()
    finally:
        site.shutdown()
    assert outcomes == ["blocked", "blocked", "blocked", 0, "blocked"]  # 0: an answer that a page cannot read
    assert flows_of(api, password) == []


def test_its_own_page_works_at_any_port(api: str, password: str) -> None:
    origin = api.removesuffix("/api")
    assert httpx.get(f"{origin}/ui-settings").json()["api_url"] == api
    preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    assert httpx.options(f"{api}/flows/", headers=preflight).headers["access-control-allow-origin"] == origin
    other = httpx.options(f"{api}/flows/", headers={**preflight, "Origin": "http://127.0.0.1:1"})
    assert "access-control-allow-origin" not in other.headers


def test_one_process_at_a_time_runs_the_server_of_a_project(api: str, password: str, record: Path) -> None:
    with (
        pytest.raises(UserError, match="Another `segcurate serve` of this project"),
        private_server(free_port(), password=password, record=record),
    ):
        pass


def test_the_port_of_another_project_is_refused(api: str, tmp_path: Path) -> None:
    port = int(api.removesuffix("/api").rpartition(":")[2])
    with (
        pytest.raises(UserError, match="Another Prefect server is running"),
        private_server(port, password="segcurate:another", record=tmp_path / "prefect-server"),
    ):
        pass


RUN = """
import sys, time
from pathlib import Path
from flows.prefect_server import private_server
with private_server(int(sys.argv[1]), password="segcurate:abc", record=Path(sys.argv[2])):
    print("serving", flush=True)
    time.sleep(600)
"""


def test_the_server_of_a_killed_process_is_replaced_by_one_that_is_restarted_when_it_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    port, record = free_port(), tmp_path / "prefect-server"
    command = [sys.executable, "-c", RUN, str(port), str(record)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"serving\n"
        first.kill()
    orphan = record.read_text()
    assert record.stat().st_mode & 0o777 == 0o600
    assert is_running(orphan)

    with private_server(port, password="segcurate:abc", record=record) as url:
        second = record.read_text()
        assert not is_running(orphan)
        assert is_running(second)
        assert httpx.get(f"{url}/admin/version", auth=("segcurate", "abc"), timeout=60).is_success

        psutil.Process(int(second.split(":")[1])).kill()
        wait_for("another server", lambda: is_running(record.read_text()), seconds=60)
        wait_for("its answer", lambda: httpx.get(f"{url}/health").is_success, seconds=240)
        third = record.read_text()
        assert third != second
    assert not is_running(third)
    assert record.read_text() == ""


def test_sigterm_during_the_start_leaves_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    record = tmp_path / "prefect-server"
    with subprocess.Popen([sys.executable, "-c", RUN, str(free_port()), str(record)]) as starting:
        wait_for("its server", lambda: record.exists() and record.read_text(), seconds=120)
        server = record.read_text()
        assert is_running(server)
        starting.terminate()
        assert starting.wait(60) == 0
    assert not is_running(server)
    assert record.read_text() == ""


def test_an_open_server_is_not_adopted(tmp_path: Path) -> None:
    class Open(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Open)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with (
            pytest.raises(UserError, match="set PREFECT_API_URL"),
            private_server(server.server_port, password="a:b", record=tmp_path / "prefect-server"),
        ):
            pass
    finally:
        server.shutdown()
