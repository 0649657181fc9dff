"""A project's YAML file, read and checked as a whole."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import Field, ValidationError, field_serializer, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from pipeline.config.base import Section
from pipeline.config.data import DataConfig, SplitsConfig
from pipeline.config.errors import explain, explain_yaml
from pipeline.config.labeling import LabelingConfig
from pipeline.config.learning import CalibrationConfig, EvaluationConfig, ModelConfig, TrainingConfig
from pipeline.config.operation import NightlyConfig, RetrainConfig, ScaleConfig
from pipeline.config.scoring import SAMPLED_MEASURES, ScoringConfig
from pipeline.config.selection import ExportConfig, SelectionConfig
from pipeline.data.remote import ImageCache, ImageFile, RemoteFile, canonical, is_remote
from pipeline.errors import ConfigError

CONFIG_FILE = "segcurate.yaml"


class DatabaseConfig(Section):
    url: Annotated[str, Field(repr=False)] = "sqlite:///.segcurate/segcurate.db"
    """Where the project is remembered. A relative SQLite path is relative to this file. A password is better
    given as the environment's `SEGCURATE_DATABASE__URL`, or in `~/.pgpass`; in a URL, `%40` stands for @."""

    @field_serializer("url", when_used="json")
    def mask(self, url: str) -> str:
        """What is shown or written down holds no password."""
        from db.engine import masked  # alembic takes a while

        return masked(url)


class ProjectConfig(BaseSettings):
    """One project."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,  # it may hold a password
        env_prefix="SEGCURATE_",
        env_nested_delimiter="__",
        use_attribute_docstrings=True,
    )

    name: Annotated[str, Field(min_length=1, max_length=200)]
    workdir: str = ".segcurate"
    """Checkpoints, labels, heat maps and reports."""
    device: str = "auto"
    """`auto` (CUDA where there is some, else the CPU; `segcurate score` uses every GPU), `cpu`, `cuda` or
    `cuda:1`."""
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
    labeling: LabelingConfig = LabelingConfig()
    nightly: NightlyConfig = NightlyConfig()
    retrain: RetrainConfig = RetrainConfig()
    scale: ScaleConfig = ScaleConfig()

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
        if self.selection.strategy in SAMPLED_MEASURES and self.scoring.sampler == "none":
            raise ValueError(f"`selection.strategy: {self.selection.strategy}` needs a `scoring.sampler`.")
        if self.scoring.sampler == "head_ensemble" and self.model.heads < 2:
            raise ValueError("`scoring.sampler: head_ensemble` needs `model.heads` of at least 2.")
        if self.scale.engine == "ray" and not self.database.url.startswith("postgresql"):
            raise ValueError("`scale.engine: ray` needs a PostgreSQL `database.url` that all machines reach.")
        return self


@dataclass(frozen=True)
class Project:
    """A configuration, the folder that its paths are relative to, and the file that it was read from."""

    config: ProjectConfig
    root: Path
    file: Path | None = None

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
        """The file on this machine behind a URI of the store, or behind a path of the configuration.

        Raises:
            ConfigError: it is in an object store.
        """
        if is_remote(uri):
            raise ConfigError(
                f"{uri} is in an object store, where only `data.images` may lie.",
                "Copy it to a folder, or mount it, and name that.",
            )
        return self.root / uri

    def image(self, uri: str) -> ImageFile:
        """The image behind a URI of the store, or behind an entry of `data.images`."""
        if not is_remote(uri):
            return self.root / uri
        data = self.config.data
        limit = int(data.cache_gib * 2**30)
        return RemoteFile(canonical(uri), ImageCache(self.workdir / "cache", limit, data.storage_options))

    def uri(self, file: ImageFile) -> str:
        """A file as the store calls it: relative to the project's folder where it lies inside it."""
        if isinstance(file, RemoteFile):
            return file.uri
        absolute = Path(os.path.abspath(file))
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
        raise ConfigError(f"{path} is not valid YAML: {explain_yaml(error)}.", "Mend that line.") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path} holds no settings.", "Run `segcurate init` to write one.")
    try:
        config = ProjectConfig(**{str(key): value for key, value in document.items()})
    except ValidationError as error:
        raise ConfigError(f"{path} is not valid:\n{explain(error, ProjectConfig)}") from error
    except ValueError as error:  # pydantic-settings: an override that is not JSON where JSON is needed
        raise ConfigError(f"An environment override of {path} is not valid: {error}") from error
    file = Path(os.path.abspath(path))
    return Project(config=config, root=file.parent, file=file)
