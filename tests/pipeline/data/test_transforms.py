"""Training transforms from the configuration."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.config import TransformConfig
from pipeline.data.transforms import Transforms
from pipeline.errors import ConfigError

SHAPE = (32, 24, 3)


def transforms(*descriptions: dict[str, Any], **changes: Any) -> Transforms:
    configs = [TransformConfig.model_validate(item) for item in descriptions]
    return Transforms(configs, **({"shape": SHAPE} | changes))


def picture() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, SHAPE, dtype=np.uint8), rng.integers(0, 3, (1, *SHAPE[:2]), dtype=np.uint8)


def test_the_seed_decides_and_image_and_mask_move_together() -> None:
    flip = transforms({"name": "HorizontalFlip", "p": 0.5}, {"name": "RandomBrightnessContrast", "p": 1.0})
    image, mask = picture()
    masks = {}
    for seed in range(8):
        first, second = flip(image, mask, seed=seed), flip(image, mask, seed=seed)
        assert np.array_equal(first[0], second[0])
        assert np.array_equal(first[1], second[1])
        masks[seed] = np.array_equal(first[1], mask)
        assert masks[seed] or np.array_equal(first[1], mask[..., ::-1])
    assert set(masks.values()) == {True, False}


def test_what_comes_from_outside_is_unlabeled_not_class_zero() -> None:
    rotate = transforms({"name": "Rotate", "limit": (40, 40), "p": 1.0})
    image, _ = picture()
    _, mask = rotate(image, np.ones((1, *SHAPE[:2]), dtype=np.uint8), seed=1)
    assert set(np.unique(mask)) == {1, 255}


@pytest.mark.parametrize("name", ["HorizontalFlip", "Rotate", "ElasticTransform", "GridDistortion"])
def test_the_masks_of_several_annotators_move_as_one_alone_would(name: str) -> None:
    move = transforms({"name": name, "p": 1.0})
    image, _ = picture()
    masks = np.random.default_rng(1).integers(0, 3, (6, *SHAPE[:2]), dtype=np.uint8)
    together = move(image, masks, seed=3)
    for index in range(6):
        alone = move(image, masks[index : index + 1], seed=3)
        assert np.array_equal(alone[0], together[0])
        assert np.array_equal(alone[1][0], together[1][index])


def test_nested_transforms_are_built() -> None:
    one_of = transforms(
        {"name": "OneOf", "p": 1.0, "transforms": [{"name": "VerticalFlip", "p": 1.0}]},
    )
    image, mask = picture()
    assert np.array_equal(one_of(image, mask, seed=0)[1], mask[:, ::-1])


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_any_number_of_channels_keeps_its_shape(channels: int, dtype: Any) -> None:
    flip = transforms({"name": "HorizontalFlip", "p": 1.0}, shape=(8, 8, channels), dtype=dtype)
    image = np.arange(64 * channels).reshape(8, 8, channels).astype(dtype)
    flipped, _ = flip(image, np.zeros((1, 8, 8), dtype=np.uint8), seed=0)
    assert flipped.dtype == dtype
    assert np.array_equal(flipped, image[:, ::-1])


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"name": "HorizontalFlop"}, "Did you mean `HorizontalFlip`"),
        ({"name": "Rotate", "limitt": 3}, "'limitt'.*arguments are limit"),
        ({"name": "Rotate", "limit": "many"}, "`Rotate` cannot be made"),
        ({"name": "Resize", "height": 8, "width": 8}, "changes the crop from 32×24×3 to 8×8×3"),
        ({"name": "Compose"}, "cannot be made"),
    ],
)
def test_mistakes_are_found_before_training(description: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        transforms(description)


def test_a_transform_that_needs_three_channels_is_refused_for_others() -> None:
    with pytest.raises(ConfigError, match="5 channels"):
        transforms({"name": "ToSepia", "p": 1.0}, shape=(8, 8, 5))


def test_a_mask_interpolation_that_invents_classes_is_refused() -> None:
    with pytest.raises(ConfigError, match="`mask_interpolation: 1` would mix the class ids"):
        transforms({"name": "Rotate", "mask_interpolation": 1})
    with pytest.raises(ConfigError, match="mask_interpolation"):
        transforms({"name": "OneOf", "transforms": [{"name": "Affine", "mask_interpolation": 2}]})
    transforms({"name": "Rotate", "mask_interpolation": 0})


def test_a_transform_that_gives_a_mask_other_values_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rotate = transforms({"name": "Rotate", "limit": (30, 30), "p": 1.0, "fill_mask": 7})
    mask = np.zeros((1, *SHAPE[:2]), dtype=np.uint8)
    mask[:, 16:] = 2
    assert set(np.unique(rotate(picture()[0], mask, seed=0)[1])) == {0, 2, 7}
    monkeypatch.setattr("pipeline.data.transforms.NEAREST", {1})
    with pytest.raises(ConfigError, match=r"the class id \d+, which the mask does not have"):
        transforms({"name": "Rotate", "limit": (30, 30), "p": 1.0, "mask_interpolation": 1})


def test_floats_beyond_the_range_of_a_transform_are_refused_and_moved_by_others() -> None:
    image = np.random.default_rng(0).uniform(0, 10_000, SHAPE).astype(np.float32)
    mask = np.zeros((1, *SHAPE[:2]), dtype=np.uint8)
    brighter = transforms({"name": "OneOf", "transforms": [{"name": "RandomBrightnessContrast", "p": 1.0}]})
    with pytest.raises(ConfigError, match="`RandomBrightnessContrast` takes pixels from 0 to 1.* to 9"):
        brighter(image, mask, seed=0)
    brighter(image / 10_000, mask, seed=0)
    flipped, _ = transforms({"name": "HorizontalFlip", "p": 1.0})(image, mask, seed=0)
    assert np.array_equal(flipped, image[:, ::-1])
