"""The CPU time of a round with a frozen encoder on CamVid: its crops encoded, and windows of its maps read.

`python -m benchmarks.bench_rounds --data FOLDER --weights FILE` with FOLDER holding `train`, `trainannot` and
perhaps `val`, whose images join the pool. A round trains, calibrates, evaluates and scores, each in one
thread; user and system seconds are printed for each. The arrangements are processes of their own, in turn:
crops; windows with an empty folder of maps; windows of maps that are all there.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from db.engine import Database
from pipeline.data.project import Project, load_project
from pipeline.files import atomic_write_bytes
from pipeline.steps.calibrate import calibrate
from pipeline.steps.evaluate import evaluate
from pipeline.steps.ingest import ingest
from pipeline.steps.score import score
from pipeline.steps.train import train

CONFIG = Path(__file__).parents[1] / "configs" / "camvid.yaml"
ARRANGEMENTS = ("crops", "cold", "warm")
STEPS: dict[str, Callable[..., Any]] = {
    "train": train,
    "calibrate": calibrate,
    "evaluate": evaluate,
    "score": score,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with train and trainannot")
    parser.add_argument("--weights", type=Path, required=True, help="safetensors weights of the encoder")
    parser.add_argument("--work", type=Path, default=Path("bench/rounds"), help="folder of the runs")
    parser.add_argument("--iterations", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", choices=ARRANGEMENTS, help="run one arrangement in this process")
    parser.add_argument("--seed", type=int, default=0, help="with --only")
    given = parser.parse_args()

    if given.only is not None:
        folder = given.work / f"{given.only}-{given.seed}"
        project = prepare(folder, given)
        atomic_write_bytes(folder / "result.json", json.dumps(one_round(project)).encode())
        return
    print(f"{'':14}" + "".join(f"{name:>11}" for name in (*STEPS, "round")) + "      mIoU")
    for seed in range(given.seeds):
        for arrangement in ARRANGEMENTS:
            folder = given.work / f"{arrangement}-{seed}"
            if not (folder / "result.json").exists():
                again = [sys.executable, "-m", "benchmarks.bench_rounds", *sys.argv[1:]]
                subprocess.run(
                    [*again, "--only", arrangement, "--seed", str(seed)],
                    env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
                    check=True,
                )
            print_row(f"{arrangement}, seed {seed}", json.loads((folder / "result.json").read_text()))


def prepare(folder: Path, given: argparse.Namespace) -> Project:
    """The shipped configuration with a frozen encoder and mirroring only."""
    folder.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load(CONFIG.read_text())
    data = given.data.resolve()
    config["data"]["images"] = [str(data / name) for name in ("train", "val") if (data / name).is_dir()]
    config["data"]["masks"] = str(data / "trainannot")
    config["model"] |= {"encoder_weights": str(given.weights.resolve()), "freeze_encoder": True}
    if given.only != "crops":
        config["model"]["cache_features"] = "always"
    config["training"] |= {
        "iterations": given.iterations,
        "seed": given.seed,
        "transforms": [{"name": "HorizontalFlip", "p": 0.5}],
    }
    config["scoring"] |= {"heatmaps": {"images": "none"}, "workers": 0}
    (folder / "segcurate.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    project = load_project(folder / "segcurate.yaml")
    if given.only == "warm":  # the maps of this seed's cold round are those of the same images
        cold = given.work / f"cold-{given.seed}" / ".segcurate" / "features"
        (folder / ".segcurate").mkdir(exist_ok=True)
        (folder / ".segcurate" / "features").symlink_to(cold.resolve(), target_is_directory=True)
    return project


def one_round(project: Project) -> dict[str, Any]:
    """Seconds of CPU of each step, and the model's mIoU on the test split."""
    database = Database(project.database_url)
    print(*ingest(project, database).lines(), sep="\n", file=sys.stderr)
    seconds: dict[str, float] = {}
    document: dict[str, Any] = {"seconds": seconds}
    for name, step in STEPS.items():
        before = cpu_seconds()
        report = step(project, database)
        seconds[name] = cpu_seconds() - before
        print(*report.lines(), sep="\n", file=sys.stderr)
        if name == "evaluate":
            row = next(row for row in report.rows if row.split == "test" and row.calibrated)
            document["miou"] = row.metrics[("miou", -1)].value
            document["images"] = row.images
    database.close()
    return document


def cpu_seconds() -> float:
    """User and system time of this process and of those that it has waited for."""
    return sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def print_row(name: str, document: dict[str, Any]) -> None:
    seconds = [*document["seconds"].values(), sum(document["seconds"].values())]
    cells = "".join(f"{value:9.1f} s" for value in seconds)
    print(f"{name:14}{cells}    {document['miou']:.4f}", flush=True)


if __name__ == "__main__":
    main()
