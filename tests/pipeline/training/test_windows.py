"""Training on windows of a frozen encoder's maps: they are the maps of the image, and the labels fit them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config import ModelConfig, TrainingConfig
from pipeline.data.bounded_folder import BoundedFolder
from pipeline.data.image_info import ImageRef
from pipeline.data.loading import Batch, load_batches
from pipeline.errors import ConfigError
from pipeline.model.build import build_segmenter
from pipeline.model.encoder_cache import CachedEncoder, map_layouts
from pipeline.model.segmenter import Segmenter
from pipeline.training.dataset import LabeledImage
from pipeline.training.loop import train_segmenter
from pipeline.training.windows import WindowSet, check_windows
from tests.factories import TINY
from tests.pipeline.training.test_dataset import labeled
from tests.pipeline.training.test_loop import same_weights

CPU = torch.device("cpu")
FLIP = [{"name": "HorizontalFlip", "p": 0.5}]
KILLED = """
import os, signal, sys
from pathlib import Path
from tests.pipeline.training.test_windows import run

def kill(title, done, total, note):
    if done == 3:
        os.kill(os.getpid(), signal.SIGKILL)

run(Path(sys.argv[1]), progress=kill)
"""

pytestmark = pytest.mark.usefixtures("one_thread")


def settings(**changes: Any) -> TrainingConfig:
    known = {"iterations": 4, "batch_size": 2, "crop": (64, 64), "transforms": FLIP, "checkpoint_every": 2}
    return TrainingConfig.model_validate(known | changes)


def segmenter_of(**changes: Any) -> Segmenter:
    torch.manual_seed(0)
    config = ModelConfig.model_validate(TINY | {"freeze_encoder": True} | changes)
    return build_segmenter(config, num_classes=3, channels=3, root=Path())


def window_set(
    folder: Path, images: list[LabeledImage], config: TrainingConfig, segmenter: Segmenter
) -> WindowSet:
    files = BoundedFolder(folder / "features", 10**8)
    return WindowSet(
        images,
        config=config,
        channels=3,
        mean=[0.5] * 3,
        std=[0.25] * 3,
        input_scale=1.0,
        max_pixels=10**6,
        cache=CachedEncoder(segmenter, map_layouts(segmenter), files, device=CPU),
    )


def images_in(folder: Path, *, size: tuple[int, int] = (150, 110)) -> list[LabeledImage]:
    folder.mkdir(exist_ok=True)
    return [labeled(folder, f"i{value}", value=value, size=size) for value in range(3)]


def run(folder: Path, *, progress: Any = lambda *_: None, **changes: Any) -> Segmenter:
    torch.set_num_threads(1)
    config, segmenter = settings(**changes), segmenter_of()
    train_segmenter(
        segmenter,
        window_set(folder, images_in(folder), config, segmenter),
        config,
        class_weights=None,
        device=CPU,
        folder=folder,
        identity="same",
        progress=progress,
    )
    return segmenter


def test_windows_are_aligned_hold_the_label_and_are_mirrored_with_it(tmp_path: Path) -> None:
    segmenter = segmenter_of()
    samples = window_set(tmp_path, images_in(tmp_path), settings(), segmenter)
    mirrored = 0
    for index in range(20):
        sample = samples[index]
        (window,) = sample.windows
        assert window.size == (128, 160)
        assert window.rows.start % 32 == window.columns.start % 32 == 0
        assert (sample.label != 255).sum() == 64  # the whole labeled corner
        which, flipped = window.source
        mirrored += flipped
        assert int(sample.label[sample.label != 255][0]) == which
        rows, columns = np.nonzero((sample.label != 255).numpy())
        left, top = window.columns.start + columns.min(), window.rows.start + rows.min()
        assert (top, left) == (102, 0 if flipped else 142)
    assert 4 < mirrored < 16


def test_the_maps_of_a_window_are_those_of_the_prepared_image(tmp_path: Path) -> None:
    images, config, segmenter = images_in(tmp_path), settings(), segmenter_of()
    samples = window_set(tmp_path, images, config, segmenter)
    (window,) = samples[0].windows
    which, flipped = window.source
    (batch,) = load_batches(
        [ImageRef(1, images[which].path, 150, 110)],
        channels=3,
        max_pixels=10**6,
        input_scale=1.0,
        mean=[0.5] * 3,
        std=[0.25] * 3,
        batch_size=1,
        workers=0,
    )
    assert isinstance(batch, Batch)
    image = batch.image_BKHW.flip(-1) if flipped else batch.image_BKHW
    padded = segmenter.pad(image)
    assert samples._encoder.name(padded[0]) == window.name  # scoring finds what training has computed
    with torch.no_grad():
        expected = segmenter.encode(padded.contiguous(memory_format=torch.channels_last))
    found = samples.encoded(samples[0])
    for part, whole, layout in zip(found, expected, map_layouts(segmenter), strict=True):
        if layout.read:
            rows, columns = (
                slice(side.start // layout.stride, side.stop // layout.stride)
                for side in (window.rows, window.columns)
            )
            torch.testing.assert_close(part, whole[:, :, rows, columns], atol=1e-3, rtol=1e-3)


def test_training_from_files_equals_training_on_maps_in_memory(tmp_path: Path) -> None:
    """Also with a worker, and with files that were there before."""
    first = run(tmp_path)
    for changes in ({}, {"workers": 1}):
        (tmp_path / "resume.safetensors").unlink(missing_ok=True)
        assert same_weights(run(tmp_path, **changes), first)
    config, segmenter = settings(), segmenter_of()
    samples = window_set(tmp_path, images_in(tmp_path), config, segmenter)
    encoder, memory = samples._encoder, dict[str, np.ndarray]()
    encoder._read = lambda name, size: memory.get(name)  # pyright: ignore[reportAttributeAccessIssue]
    encoder._write = memory.__setitem__  # pyright: ignore[reportAttributeAccessIssue]
    folder = tmp_path / "memory"
    train_segmenter(
        segmenter, samples, config, class_weights=None, device=CPU, folder=folder, identity="other"
    )
    assert memory
    assert same_weights(segmenter, first)


def test_only_the_decoder_learns_and_it_learns(tmp_path: Path) -> None:
    before, after = segmenter_of().weights(), run(tmp_path).weights()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"decoder", "segmentation_head"}


def test_a_killed_training_ends_at_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "killed")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr.decode()
    assert (tmp_path / "killed" / "resume.safetensors").exists()
    assert same_weights(run(tmp_path / "killed"), run(tmp_path / "whole"))


def test_an_image_smaller_than_a_crop_is_padded_to_it(tmp_path: Path) -> None:
    segmenter = segmenter_of()
    images = images_in(tmp_path, size=(40, 30))
    samples = window_set(tmp_path, images, settings(crop=(96, 64)), segmenter)
    sample = samples[0]
    assert sample.windows[0].size == (96, 64)
    assert sample.label.shape == (96, 64)
    assert [part.shape[-2:] for part in samples.encoded(sample)][-1] == (3, 2)


@pytest.mark.parametrize(
    ("changes", "sizes", "words"),
    [
        ({"crop": (160, 200)}, [(96, 96)], r"multiples of 32.*`crop: \[160, 192\]`"),
        ({"crop": (32, 64)}, [(96, 96)], r"at least 64.*`crop: \[64, 64\]`"),
        ({"transforms": [*FLIP, {"name": "RandomGamma"}]}, [(96, 96)], "names `RandomGamma`"),
        ({"transforms": [{"name": "VerticalFlip"}]}, [(96, 96)], "names `VerticalFlip`"),
        ({"mix": "mixup"}, [(96, 96)], "`training.mix: mixup` mixes images"),
        ({}, [(96, 96), (300, 90)], "An image of 300 pixels is larger than `scoring.tile: 256`"),
    ],
)
def test_what_windows_cannot_do_is_named_with_its_remedy(
    changes: dict[str, Any], sizes: list[tuple[int, int]], words: str
) -> None:
    with pytest.raises(ConfigError, match=f"(?s){words}"):
        check_windows(segmenter_of(), settings(**changes), sizes, tile=256)


def test_plain_mirroring_passes() -> None:
    check_windows(segmenter_of(), settings(), [(96, 96)], tile=256)
    check_windows(segmenter_of(), settings(transforms=[]), [(96, 96)], tile=256)
