"""A project whose images are three noisy textures, and a network that has learned a little about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Picture
from torch import Tensor

from db.engine import Database
from db.tables import Image, Model, utc_now
from pipeline.data.masks import Mask
from pipeline.data.project import Project
from pipeline.model.build import build_segmenter
from pipeline.model.checkpoints import save_model
from pipeline.model.segmenter import Segmenter
from tests.factories import (
    CLASSES,
    HEIGHT,
    WIDTH,
    Workspace,
    add_model,
    add_rows,
    ask,
    make_project,
    new_card,
    new_image,
)


def textured_project(
    root: Path, *, tile: int = 1024, input_scale: float = 1.0, pixels: int = 2000, **sections: Any
) -> Workspace:
    """Settings and an empty store; images of WIDTH×HEIGHT are added by `add_images`.

    Args:
        pixels: that calibrate, of each image.
    """
    return make_project(
        root,
        data={"masks": "masks"},
        model={"mean": [0.5] * 3, "std": [0.25] * 3, "input_scale": input_scale},
        evaluation={"resamples": 200, "block": 2},
        calibration={"calibrator": "temperature", "pixels_per_image": pixels},
        scoring={"samples": 4, "tile": tile, "overlap": 16, "batch_size": 3, "workers": 0},
        **sections,
    )


def add_images(project: Project, database: Database, split: str, count: int, *, masks: bool = True) -> None:
    """Noisy images of three textures with their masks; some pixels are not labeled."""
    generator = np.random.default_rng([len(split), count])
    made: list[Image] = []
    for index in range(count):
        image, mask = _draw_textures(generator)
        name = f"{split}_{index}.png"
        for folder, pixels in (("images", image), ("masks", mask)):
            (project.root / folder).mkdir(exist_ok=True)
            Picture.fromarray(pixels).save(project.root / folder / name)
        place: dict[str, Any] = {"group_name": f"sequence {index // 4}", "position": index, "split": split}
        place |= {"width": WIDTH, "height": HEIGHT, "mask_uri": f"masks/{name}" if masks else None}
        made.append(new_image(f"images/{name}", **place))
    add_rows(database, *made)


def add_trained_model(
    project: Project, database: Database, segmenter: Segmenter, *, number: int = 1
) -> Model:
    """A round whose model has just been trained: `calibrate` comes next."""
    folder, model = project.workdir / "models" / f"r{number:02d}", project.config.model
    digest = save_model(folder, segmenter, new_card(model, CLASSES, mean=model.mean, std=model.std))
    values = {"checkpoint_uri": project.uri(folder), "checkpoint_sha256": digest, "finished_at": utc_now()}
    return ask(database, add_model, number, state="calibrate", status="trained", **values)


def make_segmenter(project: Project, *, overconfident: float = 1.0, always: int | None = None) -> Segmenter:
    """A network whose head has learned a little from one noisy image, and is then made too sure of itself;
    with `always`, it says one class everywhere."""
    torch.manual_seed(0)
    segmenter = build_segmenter(
        project.config.model, num_classes=len(CLASSES), channels=3, root=project.root
    ).eval()
    head = segmenter.linear_head
    assert head is not None
    assert head.bias is not None
    if always is not None:
        with torch.no_grad():
            head.weight *= 0.0
            head.bias[:] = torch.nn.functional.one_hot(torch.tensor(always), len(CLASSES)) * 3.0
        return segmenter
    pixels, mask = _draw_textures(np.random.default_rng(99))
    image = torch.from_numpy((pixels / 255.0 - 0.5) / 0.25).float().permute(2, 0, 1)[None]
    features = segmenter.trunk(segmenter.pad(image)).features.detach()
    label = torch.from_numpy(mask[2::4, 2::4].copy()).long()[None]
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(head(features), label, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        head.weight *= overconfident
        head.bias *= overconfident
    return segmenter


def read_pair(project: Project, name: str) -> tuple[Tensor, np.ndarray]:
    """An image as the network sees it [1, 3, H, W], and its mask, read without the product's code."""
    pixels = np.asarray(Picture.open(project.root / "images" / name), dtype=np.float32) / 255
    image = torch.from_numpy((pixels - 0.5) / 0.25).permute(2, 0, 1)[None]
    return image, np.asarray(Picture.open(project.root / "masks" / name))


def _draw_textures(generator: np.random.Generator) -> tuple[Mask, Mask]:
    """Three textures in noise, uint8 [H, W, 3], and their mask, uint8 [H, W] with 255 on top."""
    mask = np.kron(
        generator.choice(3, size=(HEIGHT // 8, WIDTH // 8), p=[0.7, 0.2, 0.1]), np.ones((8, 8))
    ).astype(np.uint8)
    image = np.array([[40, 120, 60], [20, 60, 200], [200, 180, 40]])[mask]
    image = np.clip(image + generator.normal(0, 40, image.shape), 0, 255).astype(np.uint8)
    mask[:3] = 255
    return image, mask
