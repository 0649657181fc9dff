"""Memory and CPU time of large photographs, from files to scores and to a queue: `make bench-large`.

Each row is one image in a project of its own, 11 classes, a network with random weights. `score` and `export`
run in one process each, on one thread; memory is the peak above what the process had after its imports. The
photographs are pieces of real pictures of scikit-image, at changing size and brightness, beside each other.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
import torch
from PIL import Image as Picture
from skimage import data as samples

from benchmarks.bench_scoring import CLASSES, peak
from pipeline.config import ModelConfig
from pipeline.data.project import load_project
from pipeline.ownership import open_database
from pipeline.steps.export import export
from pipeline.steps.score import score
from pipeline.steps.select import select
from tests.factories import make_pool

KINDS = ("jpeg", "tiled", "stripped")
STEPS = ("score", "export")
TILE = 512
"""Side of a tile of the tiled TIFF, and of a piece of the photograph."""


def main() -> None:
    """Run the benchmark and print its table."""
    arguments = _parser().parse_args()
    if arguments.step is not None:
        _report(arguments.project, arguments.step)
        return
    columns = ["file", "megapixels", "T", "regions", "step", "peak above idle, MiB", "bytes a pixel"]
    print(f"| {' | '.join([*columns, 'CPU s', 'CPU s a megapixel'])} |")
    print("|---|---|---|---|---|---|---|---|---|")
    for kind in arguments.kinds:
        for megapixels in arguments.megapixels:
            for drawn in arguments.samples:
                _measure(kind, megapixels, drawn, arguments)


def photograph(megapixels: float, *, seed: int = 0) -> npt.NDArray[np.uint8]:
    """RGB [H, W, 3] of 3:2, of pieces of real pictures."""
    height = round(math.sqrt(megapixels * 1e6 / 1.5))
    width = round(megapixels * 1e6 / height)
    generator = np.random.default_rng(seed)
    sources = [
        samples.astronaut(),
        samples.coffee(),
        samples.chelsea(),
        samples.rocket(),
        samples.immunohistochemistry(),
    ]
    made = np.empty((height, width, 3), dtype=np.uint8)
    for y in range(0, height, TILE):
        for x in range(0, width, TILE):
            source = sources[generator.integers(len(sources))]
            side = int(generator.integers(150, 300))
            top, left = (int(generator.integers(0, length - side)) for length in source.shape[:2])
            piece = Picture.fromarray(source[top : top + side, left : left + side]).resize(
                (TILE, TILE), Picture.Resampling.BICUBIC
            )
            lit = np.asarray(piece) * np.float32(generator.uniform(0.6, 1.3))
            part = made[y : y + TILE, x : x + TILE]
            part[:] = lit.clip(0, 255).astype(np.uint8)[: part.shape[0], : part.shape[1]]
    return made


def write_photograph(folder: Path, kind: str, megapixels: float) -> Path:
    """A file of the kind."""
    pixels = photograph(megapixels)
    if kind == "jpeg":
        path = folder / "photograph.jpg"
        Picture.fromarray(pixels).save(path, quality=90)
        return path
    path = folder / "photograph.tif"
    layout: dict[str, Any] = {"tile": (TILE, TILE)} if kind == "tiled" else {"rowsperstrip": 64}
    tifffile.imwrite(path, pixels, photometric="rgb", compression="zlib", **layout)
    return path


def _measure(kind: str, megapixels: float, drawn: int, arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        path = write_photograph(root, kind, megapixels)
        model = {"architecture": "fpn", "encoder": arguments.encoder, "encoder_weights": "none"}
        _, database = make_pool(
            root / "project",
            [path],
            scoring={"samples": drawn, "regions": {"kind": arguments.regions}},
            model=ModelConfig.model_validate(model),
            classes=CLASSES,
        )
        database.close()
        for step in arguments.steps:
            command = [
                sys.executable,
                "-m",
                "benchmarks.bench_large",
                "--project",
                str(root / "project"),
                "--step",
                step,
            ]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            pixels = megapixels * 1e6
            cells = [kind, f"{megapixels:g}", drawn, arguments.regions, step, f"{found['above'] / 2**20:.0f}"]
            cells += [
                f"{found['above'] / pixels:.0f}",
                f"{found['cpu']:.0f}",
                f"{found['cpu'] / megapixels:.2f}",
            ]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


def _report(root: Path, step: str) -> None:
    torch.set_num_threads(1)
    project = load_project(root / "segcurate.yaml")
    database = open_database(project)
    idle, began = peak(), time.process_time()
    if step == "score":
        report = score(project, database)
        if report.images == 0:
            sys.exit("\n".join(report.lines()))
    else:
        select(project, database)
        idle, began = peak(), time.process_time()
        export(project, database)
    print(json.dumps({"above": (peak() - idle) * 2**20, "cpu": time.process_time() - began}))
    database.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megapixels", type=float, nargs="+", default=[6, 12, 24])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["jpeg"])
    parser.add_argument("--samples", type=int, nargs="+", default=[4])
    parser.add_argument("--regions", choices=["grid", "superpixel", "segment"], default="grid")
    parser.add_argument("--encoder", default="tu-tf_efficientnet_lite0")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--project", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
