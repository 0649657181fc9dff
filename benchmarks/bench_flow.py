"""What the flow costs over the plain command for the same scoring run, with a running Prefect server.

    python -m benchmarks.bench_flow [--images 400] [--repeats 5] [--json FILE]

Plain and flow take turns, each in a process of its own, on a fresh copy of the same project: made-up images,
a tiny network with random weights, shards of 50 images. `whole` is from the start of the process to its end,
`run` from the call to its return, `idle` the same again with nothing left to score. Then the same run in one
and in two processes (`scale.workers`), and what Prefect takes for a flow of many tasks that do nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

SHARD_IMAGES = 50
TASKS = 50
SERVER_SECONDS = 180


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--run", nargs=2, metavar=("WAY", "CONFIG"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        way, config = arguments.run
        print(json.dumps(_measure(way, Path(config))))
        return
    with tempfile.TemporaryDirectory() as name, _prefect_server(Path(name)) as url:
        folder = Path(name)
        _make_project(folder / "template", images=arguments.images)
        ways = {
            "plain": ("plain", {}),
            "flow": ("flow", {"PREFECT_API_URL": url}),
            "plain, 1 process": ("plain", {"SEGCURATE_SCALE__WORKERS": "1"}),
            "plain, 2 processes": ("plain", {"SEGCURATE_SCALE__WORKERS": "2"}),
        }
        found: dict[str, list[dict[str, float]]] = {title: [] for title in ways}
        for number in range(arguments.repeats):
            for title, (way, environment) in ways.items():
                copy = folder / f"{number} {title}"
                shutil.copytree(folder / "template", copy)
                found[title].append(_run(way, copy / "segcurate.yaml", environment))
                shutil.rmtree(copy)
        tasks = [
            _run("tasks", folder / "template" / "segcurate.yaml", {"PREFECT_API_URL": url})
            for _ in range(arguments.repeats)
        ]
    figures = _summary(found, tasks)
    print(f"{arguments.images} images, {-(-arguments.images // SHARD_IMAGES)} shards, ", end="")
    print(f"{arguments.repeats} repeats, medians (fastest to slowest)\n")
    print(f"{'':20} {'whole s':>22} {'run s':>22} {'idle s':>22}")
    for title, runs in found.items():
        print(f"{title:20} " + " ".join(f"{_spread(runs, key):>22}" for key in ("whole", "run", "idle")))
    for line in _lines(figures):
        print(line)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({**figures, "runs": found, "tasks": tasks}, indent=1))


def _summary(found: dict[str, list[dict[str, float]]], tasks: list[dict[str, float]]) -> dict[str, float]:
    def median(title: str, key: str) -> float:
        return statistics.median(run[key] for run in found[title])

    over = {key: median("flow", key) - median("plain", key) for key in ("whole", "run", "idle")}
    return {
        **{f"flow_over_plain_{key}_seconds": seconds for key, seconds in over.items()},
        "flow_over_plain_whole_share": over["whole"] / median("plain", "whole"),
        "flow_over_plain_run_share": over["run"] / median("plain", "run"),
        "empty_flow_seconds": statistics.median(run["empty"] for run in tasks),
        "task_seconds": statistics.median((run["full"] - run["empty"]) / TASKS for run in tasks),
        "two_processes_over_one": median("plain, 2 processes", "run") / median("plain, 1 process", "run"),
    }


def _lines(figures: dict[str, float]) -> list[str]:
    return [
        "",
        f"The flow over the plain command: {figures['flow_over_plain_run_seconds']:+.2f} s a run "
        f"({figures['flow_over_plain_run_share']:+.1%}), imports included "
        f"{figures['flow_over_plain_whole_seconds']:+.2f} s ({figures['flow_over_plain_whole_share']:+.1%}); "
        f"with nothing to do {figures['flow_over_plain_idle_seconds']:+.2f} s.",
        f"Of that, a flow without tasks takes {figures['empty_flow_seconds']:.2f} s, and a task "
        f"{1000 * figures['task_seconds']:.0f} ms.",
        f"Two processes take {figures['two_processes_over_one']:.2f} of the time of one.",
    ]


def _spread(runs: list[dict[str, float]], key: str) -> str:
    values = [run[key] for run in runs]
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _run(way: str, config: Path, environment: dict[str, str]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.bench_flow", "--run", way, str(config)]
    began = time.perf_counter()
    found = subprocess.run(
        command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(found.stdout.splitlines()[-1]) | {"whole": time.perf_counter() - began}


def _measure(way: str, config: Path) -> dict[str, float]:
    """In the measured process."""
    if way == "tasks":
        return _tasks(config)
    score = _plain_way(config) if way == "plain" else _flow_way(config)
    seconds: list[float] = []
    images: list[int] = []
    for _ in range(2):
        began = time.perf_counter()
        images.append(score().images)
        seconds.append(time.perf_counter() - began)
    if images[0] == 0 or images[1] != 0:
        raise SystemExit(f"Expected all images and then none, but {images} were scored.")
    return {"run": seconds[0], "idle": seconds[1], "images": images[0]}


def _plain_way(config: Path) -> Any:
    from db.engine import Database
    from pipeline.data.project import load_project
    from pipeline.steps.score import score

    project = load_project(config)
    return lambda: score(project, Database(project.database_url), any_time=True)


def _flow_way(config: Path) -> Any:
    from prefect import flow

    from flows.scoring import score_pool
    from flows.tasks import opened

    @flow(persist_result=False)
    def scoring() -> Any:
        with opened(config) as (project, database):
            return score_pool(project, database, any_time=True)

    return scoring


def _tasks(config: Path) -> dict[str, float]:
    from prefect import flow

    from flows.tasks import as_task, opened

    def nothing(*_: Any) -> None:
        return

    @flow(persist_result=False)
    def of_tasks(count: int) -> None:
        with opened(config) as (project, database):
            for _ in range(count):
                as_task(nothing, project, database)

    of_tasks(1)
    found: dict[str, float] = {}
    for name, count in (("empty", 0), ("full", TASKS)):
        began = time.perf_counter()
        of_tasks(count)
        found[name] = time.perf_counter() - began
    return found


def _make_project(root: Path, *, images: int) -> None:
    from pipeline.config import ScoringConfig
    from tests.factories import draw_images, make_pool

    scoring = ScoringConfig.model_validate(
        {"samples": 8, "regions": {"kind": "grid", "cell": 32}, "shard_images": SHARD_IMAGES}
        | {"heatmaps": {"images": "top", "top": 20}}
    )
    paths = draw_images(root / "images", [(320, 240)] * images)
    project, database = make_pool(root, paths, scoring=scoring)
    database.close()
    document = project.config.model_dump(mode="json")
    document["data"]["images"] = ["images"]
    (root / "segcurate.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")


@contextmanager
def _prefect_server(folder: Path) -> Generator[str]:
    """A server with a database of its own, and its API's URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = {"PREFECT_HOME": str(folder / "prefect"), "PREFECT_LOGGING_SERVER_LEVEL": "WARNING"}
    home |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    os.environ.update(
        home | {"PREFECT_SERVER_EPHEMERAL_ENABLED": "false", "PREFECT_LOGGING_LEVEL": "WARNING"}
    )
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}/api"
            _wait_for(f"{url}/health", server)
            yield url
        finally:
            server.terminate()
            server.wait()


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    give_up_at = time.monotonic() + SERVER_SECONDS
    while time.monotonic() < give_up_at and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("The Prefect server does not answer.")


if __name__ == "__main__":
    main()
