"""The projects that are killed: some forty small images, several shards, a checkpoint every few iterations.

The calibration split is large enough for a look at drift.
"""

from __future__ import annotations

from pathlib import Path

from tests.conftest import draw, write_config

FIRST, LATER = 32, 14
ASIDE = "later/masks"
"""The masks that an annotator will draw, where no step finds them."""


def draw_project(root: Path) -> None:
    """Images, masks and a configuration; `later/` holds the images that come after the first night."""
    for index in range(FIRST + LATER):
        size = (64, 48) if index % 3 else (48, 64)
        folder = root / ("images" if index < FIRST else "later")
        draw(folder, root / "masks", name=f"frame_{index:03d}.png", seed=index, size=size)
    write_config(
        root,
        model={
            "architecture": "fpn",
            "encoder": "tu-mobilenetv3_small_050",
            "encoder_weights": "none",
            "decoder": {"decoder_pyramid_channels": 16, "decoder_segmentation_channels": 32},
            "dropout": 0.5,
        },
        training={
            "iterations": 24,
            "batch_size": 2,
            "crop": [32, 32],
            "checkpoint_every": 4,
            "workers": 0,
            "transforms": [{"name": "HorizontalFlip", "p": 0.5}],
        },
        splits={
            "calibration": {"fraction": 0.32, "by": "block", "block": 2, "guard": 0},
            "test": {"fraction": 0.15, "by": "block", "block": 2, "guard": 0},
            "initial": {"fraction": 0.2, "unit": "region"},
            "minimum_units": 1,
            "every_class": False,
        },
        retrain={"min_new_labels": 1},
    )


def set_masks_aside(root: Path) -> None:
    """The images that came later have no masks yet."""
    (root / ASIDE).mkdir(parents=True)
    for number in range(FIRST, FIRST + LATER):
        path = root / "masks" / f"frame_{number:03d}.png"
        path.rename(root / ASIDE / path.name)


def let_images_come(root: Path) -> None:
    """What was drawn for later lies among the images now."""
    for path in sorted((root / "later").iterdir()):
        path.rename(root / "images" / path.name)
