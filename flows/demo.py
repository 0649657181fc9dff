"""The demo's project: real slices of a brain template, with masks made from its probability maps.

The slices are axial planes of the MNI ICBM152 2009a T1 template, and the masks come from its grey and white
matter maps (Fonov et al. 2011, NeuroImage 54(1)), which nilearn's wheel carries: nothing is downloaded.

Legend: X, Y, Z voxels of 1 mm to the right, to the front and upwards; H, W a slice's rows and columns.
"""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.errors import DataError
from pipeline.files import CONFIG_FILE, atomic_write_bytes

SLICES = range(16, 146)
"""Planes from the cerebellum to the crown; the planes below and above show hardly any brain."""
HEIGHT, WIDTH = 192, 160
"""The slice's size in voxels: the brain and a margin, and multiples of 32 for the encoder."""
BACKGROUND, FLUID, GREY, WHITE = range(4)

Volume = npt.NDArray[np.uint8]

CONFIG = """\
# Brain tissue on axial slices of the MNI ICBM152 template. Written by `segcurate demo`.
name: Brain slices

data:
  images: images
  masks: masks
  channels: 1
  classes:
    - {name: background, color: [38, 40, 52]}
    - {name: fluid, color: [66, 165, 245]}
    - {name: grey matter, color: [239, 154, 80]}
    - {name: white matter, color: [250, 240, 214]}

splits:  # neighbouring slices look alike: whole blocks are held out, with slices of no split around them
  calibration: {fraction: 0.15, by: block, block: 5, guard: 2}
  test: {fraction: 0.25, by: block, block: 5, guard: 2}
  initial: {unit: region, count: 8}  # the masks of 8 cells are all that the first model learns from
  minimum_units: 4  # one brain has few independent slices; 10 by default

model:  # a network small enough to learn from nothing, in a minute, on a laptop
  architecture: unet
  encoder: tu-test_resnet
  encoder_weights: none
  decoder: {decoder_channels: [64, 48, 32, 24, 16]}
  dropout: 0.2
  mean: [0.3]
  std: [0.35]

training:
  iterations: 400
  batch_size: 8
  crop: [64, 64]
  learning_rate: 3.0e-3
  encoder_learning_rate_factor: 1.0
  transforms:
    - {name: HorizontalFlip}
    - {name: Affine, rotate: [-12, 12], scale: [0.9, 1.1], p: 0.7}

evaluation: {block: 5, resamples: 1000}

scoring:
  samples: 20
  batch_size: 16
  regions: {kind: grid, cell: 32}

selection: {strategy: stratified, budget: 20, per_image_cap: 2, min_gap: 3}
"""


def write_demo(folder: Path) -> Path:
    """Write slices, masks and `segcurate.yaml` into a folder; existing images and masks are replaced.

    An existing configuration is kept, as the user may have changed it.

    Returns:
        The path of the configuration.

    Raises:
        DataError: nilearn, which carries the template, is not installed, or no longer carries it.
    """
    t1_XYZ = _read_volume("t1")
    tissue_XYZ = tissue_classes(t1_XYZ, grey=_read_volume("gm"), white=_read_volume("wm"))
    corner = _corner(t1_XYZ)
    for index in SLICES:
        name = f"axial_{index:03d}.png"
        _write_png(folder / "images" / name, axial_slice(t1_XYZ, index=index, corner=corner))
        _write_png(folder / "masks" / name, axial_slice(tissue_XYZ, index=index, corner=corner))
    config = folder / CONFIG_FILE
    if not config.is_file():
        atomic_write_bytes(config, CONFIG.encode())
    return config


def tissue_classes(t1: Volume, *, grey: Volume, white: Volume) -> Volume:
    """The most probable tissue of each voxel [X, Y, Z]: background, fluid, grey matter, white matter.

    Args:
        t1: the skull-stripped image; 0 outside the brain.
        grey, white: probability × 255; what they leave of 255 is fluid.

    >>> t1 = np.array([[[0, 80, 150, 220]]], dtype=np.uint8)
    >>> grey, white = (np.array([[row]], dtype=np.uint8) for row in ([9, 60, 200, 20], [0, 10, 40, 230]))
    >>> tissue_classes(t1, grey=grey, white=white).tolist()
    [[[0, 1, 2, 3]]]
    """
    fluid = 255 - np.minimum(255, grey.astype(np.int16) + white)
    probability = np.stack([fluid, grey.astype(np.int16), white.astype(np.int16)])
    tissue = probability.argmax(axis=0).astype(np.uint8) + np.uint8(FLUID)
    return np.where(t1 > 0, tissue, np.uint8(BACKGROUND))


def axial_slice(volume: Volume, *, index: int, corner: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """One plane [H, W] of a volume [X, Y, Z], front upwards; `corner` is its smallest x and y."""
    x, y = corner
    return np.ascontiguousarray(volume[x : x + WIDTH, y : y + HEIGHT, index].T[::-1])


def _corner(t1: Volume) -> tuple[int, int]:
    """The smallest x and y of the slices' window, with the brain in its middle."""
    corner = []
    for axis, length in ((0, WIDTH), (1, HEIGHT)):
        occupied = np.flatnonzero((t1 > 0).any(axis=(1 - axis, 2)))
        corner.append(int(occupied[0] + occupied[-1] + 1 - length) // 2)
    return corner[0], corner[1]


def _read_volume(kind: str) -> Volume:
    """One of the template's volumes [X, Y, Z]: `t1`, `gm` or `wm`."""
    package = importlib.util.find_spec("nilearn")
    if package is None or package.origin is None or importlib.util.find_spec("nibabel") is None:
        raise DataError(
            "The demo's images come with nilearn, which is not installed.",
            "Run `pip install 'segcurate[demo]'`.",
        )
    path = Path(package.origin).parent / "datasets" / "data"
    path /= f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
    if not path.is_file():
        raise DataError(
            f"This version of nilearn does not carry the template: there is no {path}.",
            "Run `pip install 'nilearn==0.14.*'`.",
        )
    import nibabel  # an extra of the demo alone

    return np.asarray(nibabel.load(path).dataobj, dtype=np.uint8)  # type: ignore[attr-defined]


def _write_png(path: Path, image: npt.NDArray[np.uint8]) -> None:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    atomic_write_bytes(path, buffer.getvalue())
