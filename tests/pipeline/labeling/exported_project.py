"""A small project whose queue is ready to be exported, with awkward images and a real, untrained model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
import torch
from PIL import Image as PillowImage
from sqlalchemy import select

from db.engine import Database
from db.queries import rounds
from db.tables import Image, ImageScore, Label, LabelRegion, Model, Queue, QueueItem, Round, ScoringRun
from pipeline.config import ProjectConfig
from pipeline.data.images import probe_image
from pipeline.data.project import Project
from pipeline.model.build import build_segmenter
from pipeline.model.checkpoints import ModelCard, save_model
from pipeline.model.segmenter import Segmenter
from pipeline.regions.shapes import region_boxes

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


@dataclass
class Exported:
    """A project at `segcurate export`, and the truth about its images."""

    project: Project
    database: Database
    truth: dict[str, npt.NDArray[np.uint8]]
    """The class index of every pixel, by URI."""

    def configured(self, **sections: Any) -> Project:
        """The project with other settings in some sections."""
        document = self.project.config.model_dump()
        for section, changes in sections.items():
            document[section].update(changes)
        return Project(config=ProjectConfig(**document), root=self.project.root)

    def images(self) -> dict[str, Image]:
        with self.database.session(write=False) as session:
            return {row.uri.removeprefix("images/"): row for row in session.scalars(select(Image))}

    def items(self, name: str | None = None) -> list[QueueItem]:
        wanted = select(QueueItem).order_by(QueueItem.rank)
        if name is not None:
            wanted = wanted.where(QueueItem.image_id == self.images()[name].id)
        with self.database.session(write=False) as session:
            return list(session.scalars(wanted))

    def labels(self) -> list[Label]:
        with self.database.session(write=False) as session:
            return list(session.scalars(select(Label).order_by(Label.id)))

    def label_boxes(self, label_id: int) -> set[tuple[int, int, int, int]]:
        with self.database.session(write=False) as session:
            rows = session.scalars(select(LabelRegion).where(LabelRegion.label_id == label_id))
            return {(row.x, row.y, row.w, row.h) for row in rows}

    def state(self) -> tuple[int, str]:
        with self.database.session(write=False) as session:
            current = rounds.current_round(session)
        return (0, "") if current is None else (current.number, current.state)


def ids(mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Class indices as the pixel values that the project's masks have."""
    table = np.full(256, UNPAINTED, dtype=np.uint8)
    table[: len(CLASS_IDS)] = CLASS_IDS
    return table[mask]


def write_png(path: Path, pixels: npt.NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PillowImage.fromarray(pixels).save(path)
    return path


def make_project(root: Path) -> Exported:
    """Seven images, a promoted model, and a queue of some of their regions, in round 1."""
    generator = np.random.default_rng(0)
    truth: dict[str, npt.NDArray[np.uint8]] = {}
    for name, (width, height) in NAMES.items():
        truth[name] = _scene(generator, width=width, height=height)
        _write_image(root / "images" / name, truth[name], generator)
        write_png((root / "masks" / name).with_suffix(".png"), ids(truth[name]))
    classes: dict[str, int] = dict(zip(("sky", "road", "pole"), CLASS_IDS, strict=True))
    return select_regions(root, truth, classes=classes, cell=32)


def select_regions(
    root: Path, truth: dict[str, npt.NDArray[np.uint8]], *, classes: dict[str, int], cell: int
) -> Exported:
    """A project of the images that lie in `root`, with a promoted model and a queue of every third cell.

    Args:
        truth: the mask of each image of the folder `images`, by name.
        classes: their ids by name.
    """
    config = ProjectConfig(
        name="test",
        device="cpu",
        data={  # pyright: ignore[reportArgumentType]
            "images": ["images"],
            "masks": "masks",
            "classes": [{"name": name, "id": id_} for name, id_ in classes.items()],
        },
        scoring={"regions": {"cell": cell}, "samples": 2, "workers": 0, "tile": 64, "overlap": 16},  # pyright: ignore[reportArgumentType]
    )
    project = Project(config=config, root=root)
    segmenter, card = _model(tuple(classes))
    digest = save_model(project.workdir / "models" / "r01", segmenter, card)
    database = Database(project.database_url)
    with database.session() as session:
        current = Round(number=1, state="export")
        session.add(current)
        session.flush()
        model = Model(
            round_id=current.id,
            name="r01",
            status="promoted",
            checkpoint_uri=project.uri(project.workdir / "models" / "r01"),
            checkpoint_sha256=digest,
            config={},
            config_hash="0" * 64,
            labels_hash="0" * 64,
            seed=0,
            iterations=0,
        )
        session.add(model)
        session.flush()
        run = ScoringRun(model_id=model.id, scorer_hash="0" * 64, scorer={}, finished_at=datetime.now(UTC))
        session.add(run)
        session.flush()
        queue = Queue(
            round_id=current.id,
            name="round-01",
            kind="selected",
            run_id=run.id,
            strategy="entropy",
            unit="region",
            seed=0,
            spec={},
        )
        session.add(queue)
        session.flush()
        rank = 0
        for name, mask in truth.items():
            height, width = mask.shape
            image = _image_row(project, root / "images" / name)
            session.add(image)
            session.flush()
            session.add(_image_score(run.id, image))
            boxes = region_boxes(config.scoring.regions, width, height)
            for index in range(0, len(boxes), 3):
                rank += 1
                x, y, w, h = boxes[index].tolist()
                session.add(
                    QueueItem(
                        queue_id=queue.id,
                        rank=rank,
                        image_id=image.id,
                        region_index=index,
                        x=x,
                        y=y,
                        w=w,
                        h=h,
                        measure="entropy",
                        score=1 / rank,
                        predicted_class=rank % len(classes),
                        slice="audit" if rank % 5 == 0 else "selected",
                        inclusion_probability=0.25 if rank % 5 == 0 else None,
                        reason=f'entropy {1 / rank:.2f}; "mostly" pole, a boundary',
                    )
                )
    return Exported(project=project, database=database, truth=truth)


@cache
def _model(classes: tuple[str, ...]) -> tuple[Segmenter, ModelCard]:
    torch.manual_seed(0)
    config = ProjectConfig(
        name="model",
        data={"images": ["images"], "classes": ["a", "b"]},  # pyright: ignore[reportArgumentType]
        model={  # pyright: ignore[reportArgumentType]
            "encoder": "tu-mobilenetv3_small_050",
            "encoder_weights": "none",
            "decoder": {"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32},
        },
    ).model
    segmenter = build_segmenter(config, num_classes=len(classes), channels=3, root=Path())
    segmenter.train()  # one look at noise, so that no activation vanishes in eval mode
    with torch.no_grad():
        segmenter.network(torch.randn(2, 3, 64, 64))
    card = ModelCard(
        model=config,
        class_names=list(classes),
        channels=3,
        mean=[0.5] * 3,
        std=[0.25] * 3,
        input_scale=1.0,
        config_hash="0" * 64,
        labels_hash="0" * 64,
        seed=0,
        iterations=0,
    )
    return segmenter.eval(), card


def _scene(generator: np.random.Generator, *, width: int, height: int) -> npt.NDArray[np.uint8]:
    """A horizon, a disc with a hole in it, and objects of one pixel."""
    rows, columns = np.mgrid[:height, :width]
    mask = (rows > height * 0.55).astype(np.uint8)
    distance = np.hypot(rows - height * 0.4, columns - width * 0.4)
    radius = min(width, height) * 0.35
    mask[(distance < radius) & (distance > radius * 0.5)] = 2
    specks = generator.random((height, width)) < 0.02
    mask[specks] = generator.integers(0, 3, size=int(specks.sum()), dtype=np.uint8)
    return mask


def _write_image(path: Path, mask: npt.NDArray[np.uint8], generator: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colors = np.array([[120, 160, 220], [90, 90, 90], [200, 60, 40]], dtype=np.int16)[mask]
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
    return Image(
        uri=project.uri(path),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        width=info.width,
        height=info.height,
        channels=3,
        group_name="g",
        position=0,
        split="pool",
        mask_uri=project.uri(mask),
    )


def _image_score(run_id: int, image: Image) -> ImageScore:
    return ImageScore(
        run_id=run_id,
        image_id=image.id,
        regions=1,
        pixels=image.width * image.height,
        predicted_class=0,
        class_share=1.0,
        impurity=0.0,
        least_confidence=0.25,
        margin=0.25,
        entropy=0.5,
        expected_entropy=0.25,
        mutual_information=0.25,
        energy=-1.0,
        max_logit=-1.0,
        entropy_top10=0.5,
    )
