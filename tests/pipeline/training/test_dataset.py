"""Training samples: a function of the seed and the number, centred where something is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from pipeline.config import TrainingConfig
from pipeline.data.masks import write_mask
from pipeline.errors import DataError
from pipeline.training.dataset import LabeledImage, TrainingSet


def labeled(folder: Path, name: str, *, size: tuple[int, int] = (64, 48), value: int = 0) -> LabeledImage:
    """An image whose pixels say where they are, with a mask that is `value` in one small corner."""
    width, height = size
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([x % 256, y % 256, np.full_like(x, value)], axis=2).astype(np.uint8)
    Image.fromarray(pixels).save(folder / f"{name}.png")
    mask = np.full((height, width), 255, dtype=np.uint8)
    mask[-8:, -8:] = value
    write_mask(folder / f"{name}_mask.png", mask)
    return LabeledImage(folder / f"{name}.png", width, height, (folder / f"{name}_mask.png",))


def training_set(images: list[LabeledImage], *, scale: float = 1.0, **settings: Any) -> TrainingSet:
    config = TrainingConfig.model_validate({"crop": (16, 24), "transforms": []} | settings)
    return TrainingSet(
        images,
        config=config,
        channels=3,
        mean=[0.0, 0.0, 0.0],
        std=[1 / 255] * 3,
        input_scale=scale,
        max_pixels=10**6,
    )


def test_a_sample_depends_on_its_number_and_the_seed_only(tmp_path: Path) -> None:
    images = [labeled(tmp_path, f"i{n}", value=n) for n in range(3)]
    settings: dict[str, Any] = {"transforms": [{"name": "HorizontalFlip"}], "centre_on_labels": False}
    first, second = training_set(images, **settings), training_set(images, **settings)
    backwards = [second[n] for n in reversed(range(12))][::-1]
    for n in range(12):
        assert torch.equal(first[n].image, backwards[n].image)
        assert torch.equal(first[n].label, backwards[n].label)
    other = training_set(images, seed=1, **settings)
    assert any(not torch.equal(first[n].image, other[n].image) for n in range(12))


def test_every_image_comes_once_an_epoch(tmp_path: Path) -> None:
    samples = training_set([labeled(tmp_path, f"i{n}", value=n) for n in range(5)], seed=3)
    epochs = [[int(samples[e * 5 + n].image[2, 0, 0]) for n in range(5)] for e in range(4)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_crops_are_centred_on_labels_and_pixels_keep_their_label(tmp_path: Path) -> None:
    samples = training_set([labeled(tmp_path, "image", value=2)])
    for n in range(10):
        sample = samples[n]
        assert sample.image.shape == (3, 16, 24)
        assert sample.label.dtype == torch.int64
        known = sample.label == 2
        inside = (sample.image[0] >= 56) & (sample.image[1] >= 40)
        assert known.any()
        assert torch.equal(known, inside)
        assert set(sample.label.unique().tolist()) <= {2, 255}


def test_crops_go_anywhere_when_they_need_not_be_centred(tmp_path: Path) -> None:
    samples = training_set([labeled(tmp_path, "image")], centre_on_labels=False)
    corners = {(int(samples[n].image[0, 0, 0]), int(samples[n].image[1, 0, 0])) for n in range(40)}
    assert len(corners) > 20
    assert all(x <= 40 and y <= 32 for x, y in corners)


@pytest.mark.parametrize("size", [(10, 7), (1, 1)])
def test_a_small_image_is_filled_up_with_unknown(tmp_path: Path, size: tuple[int, int]) -> None:
    sample = training_set([labeled(tmp_path, "image", size=size, value=1)])[0]
    width, height = size
    assert sample.image.shape == (3, 16, 24)
    assert (sample.label[:height, :width] != 255).any()
    assert (sample.label[height:] == 255).all()
    assert (sample.label[:, width:] == 255).all()


def test_input_scale_resizes_image_and_mask_alike(tmp_path: Path) -> None:
    sample = training_set([labeled(tmp_path, "image", value=3)], scale=0.5)[0]
    known = sample.label == 3
    assert int(known.sum()) == 16
    assert float(sample.image[0][known].min()) == pytest.approx(56.5, abs=0.6)


def test_sixteen_bits_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((16, 24), 257 * 100 + 50, dtype=np.uint16)).save(path)
    write_mask(tmp_path / "m.png", np.zeros((16, 24), dtype=np.uint8))
    sample = training_set([LabeledImage(path, 24, 16, (tmp_path / "m.png",))])[0]
    assert float(sample.image[0, 0, 0]) == pytest.approx((257 * 100 + 50) / 257, abs=1e-3)


def test_an_unreadable_image_is_reported_and_another_takes_its_place(tmp_path: Path) -> None:
    images = [labeled(tmp_path, f"i{n}", value=n) for n in range(3)]
    path = images[1].path
    assert isinstance(path, Path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    samples = training_set(images)
    drawn = [samples[n] for n in range(6)]
    assert {int(sample.image[2, 0, 0]) for sample in drawn} == {0, 2}
    reported = {path for sample in drawn for path, _ in sample.unreadable}
    assert reported == {str(images[1].path)}
    with pytest.raises(DataError, match=r"The only labeled image cannot.*i1\.png"):
        training_set([images[1]])[0]


def test_annotators_are_asked_as_configured_and_move_together(tmp_path: Path) -> None:
    image = labeled(tmp_path, "image", value=0)
    rows = {"Ann": 0, "Bo": 1, "Cy": 1}
    for name, value in rows.items():
        write_mask(tmp_path / f"{name}.png", np.full((48, 64), value, dtype=np.uint8))
    paths = tuple(tmp_path / f"{name}.png" for name in ("Bo", "Cy", "Ann"))
    voted = LabeledImage(image.path, 64, 48, paths, ("Bo", "Cy", "Ann"))
    latest, decided, soft = (
        training_set([voted], annotators=how)[0].label for how in ("latest", "majority", "soft")
    )
    assert (latest.dtype, decided.dtype, soft.dtype) == (torch.int64, torch.int64, torch.uint8)
    assert latest.unique().tolist() == [0]
    assert decided.unique().tolist() == [1]
    assert soft.shape == (3, 16, 24)
    assert [vote.unique().tolist() for vote in soft] == [[1], [1], [0]]


def test_one_annotator_s_votes_are_his_label(tmp_path: Path) -> None:
    image = labeled(tmp_path, "image", value=2)
    alone = LabeledImage(image.path, image.width, image.height, image.masks, (None,))
    settings: dict[str, Any] = {"transforms": [{"name": "Rotate", "limit": 40}]}
    hard, soft = training_set([image], **settings), training_set([alone], annotators="soft", **settings)
    for n in range(6):
        assert torch.equal(hard[n].image, soft[n].image)
        assert torch.equal(hard[n].label, soft[n].label[0].long())


def test_crops_of_a_large_file_in_tiles_are_read_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = labeled(tmp_path, "whole", size=(80, 70))
    parts = replace(whole, path=tmp_path / "parts.tif")
    tifffile.imwrite(tmp_path / "parts.tif", np.asarray(Image.open(str(whole.path))), tile=(32, 32))
    settings: dict[str, Any] = {"crop": (40, 100), "centre_on_labels": False}  # wider than the image
    expected = [training_set([whole], **settings)[n] for n in range(6)]
    monkeypatch.setattr("pipeline.training.dataset.LARGE", 1)
    monkeypatch.delattr("pipeline.training.dataset.read_image")
    found = [training_set([parts], **settings)[n] for n in range(6)]
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine.image, theirs.image)
        assert torch.equal(mine.label, theirs.label)
