"""Every calibrator of trained projects, fitted on what one should fit on and on what one should not.

    python -m benchmarks.bench_calibration --project FOLDER [FOLDER …] [--clip IMAGES MASKS]

Each calibrator is fitted on the whole calibration split, on random regions of it as an audit slice draws them
(here they are held out; a real audit slice lies in the pool), on images that the model was trained on, and,
with `--clip`, on one further clip; and evaluated on the test split, with intervals over blocks of its frames.
What was found for a project is kept in `--work`, and not measured again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from db.engine import Database
from db.queries import images as image_queries
from db.queries import models
from db.tables import Model
from pipeline.calibration.calibrators import KINDS, Calibrator, Calibrators
from pipeline.calibration.comparison import evaluate_calibrator, fit_calibrator
from pipeline.calibration.fit import Pixels
from pipeline.config import IGNORE, Sampler
from pipeline.data.image_info import ImageRef
from pipeline.data.images import probe_image
from pipeline.data.large_images import chosen
from pipeline.data.masks import Mask, MaskCodec
from pipeline.data.project import Project, load_project
from pipeline.files import atomic_write_bytes
from pipeline.progress import silent
from pipeline.regions.shapes import region_boxes
from pipeline.steps.held_out import held_out_images
from pipeline.studies.held_out import HeldOut, HeldOutImages, runs_of
from pipeline.uncertainty.drawn_pixels import DrawnPixels, draw_pixels, pixels_of
from pipeline.uncertainty.served_model import open_model

SAMPLERS: tuple[Sampler, ...] = ("none", "mc_dropout")
AUDIT_SHARE = 0.1
PIXELS = 1000
"""Drawn from each image."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--project", type=Path, action="extend", nargs="+", required=True)
    parser.add_argument("--clip", type=Path, nargs=2, metavar=("IMAGES", "MASKS"))
    parser.add_argument("--images", type=int, default=60, help="most images of the training set and the clip")
    parser.add_argument("--work", type=Path, default=Path("bench/calibration"), help="folder of the results")
    given = parser.parse_args()
    found: list[list[dict[str, Any]]] = []
    for folder in given.project:
        stored = given.work / f"{folder.resolve().name}.json"
        if not stored.exists():
            started = time.perf_counter()
            given.work.mkdir(parents=True, exist_ok=True)
            rows = measure(load_project(folder / "segcurate.yaml"), given.clip, given.images)
            atomic_write_bytes(stored, json.dumps(rows, indent=1).encode())
            print(f"{folder}: {time.perf_counter() - started:.0f} s")
        found.append(json.loads(stored.read_text()))
    _print(found)


@dataclass(frozen=True)
class SomeRegions(HeldOut):
    """An image of which only some boxes (x, y, w, h) are labeled."""

    boxes: tuple[tuple[int, int, int, int], ...]

    def label(self, codec: MaskCodec) -> Mask:
        whole = super().label(codec)
        label = np.full_like(whole, IGNORE)
        for x, y, w, h in self.boxes:
            label[y : y + h, x : x + w] = whole[y : y + h, x : x + w]
        return label


def measure(project: Project, clip: tuple[Path, Path] | None, most: int) -> list[dict[str, Any]]:
    """Rows of sampler, source and calibrator with their comparison on the test split."""
    database = Database(project.database_url)
    with database.session(write=False) as session:
        model = models.list_models(session)[-1]
        seen = {label.image_id for label in models.model_labels(session, model.id)}
        test, calibration = (held_out_images(session, project, split) for split in ("test", "calibration"))
        trained = [
            HeldOut(
                ref=project.ref(row),
                mask=project.path(row.mask_uri),
                group=row.group_name,
                position=row.position,
            )
            for row in image_queries.images_by_id(session, sorted(seen))
            if row.mask_uri is not None
        ]
    database.close()
    if not trained:
        raise SystemExit(f"{project.root}: the model has seen no image with a mask of `data.masks`.")
    sources: dict[str, Sequence[HeldOut]] = {
        "calibration split": calibration,
        "audit slice": _audit(project, calibration),
        "training set": trained[:: -(-len(trained) // most)],
    }
    if clip is not None:
        sources["clip"] = _clip(project, *clip, most=most)
    rows: list[dict[str, Any]] = []
    for sampler in SAMPLERS:
        evaluated = _draw(project, model, test, sampler)
        rows.append(_row(project, sampler, "", fit_calibrator("identity", evaluated), evaluated, test))
        for source, images in sources.items():
            pixels = _draw(project, model, images, sampler)
            for name in KINDS:
                if name != "identity":
                    rows.append(_row(project, sampler, source, fit_calibrator(name, pixels), evaluated, test))
    return rows


def _draw(project: Project, model: Model, images: Sequence[HeldOut], sampler: Sampler) -> Pixels:
    """Pixels of the images, which are rows in their order."""
    served = open_model(project, model.checkpoint_uri, calibrators=Calibrators(), sampler=sampler)
    row_of = {item.ref.id: row for row, item in enumerate(images)}
    drawn: dict[int, DrawnPixels] = {}
    held_out = HeldOutImages(project, images)
    for batch in held_out.read(served, title="", progress=silent):
        for place, image_id in enumerate(batch.ids):
            drawn[row_of[image_id]] = draw_pixels(
                served.predictor,
                chosen(batch.images, [place]),
                batch.label[place],
                pixels=PIXELS,
                generator=np.random.default_rng([0, image_id]),
            )
    for file, reason in held_out.failed:
        raise SystemExit(f"{file}: {reason}")
    return pixels_of([drawn[row] for row in sorted(drawn)], sampled=sampler != "none")


def _row(
    project: Project,
    sampler: str,
    source: str,
    calibrator: Calibrator,
    evaluated: Pixels,
    images: Sequence[HeldOut],
) -> dict[str, Any]:
    config = project.config.evaluation
    found = evaluate_calibrator(
        calibrator,
        evaluated,
        runs_of(project, images),
        config,
        seed=0,
    )
    return {"sampler": sampler, "source": source, **found.document()}


def _audit(project: Project, images: Sequence[HeldOut]) -> list[HeldOut]:
    """A tenth of the grid's regions, drawn at random, of images that are held out."""
    generator = np.random.default_rng(0)
    regions = project.config.scoring.regions
    audited: list[HeldOut] = []
    for item in images:
        boxes = region_boxes(regions, width=item.ref.width, height=item.ref.height)
        chosen = boxes[generator.random(len(boxes)) < AUDIT_SHARE]
        if len(chosen):
            drawn = tuple((int(x), int(y), int(w), int(h)) for x, y, w, h in chosen)
            audited.append(
                SomeRegions(
                    ref=item.ref, mask=item.mask, group=item.group, position=item.position, boxes=drawn
                )
            )
    return audited


def _clip(project: Project, images: Path, masks: Path, *, most: int) -> list[HeldOut]:
    """Images of a folder that the project does not know, evenly spaced."""
    paths = sorted(images.glob("*.png"))
    found: list[HeldOut] = []
    for index, path in enumerate(paths[:: -(-len(paths) // most)]):
        info = probe_image(path, max_pixels=project.config.data.max_pixels)
        ref = ImageRef(id=index, path=path, width=info.width, height=info.height)
        found.append(HeldOut(ref=ref, mask=masks / path.name, group="clip", position=index))
    return found


def _print(found: list[list[dict[str, Any]]]) -> None:
    """Means over projects, of the ends of the intervals too."""
    print(f"{'sampler':11} {'fitted on':18} {'calibrator':22} {'NLL':>22} {'ECE':>22} {'labels changed':>15}")
    for rows in zip(*found, strict=True):
        first = rows[0]
        cells = [
            f"{np.mean([row[metric]['value'] for row in rows]):.4f} "
            f"[{np.mean([row[metric]['low'] for row in rows]):.3f}, "
            f"{np.mean([row[metric]['high'] for row in rows]):.3f}]"
            for metric in ("nll", "ece")
        ]
        changed = np.mean([row["labels_changed"] for row in rows])
        print(
            f"{first['sampler']:11} {first['source']:18} {first['name']:22} {cells[0]:>22} {cells[1]:>22} "
            f"{changed:15.2%}"
        )
    print(f"Means over {len(found)} projects; in brackets, of the ends of the 95 % intervals over blocks.")


if __name__ == "__main__":
    main()
