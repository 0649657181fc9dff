"""Real photographs with masks that are hard to carry over, as a project whose queue is ready to go out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from skimage import data
from skimage.segmentation import felzenszwalb
from sklearn.datasets import load_sample_image

from tests.pipeline.labeling.exported_project import Exported, select_regions, write_png

CLASSES = {'roof & "wall"': 3, "Straße <b>": 0, "sky": 7, "look": 200, "never there": 9, "fur": 40}
"""Ids by name; of the fifth there is not a pixel."""
ABSENT = 4
ROTATED = "日本/寺 (noon).jpg"
"""Stored on its side."""


def photographs() -> dict[str, npt.NDArray[np.uint8]]:
    """RGB images by name: of many sizes, with awkward names, two of one base name."""
    china, flower = load_sample_image("china.jpg"), load_sample_image("flower.jpg")
    return {
        "day 1/frame.png": china[60:284, 40:360],
        "day 2/frame.png": china[100:260, 300:620],
        ROTATED: china[::2, ::2],
        'it\'s "quoted" & ümläut.png': flower[:192, :256],
        "nested/very/deep/a.b..c.png": data.astronaut()[:256, 100:356],
        "rocket.jpg": data.rocket()[:200, 150:430],
        "thin.png": data.coffee()[200:233, :301],
        "cat.png": data.chelsea()[:300, :451],
        "one pixel.png": flower[:1, :1],
    }


def mask_of(pixels: npt.NDArray[np.uint8], seed: int) -> npt.NDArray[np.uint8]:
    """Class indices uint8 [H, W]: real borders, parts that do not hang together, holes, single pixels."""
    generator = np.random.default_rng(seed)
    segments = felzenszwalb(pixels, scale=100, sigma=0.8, min_size=30)
    present = np.array([index for index in range(len(CLASSES)) if index != ABSENT], dtype=np.uint8)
    mask = present[generator.integers(0, len(present), size=segments.max() + 1)][segments]
    height, width = mask.shape
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(rows - height * 0.5, columns - width * 0.4)
    mask[(distance < 24) & (distance > 12)] = present[0]
    specks = generator.random(mask.shape) < 0.003
    mask[specks] = present[generator.integers(0, len(present), size=int(specks.sum()))]
    return mask


def make_photo_project(root: Path) -> Exported:
    """All photographs, and a queue of every third 64-pixel cell of each."""
    truth: dict[str, npt.NDArray[np.uint8]] = {}
    table = np.zeros(256, dtype=np.uint8)
    table[: len(CLASSES)] = list(CLASSES.values())
    for seed, (name, pixels) in enumerate(photographs().items()):
        truth[name] = mask_of(pixels, seed)
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == ROTATED:
            exif = Image.Exif()
            exif[274] = 6  # turned clockwise when it is shown
            Image.fromarray(np.ascontiguousarray(np.rot90(pixels))).save(path, exif=exif, quality=95)
        else:
            Image.fromarray(pixels).save(path)
        write_png((root / "masks" / name).with_suffix(".png"), table[truth[name]])
    return select_regions(root, truth, classes=CLASSES, cell=64, tile=256)
