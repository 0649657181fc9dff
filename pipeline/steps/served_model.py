"""Which stored model a step uses, its calibrators, and the samplers that it offers."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy.orm import Session

from db.queries import evaluations
from db.queries import models as model_queries
from db.tables import Model, Round
from pipeline.calibration.calibrators import Calibrators, Identity, calibrator_from
from pipeline.config import ProjectConfig, Sampler
from pipeline.errors import UserError
from pipeline.model.checkpoints import ModelCard
from pipeline.summaries.models import model_confidence


def evaluated_samplers(config: ProjectConfig) -> tuple[Sampler, ...]:
    """The samplers that every round calibrates and evaluates: none, MC dropout, and the configured one."""
    return tuple(dict.fromkeys(("none", "mc_dropout", config.scoring.sampler)))


def offered_samplers(config: ProjectConfig, card: ModelCard) -> tuple[Sampler, ...]:
    """Every sampler that a model offers, as it was trained and as the project is configured."""
    offered: list[Sampler] = ["none", "mc_dropout", "tta"]
    if card.model.heads >= 2:
        offered.append("head_ensemble")
    if config.scoring.ensemble:
        offered.append("ensemble")
    return tuple(offered)


def chosen_model(session: Session, name: str | None) -> Model:
    """The model of this name; without a name the promoted one, or the newest trained one where none is.

    Raises:
        UserError: there is no such model, or its training has not ended.
    """
    models = [model for model in model_queries.list_models(session) if model.status != "training"]
    if name is not None:
        models = [model for model in models if model.name == name]
    if not models:
        raise UserError(
            "No model has been trained yet." if name is None else f"There is no trained model `{name}`.",
            "Run `segcurate train`." if name is None else "`segcurate models` lists them.",
        )
    return (model_queries.promoted_model(session) if name is None else None) or models[-1]


def model_of_round(session: Session, current: Round) -> Model:
    """The model that the current round has trained.

    Raises:
        UserError: there is none.
    """
    model = model_queries.round_model(session, current.id)
    if model is None or model.status == "training":
        raise UserError(f"Round {current.number} has no trained model.", "Run `segcurate train`.")
    return model


def stored_calibrators(session: Session, model_id: int, *, sampler: Sampler) -> Calibrators:
    """The calibrators of a model for one sampler; identities where none are stored."""
    stored = evaluations.model_calibrations(session, model_id)
    deterministic, sampled = (
        calibrator_from(stored[name].calibrator, stored[name].parameters) if name in stored else Identity()
        for name in ("none", sampler)
    )
    return Calibrators(
        deterministic=deterministic,
        sampled=sampled,
        confidence=model_confidence(session, model_id, sampler=sampler),
    )


def sampler_calibrators(
    session: Session, model_id: int, samplers: Iterable[Sampler]
) -> dict[Sampler, Calibrators]:
    """The calibrators of a model for each of several samplers."""
    return {sampler: stored_calibrators(session, model_id, sampler=sampler) for sampler in samplers}
