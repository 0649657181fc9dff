"""How long, and in how much memory, a queue is chosen from a million scored regions in SQLite.

    python -m benchmarks.bench_selection [--images 20834]

The rows are made up; each strategy runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from sqlalchemy import insert

from db.engine import Database
from db.tables import Image, ImageScore, Model, Queue, QueueItem, RegionScore, Round, ScoringRun, utc_now
from pipeline.acquisition.strategies import STRATEGIES
from pipeline.config import ProjectConfig, RegionConfig
from pipeline.data.project import Project
from pipeline.regions.shapes import region_boxes
from pipeline.steps.select import select

SIDES = (360, 480)
BUDGETS = (1_000, 50_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_834)
    parser.add_argument("--run", nargs=3, metavar=("FOLDER", "STRATEGY", "BUDGET"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        folder, strategy, budget = arguments.run
        print(json.dumps(_measure(Path(folder), strategy, int(budget))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        started = time.perf_counter()
        regions = _fill(folder, images=arguments.images)
        print(
            f"{regions} regions of {arguments.images} images written in {time.perf_counter() - started:.0f} s"
        )
        print("strategy            budget  chosen  seconds  CPU s  peak MiB (imports MiB)")
        for budget in BUDGETS:
            for strategy in STRATEGIES.keys() - {"coverage"}:  # it looks at the images
                command = [sys.executable, "-m", __spec__.name, "--run", name, strategy, str(budget)]
                result = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
                print(
                    f"{strategy:18} {budget:7} {result['chosen']:7} {result['seconds']:8.1f} "
                    f"{result['cpu']:6.1f} {result['peak']:9.0f} ({result['before']:.0f})"
                )


def _project(folder: Path, **selection: object) -> Project:
    config = ProjectConfig.model_validate(
        {
            "name": "benchmark",
            "data": {"images": ["images"], "classes": [f"class-{index}" for index in range(11)]},
            "selection": selection,
        }
    )
    return Project(config=config, root=folder)


def _measure(folder: Path, strategy: str, budget: int) -> dict[str, float]:
    project = _project(folder, strategy=strategy, budget=budget, min_gap=3)
    database = Database(project.database_url)
    before = _peak()
    started, cpu_started = time.perf_counter(), time.process_time()
    preview = select(project, database)
    return {
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - cpu_started,
        "peak": _peak(),
        "before": before,
        "chosen": len(preview.items),
    }


def _peak() -> float:
    """Peak resident MiB of this process (Linux). `getrusage` would count the parent's before the exec."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def _fill(folder: Path, *, images: int) -> int:
    """A store with that many scored images, a tenth of them held out, and 20 000 labeled regions."""
    rng = np.random.default_rng(0)
    height, width = SIDES
    boxes = region_boxes(RegionConfig(cell=60), width, height).tolist()
    database = Database(_project(folder).database_url)
    with database.session() as session:
        session.add(Round(id=1, number=1, state="select"))
        session.flush()
        model = Model(id=1, round_id=1, name="r01", status="promoted", checkpoint_uri="m", config={})
        model.config_hash, model.labels_hash, model.seed, model.iterations = "", "", 0, 1
        session.add(model)
        session.flush()
        session.add(ScoringRun(id=1, model_id=1, scorer_hash="", scorer={}, finished_at=utc_now()))
        session.add(Queue(id=1, name="initial", kind="initial", strategy="", unit="region", seed=0, spec={}))
        session.flush()
        session.execute(insert(Image), [_image(index, width, height) for index in range(images)])
    for start in range(0, images, 1000):
        numbers = range(start, min(images, start + 1000))
        with database.session() as session:
            session.execute(
                insert(RegionScore),
                [
                    _score(index + 1, rng) | {"region_index": cell, "x": x, "y": y, "w": w, "h": h}
                    for index in numbers
                    for cell, (x, y, w, h) in enumerate(boxes)
                ],
            )
            session.execute(
                insert(ImageScore), [_score(index + 1, rng) | {"regions": len(boxes)} for index in numbers]
            )
    with database.session() as session:
        labeled = rng.permutation(images * len(boxes))[:20_000].tolist()
        session.execute(insert(QueueItem), [_item(rank, place, boxes) for rank, place in enumerate(labeled)])
    return images * len(boxes)


def _image(index: int, width: int, height: int) -> dict[str, object]:
    return {
        "id": index + 1,
        "uri": f"images/drive-{index // 1000}/{index:07d}.png",
        "sha256": f"{index:064x}",
        "width": width,
        "height": height,
        "channels": 3,
        "group_name": f"drive-{index // 1000}",
        "position": index % 1000,
        "split": "test" if index % 10 == 0 else "pool",
    }


def _score(image_id: int, rng: np.random.Generator) -> dict[str, object]:
    u = rng.random(4).tolist()
    return {
        "run_id": 1,
        "image_id": image_id,
        "pixels": 225,
        "predicted_class": int(11 * u[0] ** 2),
        "class_share": 0.3 + 0.7 * u[1],
        "impurity": u[2],
        "least_confidence": u[3],
        "margin": u[3],
        "entropy": u[3] ** 2,
        "expected_entropy": u[3] ** 2 / 2,
        "mutual_information": u[3] ** 2 / 2,
        "energy": -5.0,
        "max_logit": -4.0,
        "entropy_top10": u[3],
    }


def _item(rank: int, place: int, boxes: list[list[int]]) -> dict[str, object]:
    image, cell = divmod(place, len(boxes))
    x, y, w, h = boxes[cell]
    item: dict[str, object] = {"image_id": image + 1, "region_index": cell, "x": x, "y": y, "w": w, "h": h}
    return item | {"queue_id": 1, "rank": rank, "slice": "initial", "reason": "", "status": "labeled"}


if __name__ == "__main__":
    main()
