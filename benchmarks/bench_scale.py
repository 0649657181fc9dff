"""How the cost of ingest, scoring and selection grows with the pool, and what a night costs in a large one.

    python -m benchmarks.bench_scale [--sizes 1000,10000,100000] [--postgresql] [--folder DIR]

Made-up images of 64 × 64 pixels, 16 regions each, and a tiny network with random weights: what is measured
is everything around the network. Each step runs in a process of its own. First the whole pool goes through
`ingest`, `score` and `select`; then 1 000 new images come, and the same three run again, as a night would.
With `--folder`, images and finished sizes are kept, and a benchmark that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from sqlalchemy import update

from db.engine import Database
from db.tables import Round
from pipeline.config import ProjectConfig
from pipeline.data.project import Project, load_project
from tests.db.private_server import empty_database, private_server

# the steps are imported where they are measured: what the others import would hide what they need

SIDE, CELL = 64, 16
FOLDER_IMAGES = 100
MASKED = 40
"""Images with a mask, whatever the size of the pool."""
NEW = 1000
STEPS = ("ingest", "score", "select")
CLASSES = 11
FLAT = 1.2


@dataclass(frozen=True)
class Cost:
    """What a step cost. `images` is what it worked on; memory in MiB, `base` that after all imports."""

    images: int
    seconds: float
    cpu: float
    peak: float
    base: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", default="1000,10000,100000")
    parser.add_argument("--postgresql", action="store_true", help="instead of SQLite")
    parser.add_argument("--folder", type=Path, help="kept; a temporary one without it")
    parser.add_argument("--json", type=Path, help="where the figures are written")
    parser.add_argument("--step", nargs=2, metavar=("STEP", "PROJECT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        step, root = arguments.step
        print(json.dumps(asdict(_measure(step, load_project(Path(root) / "segcurate.yaml")))))
        return
    sizes = [int(size) for size in arguments.sizes.split(",")]
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        backend = "postgresql" if arguments.postgresql else "sqlite"
        results = {size: _costs(folder.absolute(), size, backend) for size in sizes}
    if arguments.json:
        arguments.json.write_text(json.dumps(_document(backend, results), indent=1), encoding="utf-8")
    print(_table(backend, results))


def _costs(folder: Path, size: int, backend: str) -> dict[str, Cost]:
    """The cost of each step at a size, from the folder where it is known already."""
    known = folder / f"{backend}-{size}.json"
    if known.is_file():
        return {name: Cost(**cost) for name, cost in json.loads(known.read_text(encoding="utf-8")).items()}
    root = folder / str(size)
    shutil.rmtree(root / ".segcurate", ignore_errors=True)  # of a benchmark that was stopped
    started = time.perf_counter()
    _draw(root / "images", first=0, count=size)
    shutil.rmtree(root / "images" / "new", ignore_errors=True)
    _say(f"{size} images drawn in {time.perf_counter() - started:.0f} s")
    costs: dict[str, Cost] = {}
    with _database_url(backend) as url:
        _write_project(root, url)
        for night in ("", "night "):
            if night:
                _draw(root / "images" / "new", first=size, count=NEW)
            for step in STEPS:
                command = [sys.executable, "-m", __spec__.name, "--step", step, str(root)]
                answer = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
                costs[night + step] = cost = Cost(**json.loads(answer.splitlines()[-1]))
                _say(f"  {night}{step}: {cost.images} images, {cost.seconds:.1f} s, {cost.peak:.0f} MiB")
                if not night and step == "ingest":
                    _make_scorable(load_project(root / "segcurate.yaml"))
    known.write_text(json.dumps({name: asdict(cost) for name, cost in costs.items()}), encoding="utf-8")
    return costs


def _measure(step: str, project: Project) -> Cost:
    work = _step(step)
    base = _peak()
    database = Database(project.database_url)
    started, cpu_started = time.perf_counter(), time.process_time()
    images = work(project, database)
    return Cost(
        images=images,
        seconds=time.perf_counter() - started,
        cpu=time.process_time() - cpu_started,
        peak=_peak(),
        base=base,
    )


def _step(name: str) -> Callable[[Project, Database], int]:
    """A step that says how many images it worked on."""
    if name == "ingest":
        from pipeline.steps.ingest import ingest

        return lambda project, database: ingest(project, database).found
    if name == "score":
        from pipeline.steps.score import score

        return lambda project, database: score(project, database, any_time=True).images
    from pipeline.steps.select import select

    return lambda project, database: select(project, database).candidates // (SIDE // CELL) ** 2


def _peak() -> float:
    """Peak resident MiB of this process (Linux). `getrusage` would count the parent's before the exec."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def _draw(folder: Path, *, first: int, count: int) -> None:
    """Images of 64 coloured squares, a hundred a folder, the same ones each time; no two are equal."""
    for start in range(first, first + count, FOLDER_IMAGES):
        here = folder / f"drive-{start // FOLDER_IMAGES:05d}"
        if here.is_dir():
            continue
        unfinished = folder / f".{here.name}"
        unfinished.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(start)
        squares = rng.integers(0, 256, (min(FOLDER_IMAGES, first + count - start), 8, 8, 3), dtype=np.uint8)
        for number, colours in enumerate(squares):
            pixels: npt.NDArray[np.uint8] = np.kron(colours, np.ones((SIDE // 8, SIDE // 8, 1), np.uint8))
            path = unfinished / f"{start + number:07d}.png"
            PillowImage.fromarray(pixels).save(path, compress_level=1)
        unfinished.rename(here)


def _write_project(root: Path, url: str) -> None:
    """The configuration, and masks of a few images in as many folders as there are."""
    masks = root / "masks"
    masks.mkdir(exist_ok=True)
    folders = sorted(path for path in (root / "images").iterdir())
    for number in range(MASKED):
        image = sorted(folders[number % len(folders)].iterdir())[number // len(folders)]
        pixels = np.full((SIDE, SIDE), number % CLASSES, dtype=np.uint8)
        (masks / image.parent.name).mkdir(exist_ok=True)
        PillowImage.fromarray(pixels).save(masks / image.parent.name / image.name)
    config = ProjectConfig.model_validate(
        {
            "name": "scale",
            "device": "cpu",
            "database": {"url": url},
            "data": {
                "images": ["images"],
                "masks": "masks",
                "classes": [f"class {index}" for index in range(CLASSES)],
            },
            "splits": {"test": {"fraction": 0.1}, "calibration": {"fraction": 0.1}},
            "model": {
                "architecture": "fpn",
                "encoder": "tu-mobilenetv3_small_050",
                "encoder_weights": "none",
                "decoder": {"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32},
                "dropout": 0.5,
            },
            "scoring": {"regions": {"cell": CELL}, "batch_size": 64, "samples": 8},
            "selection": {"budget": NEW, "min_gap": 3},
        }
    )
    # JSON is YAML, too
    (root / "segcurate.yaml").write_text(config.model_dump_json(), encoding="utf-8")


def _make_scorable(project: Project) -> None:
    """Put a random model into the place of the first round's training."""
    from tests.factories import serve_random_model

    database = Database(project.database_url)
    serve_random_model(project, database)
    with database.session() as session:
        session.execute(update(Round).values(state="score"))
    database.close()


@contextmanager
def _database_url(backend: str) -> Generator[str]:
    """An empty store: beside the images, or on a private server that is gone afterwards."""
    if backend == "sqlite":
        yield "sqlite:///.segcurate/segcurate.db"
        return
    with private_server({}) as server, empty_database(server.url) as url:
        yield url


def _thousand(cost: Cost) -> float:
    """CPU seconds a thousand images."""
    return 1000 * cost.cpu / max(1, cost.images)


def _document(backend: str, results: dict[int, dict[str, Cost]]) -> dict[str, object]:
    costs = {size: {name: asdict(cost) for name, cost in costs.items()} for size, costs in results.items()}
    return {"backend": backend, "side": SIDE, "regions": (SIDE // CELL) ** 2, "costs": costs}


def _table(backend: str, results: dict[int, dict[str, Cost]]) -> str:
    """A row a step and size; the ratios are to the smallest size, and what the target says of the largest."""
    lines = [
        f"{backend}; seconds of 1 000 images; MiB; × = ratio to the smallest pool",
        f"{'step':14} {'pool':>8} {'images':>8} {'wall/k':>8} {'CPU/k':>8} {'×':>6} "
        f"{'further/k':>9} {'peak':>7} {'×':>6} {'above imports':>13}",
    ]
    sizes = sorted(results)
    for name in results[sizes[0]]:
        smallest = results[sizes[0]][name]
        for before, size in zip([None, *sizes[:-1]], sizes, strict=True):
            cost = results[size][name]
            further = ""
            if before is not None and not name.startswith("night"):
                less = results[before][name]
                further = f"{1000 * (cost.cpu - less.cpu) / max(1, cost.images - less.images):.2f}"
            lines.append(
                f"{name:14} {size:8} {cost.images:8} {1000 * cost.seconds / max(1, cost.images):8.2f} "
                f"{_thousand(cost):8.2f} {_thousand(cost) / _thousand(smallest):6.2f} {further:>9} "
                f"{cost.peak:7.0f} {cost.peak / smallest.peak:6.2f} {cost.peak - cost.base:13.0f}"
            )
        if not name.startswith("night"):
            largest = results[sizes[-1]][name]
            ratios = {
                "time": _thousand(largest) / _thousand(smallest),
                "memory": largest.peak / smallest.peak,
            }
            said = [f"{what} {'flat' if ratio <= FLAT else 'GROWS'}" for what, ratio in ratios.items()]
            lines.append(f"{name:14} {', '.join(said)}")
    return "\n".join(lines)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
