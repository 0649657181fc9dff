"""A Label Studio server of its own, on loopback, with one user who has a token."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.real.house import free_port, wait_for

EMAIL, PASSWORD, TOKEN = "admin@example.org", "one-two-three-4", "0123456789abcdef0123456789abcdef01234567"


def executable() -> str | None:
    """Label Studio's command: it must live in an environment of its own."""
    named = os.environ.get("SEGCURATE_LABEL_STUDIO")
    beside = Path(__file__).parents[2] / ".venv-label-studio" / "bin" / "label-studio"
    return shutil.which(named or str(beside))


@dataclass(frozen=True)
class RunningLabelStudio:
    """Where the server answers, and what below is on its disk that it may show."""

    url: str
    document_root: Path
    client: httpx.Client

    def get(self, path: str, **params: Any) -> Any:
        answer = self.client.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: Any) -> Any:
        answer = self.client.post(path, json=body)
        assert answer.status_code in (200, 201), answer.text
        return answer.json()

    def patch(self, path: str, body: Any) -> Any:
        answer = self.client.patch(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def tasks(self, project: str) -> list[dict[str, Any]]:
        """The project's tasks with all that belongs to them, as the data manager orders them."""
        return self.get("/api/tasks/", project=project, page_size=1000, fields="all")["tasks"]


@contextmanager
def label_studio(command: str, folder: Path) -> Generator[RunningLabelStudio]:
    """Start a server with its data in a folder. The first start takes one or two minutes."""
    port = free_port()
    root = folder / "shown"
    root.mkdir()
    environment = {
        **os.environ,
        "HOME": str(folder),
        "COLLECT_ANALYTICS": "false",
        "LOCAL_FILES_SERVING_ENABLED": "true",
        "LOCAL_FILES_DOCUMENT_ROOT": str(root),
        "LATEST_VERSION_CHECK": "false",
        "DJANGO_SUPERUSER_PASSWORD": "",
    }
    arguments = ["start", "--no-browser", "--port", str(port), "--data-dir", str(folder / "data")]
    arguments += ["--username", EMAIL, "--password", PASSWORD, "--user-token", TOKEN]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [command, *arguments, "--enable-legacy-api-token"],
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            wait_for("Label Studio", lambda: _is_up(url, process), seconds=400)
            headers = {"Authorization": f"Token {TOKEN}"}
            with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
                yield RunningLabelStudio(url=url, document_root=root, client=client)
        finally:
            process.terminate()
            process.wait(30)


def _is_up(url: str, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "Label Studio has ended"
    return httpx.get(f"{url}/health", timeout=5).status_code == 200
