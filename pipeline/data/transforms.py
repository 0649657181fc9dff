"""Training transforms, by albumentations: the only module that imports it.

Legend: h w crop size, K channels, N masks.
"""

from __future__ import annotations

import difflib
import inspect
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.config import IGNORE, TransformConfig
from pipeline.errors import ConfigError

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would look for a newer version on the network
import albumentations

BEYOND = 0.01
"""How far a float image may leave 0 to 1 where a transform computes with its values."""
NEAREST = {cv2.INTER_NEAREST, cv2.INTER_NEAREST_EXACT}
"""The interpolations that give a mask no values but its own."""


class Transforms:
    """The configured transforms, in order, for crops of one shape.

    Where a transform moves pixels in from outside the crop, their label is 255, not class 0.

    Args:
        configs: names and arguments.
        shape: (h, w, K) of the crops.
        dtype: of the crops, uint8 or float32 in 0 to 1.

    Raises:
        ConfigError: a transform or an argument does not exist, or a transform cannot take such crops or
            changes their size.
    """

    def __init__(
        self, configs: Sequence[TransformConfig], *, shape: tuple[int, int, int], dtype: Any = np.uint8
    ) -> None:
        self._shape = shape
        self._compose = albumentations.Compose([_build(item.model_dump()) for item in configs])
        self._names = ", ".join(item.name for item in configs)
        built = list(_single(self._compose.transforms))
        self._of_values = [
            type(item).__name__ for item in built if isinstance(item, albumentations.ImageOnlyTransform)
        ]
        fills = [getattr(item, "fill_mask", None) for item in built]
        self._fills = [IGNORE, *(int(fill) for fill in fills if isinstance(fill, int | float))]
        self(np.zeros(shape, dtype=dtype), np.zeros((1, *shape[:2]), dtype=np.uint8), seed=0)

    def __call__(
        self, image: npt.NDArray, masks: npt.NDArray[np.uint8], *, seed: int
    ) -> tuple[npt.NDArray, npt.NDArray[np.uint8]]:
        """Transform [h, w, K] and [N, h, w] together; the same seed gives the same result.

        Raises:
            ConfigError: a transform fails, changes the size, gives a mask a value that it did not have, or
                computes with values of an image that is not in 0 to 1.
        """
        self._check_range(image)
        self._compose.set_random_seed(seed)
        try:
            targets = {"image": image, "mask": masks[0]}  # some transforms ask for `mask` by its name
            if len(masks) > 1:
                targets["masks"] = masks[1:]
            result = self._compose(**targets)
        except Exception as error:  # each transform raises what its own library raises
            raise ConfigError(
                f"`training.transforms` ({self._names}) cannot be applied to a crop of "
                f"{self._shape[0]}×{self._shape[1]} with {self._shape[2]} channels: {error}",
                "Remove the transform that does not fit.",
            ) from error
        before = masks
        image = result["image"].reshape(*result["image"].shape[:2], -1)
        masks = np.stack([result["mask"], *result.get("masks", ())])
        if image.shape != self._shape or masks.shape[1:] != self._shape[:2]:
            raise ConfigError(
                f"`training.transforms` ({self._names}) changes the crop from "
                f"{'×'.join(map(str, self._shape))} to {'×'.join(map(str, image.shape))}.",
                "Use transforms that keep the size, or give them the size of `training.crop`.",
            )
        invented = np.setdiff1d(_values(masks), [*_values(before), *self._fills])
        if len(invented):
            raise ConfigError(
                f"`training.transforms` ({self._names}) gives pixels the class id {invented[0]}, which the "
                "mask does not have.",
                "Leave `mask_interpolation` out of them, or remove the transform.",
            )
        return image, masks

    def _check_range(self, image: npt.NDArray) -> None:
        if not self._of_values or image.dtype == np.uint8:
            return
        low, high = float(image.min()), float(image.max())
        if low < -BEYOND or high > 1 + BEYOND:
            raise ConfigError(
                f"`training.transforms`: `{self._of_values[0]}` takes pixels from 0 to 1 and cuts others, "
                f"but an image holds values from {low:g} to {high:g}.",
                "Scale the images to 0 to 1 in their files, or use transforms that only move pixels, such "
                "as `HorizontalFlip` and `Rotate`.",
            )


def _values(masks: npt.NDArray[np.uint8]) -> npt.NDArray[np.intp]:
    return np.flatnonzero(np.bincount(masks.ravel(), minlength=256))


def _single(transforms: Iterable[Any]) -> Iterator[albumentations.BasicTransform]:
    """The transforms, and those inside of others such as OneOf."""
    for item in transforms:
        if isinstance(item, albumentations.BaseCompose):
            yield from _single(item.transforms)
        else:
            yield item


def _build(description: dict[str, Any]) -> albumentations.BasicTransform | albumentations.BaseCompose:
    arguments = dict(description)
    name = arguments.pop("name", None)
    kind = getattr(albumentations, str(name), None)
    if not (
        inspect.isclass(kind) and issubclass(kind, albumentations.BasicTransform | albumentations.BaseCompose)
    ):
        near = difflib.get_close_matches(str(name), dir(albumentations), n=1, cutoff=0.5)
        hint = f"Did you mean `{near[0]}`?" if near else "See the albumentations documentation."
        raise ConfigError(f"`training.transforms` names `{name}`, which albumentations does not have.", hint)
    if isinstance(arguments.get("transforms"), list):  # OneOf, SomeOf, …
        arguments["transforms"] = [_build(item) for item in arguments["transforms"]]
    known = inspect.signature(kind.__init__).parameters
    outside = known.get("fill_mask")
    if outside is not None and outside.default is not None:
        arguments.setdefault("fill_mask", IGNORE)
    if arguments.get("mask_interpolation", cv2.INTER_NEAREST) not in NEAREST:
        raise ConfigError(
            f"`training.transforms`: `{name}` with `mask_interpolation: {arguments['mask_interpolation']}` "
            "would mix the class ids of neighbouring pixels to ids of other classes.",
            "Leave `mask_interpolation` out: masks take the nearest pixel.",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an unknown argument is only a warning there
            return kind(**arguments)
    except Exception as error:
        raise ConfigError(
            f"`training.transforms`: `{name}` cannot be made: {error}",
            f"Its arguments are {', '.join(key for key in known if key not in ('self', 'kwargs'))}.",
        ) from error
