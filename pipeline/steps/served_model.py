"""The calibrators of a stored model, and the samplers that it offers. Which model it is: `steps.ready`."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy.orm import Session

from db.queries import evaluations
from pipeline.calibration.calibrators import Calibrators, Identity, calibrator_from
from pipeline.config import ProjectConfig, Sampler
from pipeline.model.checkpoints import ModelCard
from pipeline.summaries.models import model_confidence


def offered_samplers(config: ProjectConfig, card: ModelCard) -> tuple[Sampler, ...]:
    """Every sampler that a model offers, as it was trained and as the project is configured."""
    offered: list[Sampler] = ["none", "mc_dropout", "tta"]
    if card.model.heads >= 2:
        offered.append("head_ensemble")
    if config.scoring.ensemble:
        offered.append("ensemble")
    return tuple(offered)


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
