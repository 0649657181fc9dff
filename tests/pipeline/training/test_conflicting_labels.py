"""What a network learns where annotators disagree 3 to 1: a probability of 75 %, not a certainty."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from pipeline.data.masks import write_mask
from pipeline.evaluation.bootstrap import bootstrap_weights, percentile_interval
from pipeline.training.dataset import LabeledImage
from tests.pipeline.training.test_loop import run

SIDE, CELL = 48, 8
CELLS = (SIDE // CELL) ** 2
PEOPLE = ("Ann", "Bo", "Cy", "Di")

pytestmark = pytest.mark.usefixtures("one_thread")


def scene() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """An image of bright and dark cells, and which of its pixels are disputed: the bright ones."""
    generator = np.random.default_rng(0)
    bright = np.kron(generator.permutation(CELLS).reshape(SIDE // CELL, -1) % 2, np.ones((CELL, CELL))) == 1
    pixels = np.where(bright[..., None], 200, 60) + generator.integers(-25, 26, (SIDE, SIDE, 3))
    return pixels.astype(np.uint8), bright


def predicted_share(folder: Path, images: list[LabeledImage], **settings: Any) -> npt.NDArray[np.float64]:
    """Train on the images; the mean predicted probability of class 1 in each disputed cell of the scene."""
    slowly = {"crop": (SIDE, SIDE), "encoder_learning_rate_factor": 1.0, "transforms": []}
    slowly |= {"iterations": 160, "batch_size": 4, "checkpoint_every": 500} | settings
    segmenter, _ = run(folder, images=images, model={"dropout": 0.05}, **slowly)
    pixels, disputed = scene()
    image = torch.from_numpy((pixels / 255 - 0.5) / 0.25).float().permute(2, 0, 1)[None]
    with torch.no_grad():
        probability = segmenter.eval()(image).softmax(dim=1)[0, 1].double().numpy()
    assert probability[~disputed].mean() < 0.05
    cells = [
        array.reshape(-1, CELL, SIDE // CELL, CELL).mean(axis=(1, 3)) for array in (probability, disputed)
    ]
    return cells[0][cells[1] == 1]


def interval(shares: npt.NDArray[np.float64]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean share over cells."""
    means = bootstrap_weights(len(shares), resamples=2000, seed=0) @ shares / len(shares)
    low, high = percentile_interval(means, 0.95, count=len(shares))
    return float(low), float(high)


def store(folder: Path) -> list[Path]:
    """The scene, and the masks of four people of whom the last sees nothing in what is disputed."""
    pixels, disputed = scene()
    Image.fromarray(pixels).save(folder / "scene.png")
    paths = [folder / f"{name}.png" for name in PEOPLE]
    for path in paths:
        write_mask(path, disputed.astype(np.uint8) * (path != paths[-1]))
    return paths


def test_four_copies_of_an_image_with_labels_three_to_one_give_75_percent(tmp_path: Path) -> None:
    images = [LabeledImage(tmp_path / "scene.png", SIDE, SIDE, (path,)) for path in store(tmp_path)]
    shares = predicted_share(tmp_path, images)
    low, high = interval(shares)
    assert low <= 0.75 <= high
    assert high - low < 0.06


def test_four_annotators_votes_on_one_image_give_75_percent(tmp_path: Path) -> None:
    image = LabeledImage(tmp_path / "scene.png", SIDE, SIDE, tuple(store(tmp_path)), PEOPLE)
    shares = predicted_share(tmp_path, [image], annotators="soft")
    low, high = interval(shares)
    assert low <= 0.75 <= high
    assert high - low < 0.06


def test_the_majority_alone_is_learned_as_a_certainty(tmp_path: Path) -> None:
    image = LabeledImage(tmp_path / "scene.png", SIDE, SIDE, tuple(store(tmp_path)), PEOPLE)
    assert predicted_share(tmp_path, [image], annotators="majority", iterations=60).mean() > 0.95
