"""What each training option does to accuracy, calibration and the ranking of errors, on CamVid.

`python -m benchmarks.bench_training_options --data FOLDER --weights FILE` with FOLDER holding `train`
and `trainannot`. Every option is trained alike: half resolution, frozen encoder, every pool image labeled,
the same blocks of frames held out. It can be killed and run again with the same `--work`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from db.engine import Database
from db.queries import models
from db.tables import Model
from pipeline.calibration.calibrators import Calibrators, Temperature
from pipeline.calibration.fit import fit_temperature
from pipeline.config import Measure
from pipeline.data.large_images import chosen
from pipeline.data.project import Project, load_project
from pipeline.evaluation.bootstrap import BlockBootstrap
from pipeline.evaluation.estimate import Estimate
from pipeline.evaluation.measure_bins import MeasureBins
from pipeline.evaluation.metrics import residuals, summarise
from pipeline.evaluation.statistics import Statistics, image_statistics, merge, stack
from pipeline.files import atomic_write_bytes
from pipeline.progress import silent
from pipeline.steps.held_out import held_out_images
from pipeline.steps.ingest import ingest
from pipeline.steps.train import train
from pipeline.studies.held_out import HeldOutImages, LabeledBatch
from pipeline.studies.measurement import joined
from pipeline.uncertainty.drawn_pixels import draw_pixels, pixels_of
from pipeline.uncertainty.served_model import ServedModel, open_model

CONFIG = Path(__file__).parents[1] / "configs" / "camvid.yaml"
OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "label smoothing 0.05": {"loss": {"label_smoothing": 0.05}},
    "focal 2": {"loss": {"focal_gamma": 2.0}},
    "mixup 0.2": {"mix": "mixup", "mix_alpha": 0.2},
    "cutmix 1.0": {"mix": "cutmix", "mix_alpha": 1.0},
}
MEASURES: tuple[Measure, ...] = ("entropy", "max_logit", "max_logit_norm")
COLUMNS = {
    "mIoU": "miou",
    "NLL": "nll",
    "NLL cal.": "nll calibrated",
    "ECE": "ece",
    "ECE cal.": "ece calibrated",
    "AUROC entropy": "auroc_entropy",
    "AUROC max logit": "auroc_max_logit",
    "AUROC max logit norm": "auroc_max_logit_norm",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with train and trainannot")
    parser.add_argument("--weights", type=Path, required=True, help="safetensors weights of the encoder")
    parser.add_argument(
        "--work", type=Path, default=Path("bench/training-options"), help="folder of the runs"
    )
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=list(OPTIONS), default=list(OPTIONS))
    given = parser.parse_args()

    for seed in range(given.seeds):
        for option in given.only:
            folder = given.work / f"{option.replace(' ', '-')}-{given.iterations}-{seed}"
            if not (folder / "result.json").exists():
                started = time.perf_counter()
                project = prepare(
                    folder,
                    data=given.data,
                    weights=given.weights,
                    iterations=given.iterations,
                    seed=seed,
                    option=OPTIONS[option],
                )
                document = measure(project)
                document["seconds"] = round(time.perf_counter() - started, 1)
                atomic_write_bytes(folder / "result.json", json.dumps(document).encode())
            print_row(option, seed, json.loads((folder / "result.json").read_text()))


def prepare(
    folder: Path, *, data: Path, weights: Path, iterations: int, seed: int, option: dict[str, Any]
) -> Project:
    """The shipped configuration with every label, a frozen encoder, and one option."""
    folder.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load(CONFIG.read_text())
    config["data"]["images"] = [str((data / "train").resolve())]
    config["data"]["masks"] = str((data / "trainannot").resolve())
    config["splits"]["initial"] = {}
    config["model"] |= {"encoder_weights": str(weights.resolve()), "freeze_encoder": True}
    config["training"] |= {"iterations": iterations, "seed": seed, **option}
    config["scoring"] |= {"sampler": "none", "workers": 0}
    (folder / "segcurate.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return load_project(folder / "segcurate.yaml")


def measure(project: Project) -> dict[str, Any]:
    """Train, fit a temperature on the calibration split, and measure on the test split."""
    database = Database(project.database_url)
    ingest(project, database)
    with database.session(write=False) as session:
        trained = [row for row in models.list_models(session) if row.status == "trained"]
    model = trained[0] if trained else train(project, database).model
    with database.session(write=False) as session:
        calibration, test = (
            HeldOutImages(project, held_out_images(session, project, split))
            for split in ("calibration", "test")
        )
    database.close()
    temperature = fit(project, model, calibration)
    calibrators = Calibrators(deterministic=Temperature(temperature))
    served = open_model(project, model.checkpoint_uri, calibrators=calibrators)
    before, after = evaluate(project, served, test)
    figures = {name: asdict(before[(name, -1)]) for name in COLUMNS.values() if (name, -1) in before}
    figures |= {f"{name} calibrated": asdict(after[(name, -1)]) for name in ("ece", "nll")}
    return {"temperature": temperature, "images": len(test), "figures": figures}


def fit(project: Project, model: Model, images: HeldOutImages) -> float:
    served = open_model(project, model.checkpoint_uri, calibrators=Calibrators())
    generator = np.random.default_rng(0)
    drawn = [
        draw_pixels(
            served.predictor,
            chosen(batch.images, [row]),
            batch.label[row],
            pixels=project.config.calibration.pixels_per_image,
            generator=generator,
        )
        for batch in batches(served, images)
        for row in range(len(batch.ids))
    ]
    return fit_temperature(pixels_of(drawn, sampled=False))


def evaluate(
    project: Project, served: ServedModel, images: HeldOutImages
) -> list[dict[tuple[str, int], Estimate]]:
    """Every metric over independent units of the test frames, before and after calibration."""
    config = project.config.evaluation
    predictor = served.predictor
    bins = {name: MeasureBins.of(name) for name in MEASURES}
    sums: tuple[dict[int, Statistics], dict[int, Statistics]] = ({}, {})
    for batch in batches(served, images):
        predictions = predictor.predict_each(batch.images, [Calibrators(), predictor.calibrators])
        for prediction, by_run in zip(predictions, sums, strict=True):
            maps = prediction.measures()
            planes = torch.cat(
                [prediction.probability, *(maps[name][:, None] for name in MEASURES)],
                dim=1,
            )
            large = prediction.at(planes, batch.size)
            for row, image_id in enumerate(batch.ids):
                probability, measured = large[row, : -len(MEASURES)], large[row, -len(MEASURES) :]
                record = image_statistics(
                    probability,
                    batch.label[row],
                    {name: measured[place] for place, name in enumerate(MEASURES)},
                    bins=bins,
                    class_bins=config.bins,
                )
                run = images.run_of[image_id]
                by_run[run] = merge(by_run[run], record) if run in by_run else record
    used = sorted(sums[0])
    before, after = ([by_run[run] for run in used] for by_run in sums)
    unit = images.runs.units(residuals(stack(after)), used)
    bootstrap = BlockBootstrap.draw(int(unit.max()) + 1, config, seed=0)
    return [
        summarise(joined(records, unit), bins=config.bins, bootstrap=bootstrap) for records in (before, after)
    ]


def batches(served: ServedModel, images: HeldOutImages) -> Iterator[LabeledBatch]:
    yield from images.read(served, title="", progress=silent)
    for file, reason in images.failed:
        raise SystemExit(f"{file}: {reason}")


def print_row(option: str, seed: int, document: dict[str, Any]) -> None:
    print(
        f"\n{option}, seed {seed}: τ {document['temperature']:.3f}, {document['seconds']:.0f} s", flush=True
    )
    for title, name in COLUMNS.items():
        figure = document["figures"][name]
        print(f"  {title:22} {figure['value']:.4f} [{figure['low']:.4f}, {figure['high']:.4f}]", flush=True)


if __name__ == "__main__":
    main()
