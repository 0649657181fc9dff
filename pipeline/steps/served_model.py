"""A stored model, ready to predict: the one way from a row of `model` to a predictor."""

from __future__ import annotations

from pathlib import Path

import torch
from sqlalchemy.orm import Session

from db.queries import evaluations
from db.queries import models as model_queries
from db.queries.models import list_models
from db.tables import Model
from pipeline.calibration.calibrators import Calibrators, Identity, calibrator_from
from pipeline.config import ProjectConfig, Resolution, Sampler
from pipeline.data.project import Project
from pipeline.errors import CheckpointError, ConfigError, UserError
from pipeline.model.checkpoints import CARD_FILE, ModelCard, load_model
from pipeline.model.device import pick_device
from pipeline.uncertainty.network import ScoringNetwork
from pipeline.uncertainty.predictor import Predictor
from pipeline.uncertainty.samplers import Member, Normalisation


def judged_samplers(config: ProjectConfig) -> tuple[Sampler, ...]:
    """The samplers that every round calibrates and evaluates: none, MC dropout, and the configured one."""
    return tuple(dict.fromkeys(("none", "mc_dropout", config.scoring.sampler)))


def offered_samplers(config: ProjectConfig, card: ModelCard) -> tuple[Sampler, ...]:
    """Every sampler that a model can be asked for, as it was trained and as the project is configured."""
    offered: list[Sampler] = ["none", "mc_dropout", "tta"]
    if card.model.heads >= 2:
        offered.append("head_ensemble")
    if config.scoring.ensemble:
        offered.append("ensemble")
    return tuple(offered)


def model_to_judge(session: Session, name: str | None) -> Model:
    """The model of this name; without a name the promoted one, or the newest trained one where none is.

    Raises:
        UserError: there is no such model, or its training has not ended.
    """
    models = [model for model in list_models(session) if model.status != "training"]
    if name is not None:
        models = [model for model in models if model.name == name]
    if not models:
        raise UserError(
            "No model has been trained yet." if name is None else f"There is no trained model `{name}`.",
            "Run `segcurate train`." if name is None else "`segcurate models` lists them.",
        )
    return (model_queries.promoted_model(session) if name is None else None) or models[-1]


def stored_calibrators(session: Session, model_id: int, *, sampler: Sampler) -> Calibrators:
    """The calibrators of a model for one sampler; identities where none are stored."""
    stored = evaluations.model_calibrations(session, model_id)
    deterministic, sampled = (
        calibrator_from(stored[name].calibrator, stored[name].parameters) if name in stored else Identity()
        for name in ("none", sampler)
    )
    passed = sampler in stored and stored[sampler].passed
    return Calibrators(deterministic=deterministic, sampled=sampled, passed=passed)


def open_predictor(
    project: Project,
    model: Model,
    *,
    calibrators: Calibrators,
    sampler: Sampler | None = None,
    for_scores: bool = False,
) -> tuple[Predictor, ModelCard]:
    """Load a stored model onto the project's device, and with `ensemble` the models beside it.

    Every fourth pixel is enough for the mean of a region, but makes a blurred mask: what is shown to people,
    or compared with masks, is predicted at the network's own resolution.

    Args:
        model: its row.
        calibrators: of the model, for this sampler; identities for uncalibrated scores.
        sampler: instead of `scoring.sampler`.
        for_scores: predict at `scoring.resolution`, even where it is coarser than the network's own.

    Raises:
        CheckpointError: a checkpoint cannot be loaded, or has other classes than the project.
        UserError: the device does not exist.
        ConfigError: the model cannot be asked for this sampler.
    """
    scoring = project.config.scoring
    if sampler is not None and sampler != scoring.sampler:
        scoring = scoring.model_copy(update={"sampler": sampler})
    if scoring.resolution == "quarter" and not for_scores:
        scoring = scoring.model_copy(update={"resolution": "logits"})
    device = pick_device(project.config.device)
    segmenter, card = load_model(
        project.path(model.checkpoint_uri), device=device, class_names=project.config.data.class_names
    )
    members: list[Member] = []
    if scoring.sampler == "ensemble":
        members = [
            _load_member(folder, serving=card, resolution=scoring.resolution, device=device)
            for folder in ensemble_folders(project, model)
        ]
    predictor = Predictor(
        segmenter,
        scoring=scoring,
        calibrators=calibrators,
        device=device,
        normalisation=_normalisation(card),
        input_scale=card.input_scale,
        members=members,
    )
    return predictor, card


def ensemble_folders(project: Project, model: Model) -> list[Path]:
    """The folders of the checkpoints that `scoring.ensemble` names beside a model, in its order; the model
    itself is left out. A name is a model of this project, or else the path of a folder.

    Raises:
        ConfigError: a name is no model and no checkpoint, or comes twice, or no other model is left.
    """
    own = project.path(model.checkpoint_uri).resolve()
    folders: list[Path] = []
    for name in project.config.scoring.ensemble:
        beside = own.parent / name
        folder = (beside if (beside / CARD_FILE).is_file() else project.path(name)).resolve()
        if not (folder / CARD_FILE).is_file():
            known = sorted(path.parent.name for path in own.parent.glob(f"*/{CARD_FILE}"))
            raise ConfigError(
                f"`scoring.ensemble` names {name!r}, which is neither a model of this project nor the folder "
                "of a checkpoint.",
                f"The project's models are {', '.join(known)}.",
            )
        if folder in folders:
            raise ConfigError(f"`scoring.ensemble` names {name!r} twice.", "Name each model once.")
        folders.append(folder)
    others = [folder for folder in folders if folder != own]
    if not others:
        raise ConfigError(
            f"`scoring.ensemble` names no other model than {model.name} itself.",
            "Name at least one other model, or the folder of its checkpoint.",
        )
    return others


def _load_member(folder: Path, *, serving: ModelCard, resolution: Resolution, device: torch.device) -> Member:
    segmenter, card = load_model(folder, device=device, class_names=serving.class_names)
    if card.channels != serving.channels:
        raise CheckpointError(
            f"The checkpoint {folder} takes images of {card.channels} channels, the serving model of "
            f"{serving.channels}.",
            "Take it out of `scoring.ensemble`.",
        )
    return Member(
        network=ScoringNetwork(segmenter, resolution=resolution, device=device),
        normalisation=_normalisation(card),
        input_scale=card.input_scale,
        weights=card.weights_sha256,
    )


def _normalisation(card: ModelCard) -> Normalisation:
    return Normalisation(mean=tuple(card.mean), std=tuple(card.std))
