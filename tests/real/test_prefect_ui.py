"""What a person sees in Prefect's pages after a night and a retraining, in headless Chromium.

A server of its own, a project of tiny real images with hostile names, and the commands that a team runs.
`SEGCURATE_SCREENSHOTS=folder` keeps a picture of every page that is opened.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.steps.annotate import annotate
from tests.conftest import QUICK, draw, opened, write_config
from tests.real.house import running_prefect

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
    pytest.mark.timeout(900),
]

ROOT = Path(__file__).parents[2]
ODD_IMAGE = "a|b `c` [x](http:evil) & <i>.png"
CLASSES = ["ground | `x`", "<b>red</b>", "[blue](http://evil.example)"]
PATIENCE = 30_000
"""Milliseconds for which a page is waited for."""


@dataclass(frozen=True)
class Pages:
    """A Prefect server, the runs that it has seen, and a browser.

    Attributes:
        site: its newer interface.
    """

    api: str
    site: str
    project: Path
    browser: Any

    def ask(self, path: str, **wanted: Any) -> Any:
        """Of Prefect's API."""
        request = urllib.request.Request(
            f"{self.api}/{path}", json.dumps(wanted).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    def run(self, flow: str) -> Any:
        """The last run of a flow that has ended; the coming nights are runs too."""
        ended = {"state": {"type": {"any_": ["COMPLETED", "FAILED"]}}}
        flows = {"name": {"any_": [flow]}}
        return self.ask("flow_runs/filter", sort="END_TIME_DESC", flows=flows, flow_runs=ended)[0]

    def artifact(self, run: Any, key: str) -> Any:
        """What a run has shown last under a key that begins with this."""
        found = self.ask("artifacts/filter", flow_runs={"id": {"any_": [run["id"]]}}, sort="CREATED_DESC")
        return next(row for row in found if row["key"].startswith(key))

    def open(self, path: str, *, name: str, old: bool = False) -> Any:
        """A page of the newer interface, or the old one."""
        page = self.browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(PATIENCE)
        page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
        page.goto((self.site.removesuffix("/v2") if old else self.site) + path)
        with suppress(playwright.TimeoutError):
            page.wait_for_load_state("networkidle", timeout=8000)
        page.wait_for_timeout(1000)
        if folder := os.environ.get("SEGCURATE_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)
        return page


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """The API of a Prefect server on a free port."""
    quiet = {"PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false"}
    with running_prefect(tmp_path_factory.mktemp("prefect"), **quiet) as api:
        yield api


@pytest.fixture(scope="module")
def operated(server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after a night, its labels, a retraining with the next night, and a deployment."""
    folder = tmp_path_factory.mktemp("operated")
    for index in range(16):
        draw(folder / "images", folder / "masks", name=f"frame_{index:03d}.png", seed=index)
    draw(folder / "images", None, name=ODD_IMAGE, seed=99)
    (folder / "images" / "<img src=x onerror=alert(1)>.png").write_bytes(b"this is not a picture")
    settings = QUICK | {"selection": {"budget": 40, "per_image_cap": 8}}
    write_config(folder, **settings, data={"images": "images", "masks": "masks", "classes": CLASSES})
    for command in ("ingest", "train", "calibrate", "evaluate"):
        segcurate(folder, server, command)
    segcurate(folder, server, "nightly", "--prefect", code=3)  # one file is not a picture
    with opened(folder) as (project, database):
        annotate(project, database, project.path("queues/round-01"))
    segcurate(folder, server, "import", "queues/round-01")
    segcurate(folder, server, "retrain", "--force", "--prefect", code=3)
    segcurate(folder, server, "prefect", "setup")
    segcurate(folder, server, "deploy")
    return folder


@pytest.fixture(scope="module")
def pages(server: str, operated: Path) -> Generator[Pages]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield Pages(server, server.removesuffix("/api") + "/v2", operated, browser)
        browser.close()


def segcurate(folder: Path, api: str, *arguments: str, code: int = 0) -> None:
    """Run a command in the project's folder, with that server configured, and expect this exit code."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PREFECT_API_URL": api,
        "PREFECT_HOME": str(folder / "prefect"),
        "NO_ALBUMENTATIONS_UPDATE": "1",
        "DO_NOT_TRACK": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == code, f"{arguments}: {done.stdout}{done.stderr}"


def test_a_run_is_named_after_what_it_did_and_its_log_has_counts_and_rates(pages: Pages) -> None:
    run = pages.run("nightly")
    assert re.fullmatch(r"nightly \d{4}-\d\d-\d\d · model r01 · \d+ images", run["name"])
    page = pages.open(f"/runs/flow-run/{run['id']}", name="run")
    page.get_by_text(run["name"], exact=True).first.wait_for()
    page.get_by_text("Completed").first.wait_for()
    page.get_by_text(
        re.compile(r"scored \d+ images, \d+ regions, in [\d.]+ s \([\d.]+ images/s\)")
    ).first.wait_for()
    _scroll_to(page, re.compile(r"Exported [0-9]+ images to "))
    page.close()
    overview = pages.open("/runs", name="runs")
    overview.get_by_text(run["name"]).first.wait_for()
    overview.close()


def test_a_run_shows_its_artifacts_with_what_came_of_them(pages: Pages) -> None:
    run = pages.run("nightly")
    page = pages.open(f"/runs/flow-run/{run['id']}?tab=Artifacts", name="run-artifacts")
    for key in ("scoring", "queue", "round", "export"):
        page.get_by_text(re.compile(f"^{key}-squares-")).first.wait_for()
    page.get_by_text(re.compile(r"^Round 1: r01 promoted, mIoU 0\.\d{3}")).first.wait_for()
    page.get_by_text(re.compile(r"\d+ of \d+ images in [\d.]+ s, [\d.]+ images/s")).first.wait_for()
    page.close()


def test_progress_is_at_its_end(pages: Pages) -> None:
    found = pages.artifact(pages.run("nightly"), "scoring-squares-")
    page = pages.open(f"/artifacts/artifact/{found['id']}", name="progress")
    page.get_by_text("Progress: 100%").first.wait_for()
    page.close()


def test_the_queue_is_a_table_whose_cells_hold_names_as_they_are(pages: Pages) -> None:
    found = pages.artifact(pages.run("nightly"), "queue-squares-")
    page = pages.open(f"/artifacts/artifact/{found['id']}", name="queue")
    page.locator("table tbody tr").first.wait_for()
    heads = [text.strip() for text in page.locator("table thead th").all_text_contents()]
    assert heads == ["rank", "image", "box", "class", "entropy", "slice", "reason"]
    page.get_by_placeholder("Search").fill("a|b")
    page.wait_for_timeout(1500)
    cells = [
        text.replace("\u2060", "")
        for text in page.locator("table tbody tr").first.locator("td").all_text_contents()
    ]
    assert cells[1] == f"images/{ODD_IMAGE}"
    assert cells[3] in CLASSES
    assert page.locator("table tbody a, table tbody i, table tbody b, table tbody img").count() == 0
    page.close()


@pytest.mark.parametrize("old", [False, True], ids=["newer", "older"])
def test_the_round_is_a_page_with_its_learning_curve(pages: Pages, old: bool) -> None:
    found = pages.artifact(pages.run("retrain"), "round-squares-")
    page = pages.open(
        f"/artifacts/artifact/{found['id']}", name=f"round-{'older' if old else 'newer'}", old=old
    )
    page.get_by_role("heading", name="squares, round 2").wait_for()
    page.get_by_role("heading", name=re.compile("Model r02: (promoted|refused)")).wait_for()
    curve = page.locator("img[alt^='Learning curve']")
    curve.wait_for()
    assert curve.evaluate("image => image.complete && image.naturalWidth") > 600
    assert curve.evaluate("image => image.clientWidth") > 400
    box = curve.bounding_box()
    assert box is not None
    assert box["x"] + box["width"] <= 1400
    rows = page.locator("table").first.locator("tr").all_text_contents()
    assert any(re.search(r"mIoU\s*0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]", row) for row in rows), rows
    words = page.locator("body").inner_text()
    assert re.search(r" is a (softmax score|probability)[.:]", words)
    assert re.search(r"r02 is (promoted|refused)|r02 .*(promoted|refused)", words)
    assert "files could not be used" in words
    assert "<img src=x onerror=alert(1)>.png" in words
    assert page.locator("img[src='x']").count() == 0
    page.close()


def test_the_exported_folder_can_be_copied(pages: Pages) -> None:
    found = pages.artifact(pages.run("nightly"), "export-squares-")
    page = pages.open(f"/artifacts/artifact/{found['id']}", name="export")
    page.locator("code", has_text=str(pages.project / "queues" / "round-01")).first.wait_for()
    page.close()


@pytest.mark.parametrize("name", ["nightly", "retrain", "import-labels", "export-queue", "loop"])
def test_each_parameter_in_the_form_has_its_description(pages: Pages, name: str) -> None:
    (found,) = pages.ask("deployments/filter", deployments={"name": {"any_": [f"{name}-squares"]}})
    page = pages.open(f"/deployments/deployment/{found['id']}/run", name=f"form-{name}")
    page.get_by_role("heading", name="Parameters").wait_for()
    page.locator("textarea").first.wait_for()  # the fields come later than the heading
    properties = found["parameter_openapi_schema"]["properties"]
    assert "config" in properties
    words = page.locator("body").inner_text()
    for parameter, schema in properties.items():
        assert schema.get("description"), f"{parameter} has no description"
        assert parameter in words
        assert " ".join(schema["description"].split()) in " ".join(words.split())
    filled = [area.input_value() for area in page.locator("textarea").all()]
    assert str(pages.project / "segcurate.yaml") in filled
    page.close()


def test_the_schedule_is_shown_in_words(pages: Pages) -> None:
    (found,) = pages.ask("deployments/filter", deployments={"name": {"any_": ["nightly-squares"]}})
    page = pages.open(f"/deployments/deployment/{found['id']}", name="deployment")
    page.get_by_text(re.compile("At 02:00 AM")).first.wait_for()
    page.close()


def _scroll_to(page: Any, words: re.Pattern[str]) -> None:
    """Turn the wheel over a log, of which only the lines in sight are on the page, until the words are."""
    page.get_by_text(re.compile("^Beginning flow run")).first.hover()
    for _ in range(40):
        if page.get_by_text(words).count():
            return
        page.mouse.wheel(0, 300)
        page.wait_for_timeout(250)
    pytest.fail(f"the log never shows {words.pattern!r}")
