"""A small project whose queue is ready to be exported, with awkward images and a real, untrained model."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image as PillowImage
from sqlalchemy import select

from db.tables import Image, ImageScore, Label, LabelRegion, QueueItem
from pipeline.data.images import probe_image
from pipeline.data.project import Project
from pipeline.labeling.manifest import ManifestImage, read_manifest
from pipeline.regions.shapes import region_boxes
from tests.factories import (
    Box,
    Mask,
    Workspace,
    add_model,
    fetch,
    make_project,
    new_image,
    new_item,
    new_queue,
    new_run,
    put,
    round_state,
    score_columns,
    tiny_checkpoint,
)

CLASS_IDS = (0, 7, 40)
UNPAINTED = 255
ROTATED = "日本/景色 (noon).jpg"
NAMES = {
    "left/frame 1.png": (96, 64),
    "right/frame 1.png": (96, 64),
    ROTATED: (64, 96),
    'it\'s a "quoted" näme.png': (70, 50),
    "nested/deep/a.b..c.png": (33, 129),
    "sixteen bits.tif": (64, 64),
    "tiny.png": (1, 1),
}
"""Width and height of each image as it is displayed."""


class Exported(Workspace):
    """A project at `segcurate export`, and the truth about its images."""

    truth: dict[str, Mask]
    """The class index of every pixel, by URI."""

    def images(self) -> dict[str, Image]:
        return {row.uri.removeprefix("images/"): row for row in fetch(self.database, Image)}

    def items(self, name: str | None = None) -> list[QueueItem]:
        wanted = select(QueueItem).order_by(QueueItem.rank)
        if name is not None:
            wanted = wanted.where(QueueItem.image_id == self.images()[name].id)
        return fetch(self.database, wanted)

    def labels(self) -> list[Label]:
        return fetch(self.database, select(Label).order_by(Label.id))

    def label_boxes(self, label_id: int) -> set[Box]:
        box = select(LabelRegion.x, LabelRegion.y, LabelRegion.w, LabelRegion.h)
        return set(fetch(self.database, box.where(LabelRegion.label_id == label_id)))

    def state(self) -> tuple[int, str]:
        return round_state(self.database)


def ids(mask: Mask) -> Mask:
    """Class indices as the pixel values that the project's masks have."""
    table = np.full(256, UNPAINTED, dtype=np.uint8)
    table[: len(CLASS_IDS)] = CLASS_IDS
    return table[mask]


def entries_of(folder: Path) -> dict[str, ManifestImage]:
    """The images of an exported folder's manifest, by name."""
    lines = read_manifest(folder / "manifest.jsonl")
    return {line.uri.removeprefix("images/"): line for line in lines if isinstance(line, ManifestImage)}


def write_png(path: Path, pixels: npt.NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PillowImage.fromarray(pixels).save(path)
    return path


def make_exported(root: Path) -> Exported:
    """Seven images, a promoted model, and a queue of some of their regions, in round 1."""
    generator = np.random.default_rng(0)
    truth: dict[str, Mask] = {}
    for name, (width, height) in NAMES.items():
        truth[name] = scene(generator, width=width, height=height)
        write_image(root / "images" / name, truth[name], generator)
        write_png((root / "masks" / name).with_suffix(".png"), ids(truth[name]))
    classes: dict[str, int] = dict(zip(("sky", "road", "pole"), CLASS_IDS, strict=True))
    return select_regions(root, truth, classes=classes, cell=32)


def select_regions(
    root: Path, truth: dict[str, Mask], *, classes: dict[str, int], cell: int, tile: int = 64
) -> Exported:
    """A project of the images that lie in `root`, with a promoted model and a queue of every third cell.

    Args:
        truth: the mask of each image of the folder `images`, by name.
        classes: their ids by name.
    """
    made = make_project(
        root,
        data={"masks": "masks", "classes": [{"name": name, "id": id_} for name, id_ in classes.items()]},
        scoring={"regions": {"cell": cell}, "samples": 2, "workers": 0, "tile": tile, "overlap": 16},
    )
    project, database = made
    config, folder = project.config, project.workdir / "models" / "r01"
    digest = tiny_checkpoint(folder, config.model, list(classes), std=[0.25] * 3)
    with database.session() as session:
        values: dict[str, Any] = {"checkpoint_uri": project.uri(folder), "checkpoint_sha256": digest}
        model = add_model(session, state="export", **values)
        run = put(session, new_run(model.id, finished_at=datetime.now(UTC)))
        queue = put(session, new_queue(round_id=model.round_id, run_id=run.id))
        rank = 0
        for name, mask in truth.items():
            path = root / "images" / name
            image = put(session, _image_row(project, path))
            values = score_columns(pixels=mask.size, expected_entropy=0.25, mutual_information=0.25)
            session.add(ImageScore(run_id=run.id, image_id=image.id, regions=1, **values))
            height, width = mask.shape
            boxes = region_boxes(config.scoring.regions, width, height)
            for index in range(0, len(boxes), 3):
                rank += 1
                values = {"measure": "entropy", "score": 1 / rank, "predicted_class": rank % len(classes)}
                if rank % 5 == 0:
                    values |= {"slice": "audit", "inclusion_probability": 0.25}
                values["reason"] = f'entropy {1 / rank:.2f}; "mostly" pole, a boundary'
                box = boxes[index].tolist()
                session.add(new_item(queue.id, rank, image.id, box, region_index=index, **values))
    exported = Exported(project, database)
    exported.truth = truth
    return exported


def scene(generator: np.random.Generator, *, width: int, height: int, classes: int = 3) -> Mask:
    """A horizon, a disc with a hole in it, and objects of one pixel."""
    rows, columns = np.mgrid[:height, :width]
    mask = (rows > height * 0.55).astype(np.uint8)
    distance = np.hypot(rows - height * 0.4, columns - width * 0.4)
    radius = min(width, height) * 0.35
    mask[(distance < radius) & (distance > radius * 0.5)] = 2
    specks = generator.random((height, width)) < 0.02
    mask[specks] = generator.integers(0, classes, size=int(specks.sum()), dtype=np.uint8)
    return mask


COLORS = [[120, 160, 220], [90, 90, 90], [200, 60, 40], [40, 160, 60], [200, 200, 60]]


def write_image(path: Path, mask: Mask, generator: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colors = np.array(COLORS, dtype=np.int16)[mask]
    pixels = (colors + generator.integers(-20, 20, size=colors.shape)).clip(0, 255).astype(np.uint8)
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels[:, :, 0].astype(np.uint16) * 200)
    elif path.suffix == ".jpg":
        exif = PillowImage.Exif()
        exif[274] = 6  # stored on its side: turned clockwise when it is shown
        PillowImage.fromarray(np.rot90(pixels)).save(path, exif=exif, quality=95)
    else:
        PillowImage.fromarray(pixels).save(path)


def _image_row(project: Project, path: Path) -> Image:
    info = probe_image(path, max_pixels=10**6)
    mask = (project.root / "masks" / path.relative_to(project.root / "images")).with_suffix(".png")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    known = {"width": info.width, "height": info.height, "sha256": digest, "mask_uri": project.uri(mask)}
    return new_image(project.uri(path), **known)
