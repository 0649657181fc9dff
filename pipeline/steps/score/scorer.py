"""The scorer: the serving model as it scores, and all that its scores depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from db.engine import Database
from pipeline.calibration.calibrators import Calibrators
from pipeline.config import SAMPLED_MEASURES, ScoringConfig, content_hash
from pipeline.data.project import Project
from pipeline.errors import ConfigError
from pipeline.model.checkpoints import ModelCard
from pipeline.steps.ready import serving_model
from pipeline.steps.served_model import stored_calibrators
from pipeline.uncertainty.samplers import Member
from pipeline.uncertainty.served_model import ServedModel, open_model


@dataclass(frozen=True)
class Scorer:
    """The serving model on this process's device.

    Attributes:
        document: all that its scores depend on, as `scoring_run.scorer` keeps it.
    """

    model_id: int
    model_name: str
    model: ServedModel
    document: dict[str, Any]

    @property
    def hash(self) -> str:
        """The provenance of every row that it writes."""
        return content_hash(self.document)


def open_scorer(project: Project, database: Database) -> Scorer:
    """Load the serving model as `scoring` wants it.

    Raises:
        UserError: no model has been promoted, or it cannot be loaded.
        ConfigError: heat maps are wanted of a measure that needs samples, and there are none.
    """
    scoring = project.config.scoring
    _check_heatmaps(scoring)
    with database.session(write=False) as session:
        model = serving_model(session)
        calibrators = stored_calibrators(session, model.id, sampler=scoring.sampler)
    served = open_model(project, model.checkpoint_uri, calibrators=calibrators, for_scores=True)
    document = describe_scorer(
        scoring,
        card=served.card,
        calibrators=calibrators,
        members=served.predictor.members,
        cached=served.predictor.cache is not None,
    )
    if project.config.selection.cost_power:
        document["borders"] = "length"  # earlier versions did not measure them
    return Scorer(model_id=model.id, model_name=model.name, model=served, document=document)


def describe_scorer(
    scoring: ScoringConfig,
    *,
    card: ModelCard,
    calibrators: Calibrators,
    members: Sequence[Member] = (),
    cached: bool = False,
) -> dict[str, Any]:
    """All that a score depends on. Its content hash is the provenance of each row.

    Args:
        members: the other networks, with the sampler `ensemble`.
        cached: the encoder's maps come from files.
    """
    calibrator = calibrators.deterministic
    document: dict[str, Any] = {
        "weights": card.weights_sha256,
        "mean": card.mean,
        "std": card.std,
        "input_scale": card.input_scale,
        "calibrator": {"name": calibrator.name, **calibrator.parameters},
        **scoring.provenance(),
    }
    if scoring.sampler != "none":
        sampled = calibrators.sampled
        document["sampled_calibrator"] = {"name": sampled.name, **sampled.parameters}
    if scoring.sampler == "mc_dropout":
        document["dropout"] = card.model.dropout
        document["placement"] = card.model.placement
    if scoring.sampler == "head_ensemble":
        document["heads"] = card.model.heads
    if scoring.sampler == "ensemble":
        document["members"] = [
            {"weights": member.weights, "input_scale": member.input_scale}
            | {"mean": list(member.normalisation.mean), "std": list(member.normalisation.std)}
            for member in members
        ]
    if cached:
        document["encoder_maps"] = "float16"
    return document


def _check_heatmaps(scoring: ScoringConfig) -> None:
    missing = SAMPLED_MEASURES & set(scoring.heatmaps.maps)
    if scoring.sampler == "none" and missing and scoring.heatmaps.images != "none":
        raise ConfigError(
            f"`scoring.heatmaps` asks for {', '.join(sorted(missing))}, which needs samples.",
            "Set `scoring.sampler: mc_dropout`, or take it out of `measures` and `two_colour`.",
        )
