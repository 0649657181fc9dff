"""The project's settings: one YAML file, checked key by key, and hashed for provenance.

Every section is a frozen model that refuses unknown keys. An environment variable overrides a key:
`SEGCURATE_DATABASE__URL` is `database.url`. Paths are relative to the YAML file; `~` and `$NAME` in them are
replaced. The content hash of a section identifies the results that were computed with it.
"""

from pipeline.config.base import IGNORE, Fraction, Positive, Section, content_hash
from pipeline.config.data import ClassConfig, DataConfig, HeldOutSplit, InitialSplit, LabelFile, SplitsConfig
from pipeline.config.labeling import CvatConfig, LabelingConfig, LabelStudioConfig
from pipeline.config.learning import (
    CalibrationConfig,
    EvaluationConfig,
    LossConfig,
    ModelConfig,
    TrainingConfig,
    TransformConfig,
)
from pipeline.config.operation import NightlyConfig, RetrainConfig, ScaleConfig
from pipeline.config.project import DatabaseConfig, ProjectConfig
from pipeline.config.scoring import (
    LOGIT_MEASURES,
    SAMPLED_MEASURES,
    HeatmapConfig,
    HeatmapSize,
    Measure,
    RegionConfig,
    Resolution,
    Sampler,
    ScoringConfig,
    ViewsConfig,
)
from pipeline.config.selection import ExportConfig, SelectionConfig

__all__ = [
    "IGNORE",
    "LOGIT_MEASURES",
    "SAMPLED_MEASURES",
    "CalibrationConfig",
    "ClassConfig",
    "CvatConfig",
    "DataConfig",
    "DatabaseConfig",
    "EvaluationConfig",
    "ExportConfig",
    "Fraction",
    "HeatmapConfig",
    "HeatmapSize",
    "HeldOutSplit",
    "InitialSplit",
    "LabelFile",
    "LabelStudioConfig",
    "LabelingConfig",
    "LossConfig",
    "Measure",
    "ModelConfig",
    "NightlyConfig",
    "Positive",
    "ProjectConfig",
    "RegionConfig",
    "Resolution",
    "RetrainConfig",
    "Sampler",
    "ScaleConfig",
    "ScoringConfig",
    "Section",
    "SelectionConfig",
    "SplitsConfig",
    "TrainingConfig",
    "TransformConfig",
    "ViewsConfig",
    "content_hash",
]
