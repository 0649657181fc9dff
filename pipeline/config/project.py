"""All settings of a project, checked as a whole."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, field_serializer, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from pipeline.config.base import Documented, FilePath, Section, expanded
from pipeline.config.data import DataConfig, SplitsConfig
from pipeline.config.labeling import LabelingConfig
from pipeline.config.learning import CalibrationConfig, EvaluationConfig, ModelConfig, TrainingConfig
from pipeline.config.operation import NightlyConfig, RetrainConfig, ScaleConfig
from pipeline.config.scoring import SAMPLED_MEASURES, ScoringConfig
from pipeline.config.selection import ExportConfig, SelectionConfig

PREFIX, NESTED = "SEGCURATE_", "__"
"""Of an environment variable that overrides a key."""
SQLITE = "sqlite:///"


class DatabaseConfig(Section):
    url: Annotated[str, Field(repr=False)] = "sqlite:///.segcurate/segcurate.db"
    """The project's database. A relative SQLite path is relative to this file. Put a password into the
    environment, as `SEGCURATE_DATABASE__URL`, or in `~/.pgpass`; in a URL, `%40` stands for @
    and `%3F` for ?."""

    @field_validator("url")
    @classmethod
    def _expands_a_file(cls, url: str) -> str:
        """Replace `~` and variables in an SQLite path; the address of a server may contain a password."""
        return SQLITE + expanded(url.removeprefix(SQLITE)) if url.startswith(SQLITE) else url

    @field_serializer("url", when_used="json")
    def mask(self, url: str) -> str:
        """The URL without its password, for output and stored documents."""
        from db.engine import masked  # alembic takes a while

        return masked(url)


class ProjectConfig(Documented, BaseSettings):
    """One project."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,  # it may contain a password
        env_prefix=PREFIX,
        env_nested_delimiter=NESTED,
    )

    name: Annotated[str, Field(min_length=1, max_length=200)]
    workdir: FilePath = ".segcurate"
    """Checkpoints, labels, heat maps and reports."""
    device: str = "auto"
    """`auto` (CUDA where it is available, else the CPU; `segcurate score` uses every GPU), `cpu`, `cuda` or
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
        if self.selection.audit_training == "always" and self.calibration.source == "audit":
            raise ValueError(
                "`calibration.source: audit` needs audit regions that no model is trained on: "
                "`selection.audit_training` must be `auto` or `never`."
            )
        if self.data.num_classes == 2 and "max_logit_norm" in self.scoring.heatmaps.measures:
            raise ValueError(
                "`scoring.heatmaps.measures`: `max_logit_norm` is the same at every pixel of two classes; "
                "use `max_logit`."
            )
        if self.scoring.sampler == "head_ensemble" and self.model.heads < 2:
            raise ValueError("`scoring.sampler: head_ensemble` needs `model.heads` of at least 2.")
        if self.scale.engine == "ray" and not self.database.url.startswith("postgres"):
            raise ValueError("`scale.engine: ray` needs a PostgreSQL `database.url` that all machines reach.")
        return self
