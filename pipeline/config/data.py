"""Settings of the data: images, masks, classes, and which images are held out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import IGNORE, FilePath, Fraction, PathTemplate, Positive, Section, Seed

_SECRET = re.compile(
    r"(^|_)(key|secret|token|sas|credentials?)($|_)|password|passwd|key_?id|connection_string|authorization",
    re.IGNORECASE,
)


_MOST_WITH_NULL = 254
"""Classes of a project, where a label file's names may also mean none."""


class ClassConfig(Section):
    name: Annotated[str, Field(min_length=1, max_length=100)]
    id: Annotated[int, Field(ge=0, le=65535)] | None = None
    """The value of this class in index masks; its position in the list where it is not given."""
    color: tuple[int, int, int] | None = None
    """Red, green, blue (0 to 255): the colour of the class in RGB masks and in pictures."""

    @field_validator("color")
    @classmethod
    def _in_range(cls, color: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
        if color is not None and not all(0 <= value <= 255 for value in color):
            raise ValueError(f"Expected three numbers from 0 to 255, but got {list(color)}.")
        return color


class LabelFile(Section):
    """Labels that exist already, in the format of a labeling tool."""

    format: Literal["coco", "coco-panoptic", "cvat", "cvat-masks", "label-studio", "voc"]
    path: FilePath
    """What the tool has exported: a file, a zip archive, or a folder."""
    classes: dict[str, str | None] = {}
    """The class of `data.classes` that each of its names means, where the two differ: `{auto: car}`. Several
    names may mean one class; null means that the pixels are not labeled."""
    unlabeled: str = "ignore"
    """What pixels are where nothing is drawn, in an image that has annotations: `ignore`, that is, not
    labeled, or the name of a class, most often the background."""


class DataConfig(Section):
    images: Annotated[list[FilePath], Field(min_length=1)]
    """Folders (searched with their subfolders), globs, or single files; or the same in an object store:
    `s3://bucket/frames`, `gs://…`, or any other that fsspec reads. Credentials come from the environment, or
    from the store's own configuration files."""
    storage_options: dict[str, Any] = {}
    """Options of fsspec's file system for the object store: `{endpoint_url: "http://minio:9000"}`,
    `{anon: true}`. No secrets."""
    cache_gib: Annotated[float, Field(gt=0)] = 20.0
    """Size of the image cache `<workdir>/cache` in GiB; the least recently read images are deleted first."""
    masks: FilePath | None = None
    """The folder of existing masks."""
    labels: list[LabelFile] = []
    """Existing labels in the format of a labeling tool, beside `masks` or instead: `{format: coco, path:
    annotations.json}`, or a list of these. An image has its mask from one of them."""
    mask_template: PathTemplate = "{parent}/{stem}.png"
    """The mask of an image inside `masks`: `{parent}` is the image's folder below its image folder,
    `{stem}` its name without the ending and `image_suffix`, `{name}` its whole name."""
    image_suffix: str = ""
    """The end of the images' names, before the ending, that the masks' names lack: `_leftImg8bit`."""
    mask_encoding: Literal["auto", "index", "palette", "rgb"] = "auto"
    """`index`: the pixel value is the class id. `palette`: the same, in a PNG with a palette. `rgb`: the
    pixel's colour is the class's colour. `auto`: by the file. The colours of a palette count where
    every class has a `color`; otherwise values and colours must mean the same."""
    classes: Annotated[list[ClassConfig], Field(min_length=2, max_length=255)]
    """The classes, as names or as `{name, id, color}`."""
    ignore_index: list[Annotated[int, Field(ge=0, le=65535)]] = [IGNORE]
    """The values of an index mask that mean "not labeled"."""
    ignore_color: list[tuple[int, int, int]] = []
    """The colours of an RGB mask that mean "not labeled"."""
    absent_classes: list[str] = []
    """Classes that no mask shows yet. Any other class must have a pixel at the first `segcurate ingest`:
    otherwise its `id` or `color` is probably wrong."""
    channels: Annotated[int, Field(ge=1, le=64)] = 3
    """Channels that the model sees. A grey image is repeated for 3; any other difference is an error."""
    group_regex: str | None = None
    """A regular expression searched in the image's path; its first capture group (or the whole match) is the
    name of the sequence, patient, site or tile source. Without it, each folder is a group."""
    independent: bool = False
    """Whether images of one group resemble each other no more than those of two, as unrelated photographs.
    Intervals then count each image as an independent unit. The groups of splits do not change."""
    group_csv: FilePath | None = None
    """A CSV with the columns `image,group` and, optionally, `position`."""
    position_regex: str | None = None
    """Its first capture group is the image's position in its sequence, as a number. Without it, the natural
    order of names."""
    max_pixels: Positive = 200_000_000
    """A larger image is rejected before it is decoded."""

    @field_validator("images", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("labels", mode="before")
    @classmethod
    def _one_or_many_labels(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value

    @field_validator("images", mode="after")
    @classmethod
    def _no_secret_in_uris(cls, value: list[str]) -> list[str]:
        for entry in value:
            scheme, remote, rest = entry.partition("://")
            if remote and (
                scheme.lower() in ("http", "https") or (":" in rest.split("@")[0] and "@" in rest)
            ):
                raise ValueError(
                    f"{scheme}:// addresses and credentials do not belong here: write a prefix such as "
                    "s3://bucket/frames, and put credentials into the environment."
                )
        return value

    @field_validator("storage_options", mode="after")
    @classmethod
    def _no_secrets(cls, value: dict[str, Any]) -> dict[str, Any]:
        secret = next(_secret_keys(value), None)
        if secret is not None:
            raise ValueError(
                f"`{secret}` is a secret, which does not belong in this file. Remove it, and set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or your store's variables."
            )
        return value

    @field_validator("ignore_index", mode="before")
    @classmethod
    def _one_or_many_ids(cls, value: Any) -> Any:
        return [value] if isinstance(value, int) else value

    @field_validator("classes", mode="before")
    @classmethod
    def _names_or_classes(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [{"name": item} if isinstance(item, str) else item for item in value]

    @field_validator("classes", mode="after")
    @classmethod
    def _number_and_check(cls, value: list[ClassConfig]) -> list[ClassConfig]:
        numbered = [
            item if item.id is not None else item.model_copy(update={"id": index})
            for index, item in enumerate(value)
        ]
        for what in ("name", "id", "color"):
            counts = Counter(getattr(item, what) for item in numbered if getattr(item, what) is not None)
            twice = [str(entry) for entry, count in counts.items() if count > 1]
            if twice:
                raise ValueError(f"Two classes have the same {what}: {', '.join(twice)}.")
        return numbered

    @field_validator("group_regex", "position_regex")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"Not a regular expression: {error}.") from error
        return value

    @model_validator(mode="after")
    def _ignored_is_no_class(self) -> Self:
        taken = {item.id for item in self.classes if item.id is not None} & set(self.ignore_index)
        if taken:
            raise ValueError(f"`ignore_index` {sorted(taken)} is also the id of a class.")
        colors = {item.color for item in self.classes} & set(self.ignore_color)
        if colors:
            raise ValueError(
                f"`ignore_color` {sorted(str(color) for color in colors)} is also the colour of a class."
            )
        return self

    @model_validator(mode="after")
    def _labels_mean_classes(self) -> Self:
        for number, entry in enumerate(self.labels):
            named = {name: f"classes.{key}" for key, name in entry.classes.items() if name is not None}
            if entry.unlabeled != "ignore":
                named[entry.unlabeled] = "unlabeled"
            for name, key in named.items():
                if name not in self.class_names:
                    raise ValueError(
                        f"`labels.{number}.{key}` is {name!r}, which `classes` does not have. It has "
                        f"{', '.join(self.class_names)}."
                    )
            if None in entry.classes.values() and self.num_classes > _MOST_WITH_NULL:
                raise ValueError(
                    f"`labels.{number}.classes` has a null, which needs at most {_MOST_WITH_NULL} classes."
                )
        paths = Counter(entry.path for entry in self.labels)
        twice = [path for path, count in paths.items() if count > 1]
        if twice:
            raise ValueError(f"`labels` names {', '.join(twice)} twice.")
        return self

    @model_validator(mode="after")
    def _absent_are_classes(self) -> Self:
        unknown = sorted(set(self.absent_classes) - set(self.class_names))
        if unknown:
            raise ValueError(f"`absent_classes` names {', '.join(unknown)}, which `classes` does not have.")
        return self

    @property
    def existing_labels(self) -> tuple[str, str]:
        """The key that names the labels which exist already, and their path: `data.masks` by default."""
        if self.masks is None and self.labels:
            return "data.labels", self.labels[0].path
        return "data.masks", self.masks or "masks"

    @property
    def class_names(self) -> list[str]:
        """Names in the order of class indices."""
        return [item.name for item in self.classes]

    @property
    def num_classes(self) -> int:
        return len(self.classes)


def _secret_keys(options: dict[str, Any]) -> Iterator[str]:
    for key, value in options.items():
        if _SECRET.search(str(key)):
            yield str(key)
        if isinstance(value, dict):
            yield from _secret_keys(value)


class HeldOutSplit(Section):
    """Which images are held out. Exactly one of `list`, `folder` and `fraction`."""

    list: FilePath | None = None
    """A text file with one image path a line, relative to this file or to an image folder."""
    folder: FilePath | None = None
    """A glob on the image's path relative to this file, such as `images/val/*`."""
    fraction: Fraction | None = None
    """A share of the groups, or of the blocks, drawn with `splits.seed`."""
    by: Literal["group", "block"] = "group"
    """The unit of `fraction`: whole groups, or blocks of neighbours within each sequence."""
    block: Positive = 10
    """Images in a block."""
    guard: Annotated[int, Field(ge=0)] = 1
    """Images on each side of a held-out block that belong to no split, because they are similar to it."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(value is not None for value in (self.list, self.folder, self.fraction)) != 1:
            raise ValueError("Give exactly one of `list`, `folder` and `fraction`.")
        return self


class InitialSplit(Section):
    """The first labeled set: pool images, or regions of them, whose existing masks count as labels.

    At most one of `list`, `folder`, `fraction` and `count`; without any, every pool image that has a mask.
    """

    list: FilePath | None = None
    folder: FilePath | None = None
    fraction: Fraction | None = None
    """A share of the pool's images, or of its regions, drawn with `splits.seed` among those with a mask."""
    count: Positive | None = None
    """The same as a number."""
    unit: Literal["image", "region"] = "image"
    """`region`: those of `scoring.regions`; for segments, which need a model first, cells of that size."""

    @model_validator(mode="after")
    def _at_most_one(self) -> Self:
        if sum(value is not None for value in (self.list, self.folder, self.fraction, self.count)) > 1:
            raise ValueError("Give at most one of `list`, `folder`, `fraction` and `count`.")
        return self


class SplitsConfig(Section):
    calibration: HeldOutSplit = HeldOutSplit(fraction=0.15)
    test: HeldOutSplit = HeldOutSplit(fraction=0.2)
    initial: InitialSplit = InitialSplit()
    minimum_units: Positive = 10
    """Independent units with masks that a held-out split needs before its first version; until then it is
    open, and no model is measured on it."""
    every_class: bool = True
    """Whether each class must be in a mask of a held-out split before its first version, apart from
    `data.absent_classes`."""
    seed: Seed = 0
