"""A project whose pool is ready to be scored: images on disk, and a promoted model that knows nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PillowImage
from safetensors.torch import load_file
from sqlalchemy import select

from db.engine import Database
from db.tables import Calibration, Image, Model, Round
from pipeline.config import ModelConfig, ProjectConfig, ScoringConfig
from pipeline.data.images import probe_image
from pipeline.data.project import Project
from pipeline.model.build import build_segmenter
from pipeline.model.checkpoints import ModelCard, save_model
from tests.factories import add_rows

TINY = ModelConfig(
    architecture="fpn",
    encoder="tu-mobilenetv3_small_050",
    encoder_weights="none",
    decoder={"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32},
    dropout=0.5,
)
CLASSES = 4


def draw_images(folder: Path, sizes: Sequence[tuple[int, int]], *, seed: int = 0) -> list[Path]:
    """PNG files of these (width, height) with blocks of colour and noise."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    paths: list[Path] = []
    for number, (width, height) in enumerate(sizes):
        coarse = generator.integers(0, 255, (height // 16 + 1, width // 16 + 1, 3)).astype(np.uint8)
        pixels = coarse.repeat(16, axis=0).repeat(16, axis=1)[:height, :width].astype(np.int16)
        pixels = pixels + generator.integers(-20, 20, pixels.shape)
        paths.append(folder / f"{number:03d}.png")
        PillowImage.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1])
    return paths


def make_pool(
    root: Path,
    images: Sequence[Path],
    *,
    scoring: ScoringConfig,
    model: ModelConfig = TINY,
    classes: int = CLASSES,
    encoder_weights: Path | None = None,
    temperatures: tuple[float, float] = (1.5, 1.25),
) -> tuple[Project, Database]:
    """A project in the state `score`: every image in the pool, and a promoted model with random weights."""
    names = [f"class {index}" for index in range(classes)]
    document = {
        "name": "pool",
        "device": "cpu",
        "data": {"images": [str(root)], "classes": names},
        "model": model.model_dump(),
        "scoring": scoring.model_dump(),
    }
    root.mkdir(parents=True, exist_ok=True)
    project = Project(config=ProjectConfig.model_validate(document), root=root)
    database = Database(project.database_url)
    add_rows(database, Round(number=1, state="score"))
    serve_random_model(project, database, encoder_weights=encoder_weights, temperatures=temperatures)
    add_images(project, database, images)
    return project, database


def serve_random_model(
    project: Project,
    database: Database,
    *,
    encoder_weights: Path | None = None,
    temperatures: tuple[float, float] = (1.5, 1.25),
) -> None:
    """Give the current round a promoted model with random weights and two temperatures."""
    folder = project.workdir / "models" / "r01"
    config = project.config
    digest = _save_random_model(folder, config.model, config.data.class_names, encoder_weights)
    with database.session() as session:
        current = session.scalars(select(Round).order_by(Round.number.desc()).limit(1)).one()
        row = Model(
            round_id=current.id,
            name="r01",
            status="promoted",
            checkpoint_uri=project.uri(folder),
            checkpoint_sha256=digest,
            config={},
            config_hash="",
            labels_hash="",
            seed=0,
            iterations=0,
        )
        session.add(row)
        session.flush()
        for sampler, temperature in zip(("none", "mc_dropout"), temperatures, strict=True):
            session.add(
                Calibration(
                    model_id=row.id,
                    sampler=sampler,
                    calibrator="temperature",
                    parameters={"temperature": temperature},
                    images=1,
                    pixels=1,
                )
            )


def add_images(
    project: Project, database: Database, paths: Sequence[Path], *, split: str = "pool"
) -> list[int]:
    """Register files as `ingest` would, and return their ids."""
    rows: list[Image] = []
    for position, path in enumerate(paths):
        info = probe_image(path, max_pixels=10**9)
        rows.append(
            Image(
                uri=project.uri(path),
                sha256=hashlib.sha256(str(path).encode()).hexdigest(),
                width=info.width,
                height=info.height,
                channels=3,
                group_name="g",
                position=position,
                split=split,
            )
        )
    with database.session() as session:
        session.add_all(rows)
        session.flush()
        return [row.id for row in rows]


def _save_random_model(
    folder: Path, config: ModelConfig, names: list[str], encoder_weights: Path | None
) -> str:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        segmenter = build_segmenter(config, num_classes=len(names), channels=3, root=folder)
        if encoder_weights is not None:
            state = {f"model.{name}": value for name, value in load_file(encoder_weights).items()}
            segmenter.network.get_submodule("encoder").load_state_dict(state, strict=False)
        segmenter.train()  # one look at noise, so that no activation vanishes in eval mode
        with torch.no_grad():
            segmenter.network(torch.randn(2, 3, 64, 64))
    card = ModelCard(
        model=config,
        class_names=names,
        channels=3,
        mean=[0.5] * 3,
        std=[0.5] * 3,
        input_scale=config.input_scale,
        config_hash="",
        labels_hash="",
        seed=0,
        iterations=0,
    )
    return save_model(folder, segmenter, card)
