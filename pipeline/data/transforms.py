"""Training transforms, by albumentations: the only module that imports it.

Legend: h w crop size, K channels, N masks.
"""

from __future__ import annotations

import difflib
import inspect
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import IGNORE, TransformConfig
from pipeline.errors import ConfigError

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would look for a newer version on the network
import albumentations


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
        self(np.zeros(shape, dtype=dtype), np.zeros((1, *shape[:2]), dtype=np.uint8), seed=0)

    def __call__(
        self, image: npt.NDArray, masks: npt.NDArray[np.uint8], *, seed: int
    ) -> tuple[npt.NDArray, npt.NDArray[np.uint8]]:
        """Transform [h, w, K] and [N, h, w] together; the same seed gives the same result.

        Raises:
            ConfigError: a transform fails, or changes the size.
        """
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
        image = result["image"].reshape(*result["image"].shape[:2], -1)
        masks = np.stack([result["mask"], *result.get("masks", ())])
        if image.shape != self._shape or masks.shape[1:] != self._shape[:2]:
            raise ConfigError(
                f"`training.transforms` ({self._names}) changes the crop from "
                f"{'×'.join(map(str, self._shape))} to {'×'.join(map(str, image.shape))}.",
                "Use transforms that keep the size, or give them the size of `training.crop`.",
            )
        return image, masks


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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an unknown argument is only a warning there
            return kind(**arguments)
    except Exception as error:
        raise ConfigError(
            f"`training.transforms`: `{name}` cannot be made: {error}",
            f"Its arguments are {', '.join(key for key in known if key not in ('self', 'kwargs'))}.",
        ) from error
