"""Alerts of a real Prefect server, received by a webhook: `make test-prefect`."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.prefect_server import SERVER_SETTINGS
from tests.real.house import BIN, running_prefect, wait_for
from tests.test_operations_guide import block

WAIT = 90


@pytest.fixture
def webhook() -> Generator[tuple[str, list[dict[str, Any]]]]:
    """The address of a webhook, and the messages that it has received."""
    received: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"json://127.0.0.1:{server.server_port}/segcurate", received
    server.shutdown()


def settings_of_the_guide() -> dict[str, str]:
    """What the guide's block for a team's Prefect server exports."""
    exported = block("sh", "# the Prefect server")
    printed = subprocess.run(
        ["sh", "-euc", f"{exported}env"],
        env={"PATH": os.environ["PATH"]},
        check=True,
        capture_output=True,
        text=True,
    )
    lines = (line.partition("=") for line in printed.stdout.splitlines())
    return {name: value for name, _, value in lines if name.startswith("PREFECT_SERVER_")}


def test_runs_that_go_wrong_send_an_alert_and_others_do_not(
    tmp_path: Path, webhook: tuple[str, list[dict[str, Any]]]
) -> None:
    address, received = webhook
    settings = settings_of_the_guide()
    # not here: Prefect needs the extension pg_trgm, which the tests' PostgreSQL lacks
    assert settings.pop("PREFECT_SERVER_DATABASE_CONNECTION_URL").startswith("postgresql+asyncpg://")
    assert settings == SERVER_SETTINGS
    with (
        running_prefect(tmp_path, **settings) as api,
        httpx.Client(base_url=f"{api}/", timeout=60) as client,
    ):

        def answer(path: str, document: dict[str, Any]) -> httpx.Response | None:
            response = client.post(path, json=document)
            return None if response.status_code == 503 else response  # SQLite is locked

        def ask(path: str, **document: Any) -> Any:
            response = wait_for("an answer", lambda: answer(path, document), seconds=WAIT)
            return response.raise_for_status().json()

        def end(type: str, name: str, *, tags: tuple[str, ...] = ("segcurate",)) -> None:
            run = ask("flow_runs/", flow_id=flow, name=f"run {name}", tags=tags, state={"type": "RUNNING"})
            state = {"type": type, "name": name, "message": f"why {name}"}
            ask(f"flow_runs/{run['id']}/set_state", state=state, force=True)

        def command(to: str) -> subprocess.CompletedProcess[str]:
            environment = os.environ | {"PREFECT_API_URL": api, "PREFECT_HOME": str(tmp_path)}
            environment |= {
                "PATH": f"{BIN}:{os.environ['PATH']}",
                "SEGCURATE_ALERTS_TO": to,
                "COLUMNS": "200",
            }
            words = ["sh", "-euc", block("sh", "# alerts")]
            return subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True)

        refused = command("carrier-pigeon")
        assert refused.returncode == 1
        assert "The address of alerts is none that Apprise knows." in refused.stdout + refused.stderr
        assert "Traceback" not in refused.stdout + refused.stderr
        assert ask("automations/filter") == []
        for _ in range(2):  # the second time changes nothing
            done = command(address)
            assert done.returncode == 0, done.stdout + done.stderr
        assert len(ask("automations/filter")) == 1
        flow = ask("flows/", name="nightly")["id"]

        end("COMPLETED", "Completed")
        end("COMPLETED", "Skipped")
        end("FAILED", "Failed", tags=())
        for type, name in (
            ("FAILED", "Failed"),
            ("CRASHED", "Crashed"),
            ("FAILED", "TimedOut"),
            ("COMPLETED", "Completed with warnings"),
        ):
            end(type, name)

        wait_for("four alerts", lambda: len(received) >= 4, seconds=WAIT)
        titles = sorted(message["title"] for message in received)
        assert titles == [
            f"segcurate: nightly: {name}"
            for name in ("Completed with warnings", "Crashed", "Failed", "TimedOut")
        ]
        for message in received:
            name = message["title"].removeprefix("segcurate: nightly: ")
            assert f"run {name} segcurate\nwhy {name}\n" in message["message"]
