"""CamVid, half resolution: two rounds from 10 % of the regions. Prints honest figures, claims nothing.

`python -m benchmarks.bench_camvid --data FOLDER --weights FILE` with FOLDER holding `train` and
`trainannot`. It can be killed and run again with the same `--work`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from itertools import pairwise
from pathlib import Path

from db.engine import Database
from db.queries import models
from pipeline.data.project import Project, load_project
from pipeline.operation.played_labels import play_rounds
from pipeline.operation.runner import Runner
from pipeline.steps.ingest import ingest
from pipeline.summaries.rounds import round_history

CONFIG = Path(__file__).parents[1] / "configs" / "camvid.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with train and trainannot")
    parser.add_argument("--weights", type=Path, required=True, help="safetensors weights of the encoder")
    parser.add_argument("--work", type=Path, default=Path("bench/camvid"), help="folder of the run")
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()

    project = prepare(given.work, data=given.data, weights=given.weights)
    database = Database(project.database_url)
    for line in ingest(project, database).lines():
        print(line)
    begun: list[tuple[str, float]] = []

    def log(line: str) -> None:
        begun.append((line, time.perf_counter()))
        print(line, flush=True)

    play_rounds(Runner(project, database, log=log), rounds=given.rounds)
    log("end")
    seconds = [(line, end - start) for (line, start), (_, end) in pairwise(begun)]
    report(project, database, seconds)
    database.close()


def prepare(work: Path, *, data: Path, weights: Path) -> Project:
    """A project folder with the shipped configuration and a link to the data."""
    work.mkdir(parents=True, exist_ok=True)
    shutil.copy(CONFIG, work / "segcurate.yaml")
    link = work / "camvid"
    if not link.exists():
        link.symlink_to(data.resolve(), target_is_directory=True)
    os.environ["SEGCURATE_MODEL__ENCODER_WEIGHTS"] = str(weights.resolve())
    return load_project(work / "segcurate.yaml")


def report(project: Project, database: Database, seconds: list[tuple[str, float]]) -> None:
    with database.session(write=False) as session:
        config = project.config
        rounds = round_history(session, sampler=config.scoring.sampler, class_names=config.data.class_names)
        promoted = models.promoted_model(session)
    print("round  labels  share  mIoU, ECE before, ECE after, AUROC of error detection")
    for row in rounds:
        if row.model is None:
            continue
        figures = (row.mean_iou, row.ece_before, row.ece_after, row.error_auroc)
        cells = "  ".join(figure.text(digits=4) for figure in figures)
        print(f"{row.number:5d}  {row.labeled_regions:6d}  {row.labeled_share:.3f}  {cells}")
    print("promoted:", promoted.name if promoted else "none")
    for line, elapsed in seconds:
        print(f"{line}: {elapsed:.1f} s")


if __name__ == "__main__":
    main()
