"""CamVid, half resolution: does selecting beat drawing at random? Hours; it goes on where it was killed.

`python -m benchmarks.bench_simulate --data FOLDER --weights FILE` with FOLDER holding `train` and
`trainannot`. `--quick` trains the decoder of a frozen encoder for 200 iterations, and scores with 4 samples:
hours instead of days.
"""

from __future__ import annotations

import argparse
import os
from contextlib import closing
from pathlib import Path

from benchmarks.bench_camvid import prepare
from pipeline.operation.runner import Runner
from pipeline.operation.simulate import run_simulate
from pipeline.ownership import open_database
from pipeline.progress import LoggedProgress
from pipeline.steps.ingest import ingest

QUICK = {
    "SEGCURATE_MODEL__FREEZE_ENCODER": "true",
    "SEGCURATE_MODEL__CACHE_FEATURES": "always",
    "SEGCURATE_TRAINING__ITERATIONS": "200",
    "SEGCURATE_TRAINING__TRANSFORMS": '[{"name": "HorizontalFlip", "p": 0.5}]',
    "SEGCURATE_SCORING__SAMPLES": "4",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with train and trainannot")
    parser.add_argument("--weights", type=Path, required=True, help="safetensors weights of the encoder")
    parser.add_argument("--work", type=Path, default=Path("bench/simulate"), help="folder of the run")
    parser.add_argument("--strategies", default="stratified,random,class_random,strided")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--budgets", default="1%,2%,4%,8%")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--reference", action="store_true", help="also train on all labels, once a seed")
    parser.add_argument("--cold-start", default="random", help="ways to choose the first labels")
    parser.add_argument("--quick", action="store_true", help="a frozen encoder, 200 iterations, 4 samples")
    given = parser.parse_args()
    if given.quick:
        os.environ |= QUICK

    project = prepare(given.work, data=given.data, weights=given.weights)
    with closing(open_database(project)) as database:
        print(*ingest(project, database).lines(), sep="\n")
        summary = run_simulate(
            Runner(project, database, log=print, progress=LoggedProgress(print)),
            strategies=given.strategies,
            seeds=given.seeds,
            budgets=given.budgets,
            workers=given.workers,
            reference=given.reference,
            cold_start=given.cold_start,
        )
    (given.work / "simulation.csv").write_text(summary.csv(), encoding="utf-8")
    print(*summary.lines(), sep="\n")


if __name__ == "__main__":
    main()
