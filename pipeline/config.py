"""The project's settings: one YAML file, checked key by key, and hashed for provenance.

Every section is a frozen model that refuses unknown keys. An environment variable overrides a key:
`SEGCURATE_DATABASE__URL` is `database.url`. Paths are relative to the YAML file. The content hash of a
section names everything that was made under it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from pipeline.config_errors import explain
from pipeline.errors import ConfigError

CONFIG_FILE = "segcurate.yaml"
IGNORE = 255
"""The class index of a pixel without a label, in every mask that segcurate writes."""

Measure = Literal[
    "least_confidence",
    "margin",
    "entropy",
    "expected_entropy",
    "mutual_information",
    "energy",
    "max_logit",
]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """A part of the configuration: frozen, and without room for a typing error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def content_hash(self) -> str:
        """SHA-256 of the section's canonical JSON, as 64 hex digits."""
        return content_hash(self.model_dump(mode="json"))


def content_hash(document: Any) -> str:
    """SHA-256 of a JSON document with sorted keys, as 64 hex digits.

    >>> content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    True
    """
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


class DatabaseConfig(Section):
    url: str = "sqlite:///.segcurate/segcurate.db"
    """Where the project is remembered. A relative SQLite path is relative to this file."""


class ClassConfig(Section):
    name: Annotated[str, Field(min_length=1, max_length=100)]
    id: Annotated[int, Field(ge=0, le=65535)] | None = None
    """The value of this class in index masks; its position in the list where it is not given."""
    color: tuple[int, int, int] | None = None
    """Red, green, blue (0 to 255): how RGB masks spell the class, and how pictures show it."""

    @field_validator("color")
    @classmethod
    def _in_range(cls, color: tuple[int, int, int] | None) -> tuple[int, int, int] | None:
        if color is not None and not all(0 <= value <= 255 for value in color):
            raise ValueError(f"Expected three numbers from 0 to 255, but got {list(color)}.")
        return color


class DataConfig(Section):
    images: Annotated[list[str], Field(min_length=1)]
    """Folders (searched with their subfolders), globs, or single files."""
    masks: str | None = None
    """The folder of the masks that exist already."""
    mask_template: str = "{parent}/{stem}.png"
    """The mask of an image inside `masks`: `{parent}` is the image's folder below its image folder,
    `{stem}` its name without the ending, `{name}` its name with it."""
    mask_encoding: Literal["auto", "index", "palette", "rgb"] = "auto"
    """`index`: the pixel value is the class id. `palette`: the same, in a PNG with a palette. `rgb`: the
    pixel's colour is the class's colour. `auto`: by the file."""
    classes: Annotated[list[ClassConfig], Field(min_length=2, max_length=255)]
    """The classes, as names or as `{name, id, color}`."""
    ignore_index: list[Annotated[int, Field(ge=0, le=65535)]] = [IGNORE]
    """The values of an index mask that mean "not labeled"."""
    ignore_color: list[tuple[int, int, int]] = []
    """The colours of an RGB mask that mean "not labeled"."""
    channels: Annotated[int, Field(ge=1, le=64)] = 3
    """Channels that the model sees. A grey image is repeated for 3; any other difference is an error."""
    group_regex: str | None = None
    """A regular expression searched in the image's path; its first capture group (or the whole match) names
    the sequence, patient, site or tile source. Without it, each folder is a group."""
    group_csv: str | None = None
    """A CSV with the columns `image,group` and, optionally, `position`."""
    position_regex: str | None = None
    """Its first capture group is the image's position in its sequence, as a number. Without it, the natural
    order of names."""
    max_pixels: Positive = 200_000_000
    """A larger image is refused before it is decoded."""

    @field_validator("images", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

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

    @field_validator("mask_template")
    @classmethod
    def _formats(cls, value: str) -> str:
        try:
            value.format(parent="a", stem="b", name="b.png")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError("Only {parent}, {stem} and {name} may stand in braces.") from error
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

    @property
    def class_names(self) -> list[str]:
        """Names in the order of class indices."""
        return [item.name for item in self.classes]

    @property
    def num_classes(self) -> int:
        return len(self.classes)


class HeldOutSplit(Section):
    """Which images are held out. Exactly one of `list`, `folder` and `fraction`."""

    list: str | None = None
    """A text file with one image path a line, relative to this file or to an image folder."""
    folder: str | None = None
    """A glob on the image's path relative to this file, such as `images/val/*`."""
    fraction: Fraction | None = None
    """A share of the groups, or of the blocks, drawn with `splits.seed`."""
    by: Literal["group", "block"] = "group"
    """What `fraction` draws: whole groups, or blocks of neighbours within each sequence."""
    block: Positive = 10
    """Images in a block."""
    guard: Annotated[int, Field(ge=0)] = 1
    """Images on each side of a held-out block that belong to no split, because they look like it."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(value is not None for value in (self.list, self.folder, self.fraction)) != 1:
            raise ValueError("Give exactly one of `list`, `folder` and `fraction`.")
        return self


class InitialSplit(Section):
    """The first labeled set: pool images, or regions of them, whose existing masks count as labels.

    At most one of `list`, `folder`, `fraction` and `count`; without any, every pool image that has a mask.
    """

    list: str | None = None
    folder: str | None = None
    fraction: Fraction | None = None
    """A share of the pool's images, or of its regions, drawn with `splits.seed` among those with a mask."""
    count: Positive | None = None
    """The same as a number."""
    unit: Literal["image", "region"] = "image"
    """`region`: cells of `scoring.regions`."""

    @model_validator(mode="after")
    def _at_most_one(self) -> Self:
        if sum(value is not None for value in (self.list, self.folder, self.fraction, self.count)) > 1:
            raise ValueError("Give at most one of `list`, `folder`, `fraction` and `count`.")
        return self


class SplitsConfig(Section):
    calibration: HeldOutSplit = HeldOutSplit(fraction=0.15)
    test: HeldOutSplit = HeldOutSplit(fraction=0.2)
    initial: InitialSplit = InitialSplit()
    seed: int = 0


class ModelConfig(Section):
    architecture: Literal[
        "unet",
        "unetplusplus",
        "manet",
        "linknet",
        "fpn",
        "pspnet",
        "deeplabv3",
        "deeplabv3plus",
        "pan",
        "upernet",
        "segformer",
        "dpt",
    ] = "fpn"
    encoder: str = "resnet34"
    """An encoder of segmentation-models-pytorch; `tu-` before a timm name."""
    encoder_weights: str = "imagenet"
    """`imagenet` (downloaded), `none`, or the path of a safetensors file."""
    decoder: dict[str, Any] = {}
    """Further arguments of the decoder, such as `decoder_pyramid_channels: 64`."""
    dropout: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Probability that a channel is dropped on the segmentation path."""
    freeze_encoder: bool = False
    mean: Annotated[list[float], Field(min_length=1)] | None = None
    """A value a channel, of pixels in 0 to 1; the encoder's own where it is not given."""
    std: Annotated[list[float], Field(min_length=1)] | None = None
    input_scale: Annotated[float, Field(gt=0, le=4)] = 1.0
    """Images are resized by this factor before the network sees them. Regions stay in image pixels."""


class LossConfig(Section):
    cross_entropy: Annotated[float, Field(ge=0)] = 1.0
    dice: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the Dice loss. It harms calibration (Mehrtash et al. 2020)."""
    class_weights: Literal["none", "balanced"] | list[Annotated[float, Field(ge=0)]] = "none"
    """`balanced`: inverse square root of the labeled pixels of a class, mean 1; or a number a class."""

    @model_validator(mode="after")
    def _some_loss(self) -> Self:
        if self.cross_entropy + self.dice == 0:
            raise ValueError("`cross_entropy` and `dice` are both 0: nothing to learn from.")
        return self


class TransformConfig(Section):
    name: str
    """A transform of albumentations."""
    model_config = ConfigDict(frozen=True, extra="allow")


class TrainingConfig(Section):
    iterations: Positive = 2000
    batch_size: Positive = 8
    crop: tuple[Positive, Positive] = (256, 256)
    """Height and width of a training crop, in pixels of the resized image."""
    centre_on_labels: bool = True
    """Crops are centred on labeled regions, so that a small label is seen as often as a large one."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    encoder_learning_rate_factor: Annotated[float, Field(gt=0)] = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    loss: LossConfig = LossConfig()
    transforms: list[TransformConfig] = [TransformConfig(name="HorizontalFlip")]
    """Albumentations transforms, in order, each `{name: …, argument: value}`."""
    warm_start: bool = False
    """Start from the last promoted model instead of from `model.encoder_weights`."""
    mixed_precision: bool = True
    """Autocast on CUDA. The CPU always trains in float32."""
    workers: Annotated[int, Field(ge=0)] = 0
    checkpoint_every: Positive = 200
    """Iterations between two resumable checkpoints."""
    seed: int = 0


class CalibrationConfig(Section):
    calibrator: Literal["identity", "temperature"] = "temperature"
    pixels_per_image: Positive = 2000
    """Labeled pixels drawn from each calibration image for the fit."""


class EvaluationConfig(Section):
    bins: Annotated[int, Field(ge=2, le=1000)] = 15
    """Bins of the expected calibration error; a divisor of 150, whose linear bins are kept."""
    resamples: Annotated[int, Field(ge=100)] = 2000
    confidence: Fraction = 0.95
    block: Positive = 10
    """Neighbouring images of a sequence that the bootstrap draws together."""
    promote_tolerance: Annotated[float, Field(ge=0)] = 0.0
    """How much mIoU a new model may lose, beyond its interval, and still be promoted."""

    @field_validator("bins")
    @classmethod
    def _divides(cls, value: int) -> int:
        if 150 % value:
            raise ValueError(f"Expected a divisor of 150 (5, 10, 15, 25, 30, …), but got {value}.")
        return value


class RegionConfig(Section):
    kind: Literal["grid", "image"] = "grid"
    cell: Annotated[int, Field(ge=8)] = 64
    """Side of a grid cell in image pixels. The last row and column are cut, or joined to the one before
    them where less than half a cell is left."""


class HeatmapConfig(Section):
    measures: list[Measure] = ["entropy"]
    per_class: bool = False
    """Also one map a class: its calibrated probability."""
    images: Literal["none", "top", "all"] = "top"
    """Which images get heat maps when they are scored."""
    top: Positive = 50
    """With `top`: the images with the highest `entropy`."""


class ScoringConfig(Section):
    sampler: Literal["none", "mc_dropout"] = "mc_dropout"
    samples: Annotated[int, Field(ge=2, le=1000)] = 20
    """Dropout samples T. 8 are enough for entropy; mutual information wants 20."""
    regions: RegionConfig = RegionConfig()
    resolution: Literal["logits", "full"] = "logits"
    """Where measures are computed: at the network's own stride, or at every pixel."""
    batch_size: Positive = 8
    tile: Annotated[int, Field(ge=64)] = 1024
    """A larger image is scored in tiles of this side, in pixels of the resized image."""
    overlap: Annotated[int, Field(ge=0)] = 128
    """How far neighbouring tiles reach into each other; they are blended there."""
    shard_images: Positive = 256
    """Images in a shard: what is committed, and repeated after a kill, together."""
    workers: Annotated[int, Field(ge=0)] = 1
    keep_regions: Literal["all"] | Positive = "all"
    """Region rows kept of each image and predicted class, by entropy."""
    heatmaps: HeatmapConfig = HeatmapConfig()
    seed: int = 0

    @model_validator(mode="after")
    def _overlap_fits(self) -> Self:
        if self.overlap * 2 > self.tile:
            raise ValueError(f"`overlap` {self.overlap} is more than half of `tile` {self.tile}.")
        return self


class SelectionConfig(Section):
    strategy: Literal[
        "random",
        "class_random",
        "strided",
        "least_confidence",
        "margin",
        "entropy",
        "mutual_information",
        "stratified",
    ] = "stratified"
    unit: Literal["region", "image"] = "region"
    budget: Positive = 100
    budget_unit: Literal["regions", "images"] | None = None
    """What `budget` counts: `regions` with unit `region` by default, `images` with unit `image`. `images`
    with unit `region` means as many regions as that many average images have."""
    audit_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the queue that is drawn uniformly at random: the only unbiased look at the pool."""
    per_image_cap: Annotated[float, Field(gt=0)] | None = 0.25
    """Regions of one image in a queue: a share of its regions below 1, a number from 1 on. null: no cap."""
    no_touching: bool = True
    """No two queued regions of an image share an edge."""
    min_gap: Annotated[int, Field(ge=0)] = 0
    """Positions of a sequence between two queued images."""
    noise_beta: Annotated[float, Field(gt=0)] | None = None
    """Power noise: log score + Gumbel/β. null: none. Larger is less noise (Kirsch et al. 2023)."""
    seed: int = 0

    @model_validator(mode="after")
    def _budget_unit_fits(self) -> Self:
        if self.unit == "image" and self.budget_unit == "regions":
            raise ValueError("`budget_unit: regions` needs `unit: region`.")
        return self


class ExportConfig(Section):
    folder: str = "queues"
    """Where queues are exported, a folder each."""
    images: Literal["link", "copy"] = "link"
    """`link`: a symbolic link to each image, or a copy where links are not possible."""
    overlays: bool = True


class ProjectConfig(BaseSettings):
    """One project."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="SEGCURATE_",
        env_nested_delimiter="__",
        use_attribute_docstrings=True,
    )

    name: Annotated[str, Field(min_length=1, max_length=200)]
    workdir: str = ".segcurate"
    """Checkpoints, labels, heat maps and reports."""
    device: str = "auto"
    """`auto` (the first CUDA device, else the CPU), `cpu`, `cuda` or `cuda:1`."""
    database: DatabaseConfig = DatabaseConfig()
    data: DataConfig
    splits: SplitsConfig = SplitsConfig()
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    scoring: ScoringConfig = ScoringConfig()
    selection: SelectionConfig = SelectionConfig()
    export: ExportConfig = ExportConfig()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        weights = self.training.loss.class_weights
        if isinstance(weights, list) and len(weights) != self.data.num_classes:
            raise ValueError(
                f"`training.loss.class_weights` has {len(weights)} numbers "
                f"for {self.data.num_classes} classes."
            )
        for name in ("mean", "std"):
            values = getattr(self.model, name)
            if values is not None and len(values) != self.data.channels:
                raise ValueError(
                    f"`model.{name}` has {len(values)} numbers for {self.data.channels} channels."
                )
        if self.selection.strategy == "mutual_information" and self.scoring.sampler == "none":
            raise ValueError("`selection.strategy: mutual_information` needs `scoring.sampler: mc_dropout`.")
        return self


@dataclass(frozen=True)
class Project:
    """A configuration and the folder that its paths are relative to."""

    config: ProjectConfig
    root: Path

    @property
    def database_url(self) -> str:
        """`database.url`, with a relative SQLite path made absolute."""
        url = self.config.database.url
        prefix = "sqlite:///"
        if url.startswith(prefix) and not url.startswith(prefix + "/") and url != prefix + ":memory:":
            return prefix + str(self.root / url.removeprefix(prefix))
        return url

    @property
    def workdir(self) -> Path:
        return self.root / self.config.workdir

    def path(self, uri: str) -> Path:
        """The file behind a URI of the store, or behind a path of the configuration."""
        return self.root / uri

    def uri(self, path: Path) -> str:
        """A path as the store keeps it: relative to the project's folder where it lies inside it."""
        absolute = Path(os.path.abspath(path))
        if absolute.is_relative_to(self.root):
            return absolute.relative_to(self.root).as_posix()
        return absolute.as_posix()


def load_project(path: Path) -> Project:
    """Read and check a project's YAML, with the environment's overrides.

    Raises:
        ConfigError: the file is missing, is not YAML, or a key or value in it is wrong.
    """
    if not path.is_file():
        raise ConfigError(
            f"There is no configuration at {path}.",
            "Run `segcurate init`, or name one with `--config`.",
        )
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}", "Mend the line that it names.") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path} holds no settings.", "Run `segcurate init` to write one.")
    try:
        config = ProjectConfig(**{str(key): value for key, value in document.items()})
    except ValidationError as error:
        raise ConfigError(f"{path} is not valid:\n{explain(error, ProjectConfig)}") from error
    except ValueError as error:  # pydantic-settings: an override that is not JSON where JSON is needed
        raise ConfigError(f"An environment override of {path} is not valid: {error}") from error
    return Project(config=config, root=Path(os.path.abspath(path)).parent)
