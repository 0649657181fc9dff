"""Train: a network from every label in force, with its lineage."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sqlalchemy.orm import Session

from db.engine import Database
from db.queries import failures as failure_queries
from db.queries import models
from db.queries.models import TrainingImage
from db.tables import Model, utc_now
from pipeline import rounds
from pipeline.config import content_hash
from pipeline.data.images import probe_image
from pipeline.data.input_range import InputRange, pixel_statistics
from pipeline.data.labels import count_votes
from pipeline.data.loading import Unreadable, load_batches, network_size
from pipeline.data.project import Project
from pipeline.errors import ConfigError, DataError, UserError
from pipeline.files import file_sha256, require_space, writable_folder
from pipeline.format import agree
from pipeline.leases import one_at_a_time
from pipeline.model.build import build_segmenter, normalisation, read_tensors
from pipeline.model.checkpoints import (
    WEIGHTS_FILE,
    ModelCard,
    forget_resume,
    load_weights,
    read_card,
    save_model,
)
from pipeline.model.device import pick_device
from pipeline.model.encoder_cache import CachedEncoder, map_layouts
from pipeline.model.segmenter import Segmenter
from pipeline.progress import Progress, silent
from pipeline.steps.held_out import labels_to_train_on
from pipeline.training.dataset import LabeledImage, TrainingSet, read_masks
from pipeline.training.loop import Trained, train_segmenter
from pipeline.training.losses import class_weights
from pipeline.training.windows import WindowSet, check_windows

CHECKPOINT_SHARE = 4
"""Bytes on disk for a byte of weights: the model, and the resume file with both moments of AdamW."""
MOST_INSPECTED = 512
"""Training images whose pixels tell what the network has seen."""
RESULT_NEUTRAL = {"workers", "checkpoint_every"}
"""Training settings that do not change the weights."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Survey:
    """What the labels hold.

    Attributes:
        usable: images with at least one labeled pixel, whose files are there.
        pixels: labeled pixels of each class, [C]; one that annotators disagree on counts in parts.
        failures: file and reason of what was left out.
    """

    usable: list[TrainingImage]
    pixels: npt.NDArray[np.float64]
    failures: list[tuple[str, str]]


@dataclass(frozen=True)
class Plan:
    """All that decides the weights of a training, and the hashes that identify it.

    Attributes:
        parent: the model whose weights are the first ones; None for those of the configuration.
        config: everything besides the labels that decides the weights.
    """

    survey: Survey
    parent: Model | None
    config: dict[str, Any]
    config_hash: str
    labels_hash: str


@dataclass(frozen=True)
class TrainReport:
    """The model that was trained.

    Attributes:
        absent: classes that no label shows, although `data.absent_classes` does not list them.
    """

    model: Model
    absent: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The report as text."""
        model = self.model
        lines = [f"Trained {model.name}: {model.iterations} iterations, seed {model.seed}."]
        if self.absent:
            lines.append(
                f"warning: No label shows {', '.join(self.absent)}, so {model.name} never predicts "
                f"{agree(len(self.absent), 'it', 'them')}. Label images that show "
                f"{agree(len(self.absent), 'it', 'them')}."
            )
        return lines


@one_at_a_time("train")
def train(project: Project, database: Database, *, progress: Progress = silent) -> TrainReport:
    """Train the round's model, or go on with the training that was interrupted.

    A run goes on from its last checkpoint when neither settings nor labels have changed; otherwise it starts
    again. Files that cannot be read are recorded and left out; so are audit regions where
    `selection.audit_training` says so.

    Raises:
        NotYourTurn: another step comes next.
        UserError: there is no label to train on, or training cannot be done as configured.
    """
    with database.session(write=False) as session:
        name = f"r{rounds.require(session, 'train').number:02d}"
        labeled, held_out = labels_to_train_on(session, project)
        parent = models.promoted_model(session) if project.config.training.warm_start else None
    survey = survey_labels(project, labeled, progress=progress)
    plan = plan_training(project, survey, parent, **held_out)
    folder = project.workdir / "models" / name
    with database.session() as session:
        model = _start(session, project, plan, name=name, folder=folder)
    if model is None:
        raise _no_label(survey, labeled)
    digest, trained = fit(project, plan, folder=folder, title=f"train {name}", progress=progress)
    unreadable = [(project.uri(project.image(path)), why) for path, why in trained.unreadable.items()]
    with database.session() as session:
        model = session.merge(model)
        model.status = "trained"
        model.checkpoint_sha256 = digest
        model.finished_at = utc_now()
        failure_queries.record_failures(session, "train", unreadable)
        rounds.advance(session, rounds.require(session, "train"), "train")
    forget_resume(folder)
    return TrainReport(model, _absent(project, survey))


def _absent(project: Project, survey: Survey) -> tuple[str, ...]:
    data = project.config.data
    return tuple(
        name
        for name, pixels in zip(data.class_names, survey.pixels, strict=True)
        if not pixels and name not in data.absent_classes
    )


def check_training(project: Project, database: Database) -> None:
    """Find what would stop a training before its first iteration: settings, weights, labels, device, disk.

    Raises:
        UserError: what is missing.
    """
    with database.session(write=False) as session:
        labeled = models.training_labels(session)
        parent = models.promoted_model(session) if project.config.training.warm_start else None
    if not labeled:
        raise UserError(
            "There is no label to train on: no pool image has one.", "Import labels with `segcurate import`."
        )
    segmenter = _first_weights(project, parent)
    open_cache(project, segmenter, labeled, device=pick_device(project.config.device))
    size = sum(tensor.nbytes for tensor in segmenter.state_dict().values())
    require_space(writable_folder(project.workdir / "models"), CHECKPOINT_SHARE * size)


def weights_size(project: Project, parent: Model | None = None) -> int:
    """Bytes of the network's weights, after a look whether it can be built."""
    return sum(tensor.nbytes for tensor in _first_weights(project, parent).state_dict().values())


def fit(
    project: Project, plan: Plan, *, folder: Path, title: str, progress: Progress = silent
) -> tuple[str, Trained]:
    """Train a network as planned, or go on where `folder` has a part of the same training, and save it there
    with its card.

    Returns:
        SHA-256 of its weights, and what the run saw.

    Raises:
        UserError: training cannot be done as configured.
    """
    settings, survey = project.config.training, plan.survey
    segmenter, card = _prepare(project, plan)
    device = pick_device(project.config.device)
    cache = open_cache(project, segmenter, survey.usable, device=device)
    make_set = TrainingSet if cache is None else partial(WindowSet, cache=cache)
    trained = train_segmenter(
        segmenter,
        make_set(
            [_labeled(project, image) for image in survey.usable],
            config=settings,
            channels=card.channels,
            mean=card.mean,
            std=card.std,
            input_scale=card.input_scale,
            max_pixels=project.config.data.max_pixels,
        ),
        settings,
        class_weights=class_weights(settings.loss.class_weights, survey.pixels),
        device=device,
        folder=folder,
        identity=content_hash([plan.config_hash, plan.labels_hash]),
        title=title,
        progress=progress,
    )
    seen = _input_range(project, survey, card)
    card = card.model_copy(
        update={"metrics": {"training_loss": trained.loss}, "curve": trained.curve, "input_range": seen}
    )
    return save_model(folder, segmenter, card), trained


def open_cache(
    project: Project, segmenter: Segmenter, images: Sequence[TrainingImage], *, device: torch.device
) -> CachedEncoder | None:
    """The cache that the network is trained with; None where each crop is encoded.

    Raises:
        ConfigError: `model.cache_features: always` cannot be done.
    """
    model = project.config.model
    if not model.caches:
        return None
    sizes = [network_size(image.height, image.width, model.input_scale) for image in images]
    try:
        check_windows(segmenter, project.config.training, sizes, tile=project.config.scoring.tile)
        return CachedEncoder(segmenter, map_layouts(segmenter), project.encoder_maps, device=device)
    except ConfigError as error:
        if model.cache_features == "always":
            raise
        log.info("Training encodes each crop: %s", error)
        return None


def survey_labels(
    project: Project, labeled: Sequence[TrainingImage], *, progress: Progress = silent
) -> Survey:
    """Look at each label and at each image's header before the long run begins."""
    data = project.config.data
    usable: list[TrainingImage] = []
    failures: list[tuple[str, str]] = []
    pixels = np.zeros(data.num_classes)
    for done, image in enumerate(labeled, start=1):
        try:
            size = image.width, image.height
            probe_image(project.image(image.uri), max_pixels=data.max_pixels, size=size)
            masks = read_masks(_labeled(project, image), project.config.training.annotators)
            counts = count_votes(masks, data.num_classes)
        except DataError as error:
            failures.append((image.uri, str(error)))
            continue
        pixels += counts
        if counts.any():
            usable.append(image)
        progress("read labels", done, len(labeled))
    return Survey(usable=usable, pixels=pixels, failures=failures)


def hash_labels(project: Project, survey: Survey) -> str:
    """Content hash of the labels that are trained on."""
    latest = project.config.training.annotators == "latest"
    return content_hash(
        [
            [
                image.uri,
                *(
                    label.mask_sha256 if latest else [label.annotator, label.mask_sha256]
                    for label in image.labels
                ),
                *([part.x, part.y, part.w, part.h, part.outline] for part in image.held_out),
            ]
            for image in survey.usable
        ]
    )


def plan_training(project: Project, survey: Survey, parent: Model | None, **more: str) -> Plan:
    """The plan of a training with the project's settings.

    Args:
        more: entries of the plan's configuration that other plans do not have.
    """
    config = project.config
    pretrained = project.path(config.model.encoder_weights)
    decides = {
        "model": config.model.provenance(),
        "training": config.training.model_dump(mode="json", exclude=RESULT_NEUTRAL),
        "classes": [item.name for item in config.data.classes],
        "channels": config.data.channels,
        "parent": parent.checkpoint_sha256 if parent else None,
        "encoder_weights_sha256": file_sha256(pretrained)
        if parent is None and pretrained.is_file()
        else None,
        **more,
    }
    return Plan(survey, parent, decides, content_hash(decides), hash_labels(project, survey))


def _no_label(survey: Survey, labeled: Sequence[TrainingImage]) -> UserError:
    """The error where nothing of these labels can be trained on."""
    problem = "There is no label to train on: no pool image has a usable label"
    if survey.failures:
        remedy = "Import labels, or see `segcurate failures` for what could not be read."
    elif any(image.held_out for image in labeled):
        problem += " besides those of audit regions, which are not trained on"
        remedy = "Import labels with `segcurate import`, or set `selection.audit_training: always`."
    else:
        remedy = "Import labels with `segcurate import`."
    return UserError(f"{problem}.", remedy)


def _start(session: Session, project: Project, plan: Plan, *, name: str, folder: Path) -> Model | None:
    """Record what cannot be trained on, and the model that is about to be trained; None without a label."""
    current = rounds.require(session, "train")
    failure_queries.clear_failures(session, "train")
    failure_queries.record_failures(session, "train", plan.survey.failures)
    if not plan.survey.usable:
        return None
    return models.start_model(
        session,
        round_id=current.id,
        name=name,
        parent_id=plan.parent.id if plan.parent else None,
        checkpoint_uri=project.uri(folder),
        config=plan.config,
        config_hash=plan.config_hash,
        labels_hash=plan.labels_hash,
        seed=project.config.training.seed,
        iterations=project.config.training.iterations,
        label_ids=[label.id for image in plan.survey.usable for label in image.labels],
    )


def _first_weights(project: Project, parent: Model | None) -> Segmenter:
    """The network before its first iteration: with the parent's weights, or those of the configuration."""
    config = project.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        segmenter = build_segmenter(
            config.model,
            num_classes=config.data.num_classes,
            channels=config.data.channels,
            root=project.root,
            pretrained=parent is None,
        )
    if parent is not None:
        weights = project.path(parent.checkpoint_uri) / WEIGHTS_FILE
        load_weights(segmenter, read_tensors(weights), source=weights)
    return segmenter


def _prepare(project: Project, plan: Plan) -> tuple[Segmenter, ModelCard]:
    """The network before its first iteration, and the card that it will have."""
    config, parent = project.config, plan.parent
    mean, std = normalisation(config.model, config.data.channels)
    segmenter = _first_weights(project, parent)
    if parent is not None:
        before = read_card(project.path(parent.checkpoint_uri))
        mean, std = before.mean, before.std
    pixels = plan.survey.pixels
    card = ModelCard(
        model=config.model,
        class_names=[item.name for item in config.data.classes],
        channels=config.data.channels,
        mean=mean,
        std=std,
        input_scale=config.model.input_scale,
        config_hash=plan.config_hash,
        labels_hash=plan.labels_hash,
        seed=config.training.seed,
        iterations=config.training.iterations,
        class_shares=(pixels / pixels.sum()).round(9).tolist() if pixels.any() else None,
    )
    return segmenter, card


def _input_range(project: Project, survey: Survey, card: ModelCard) -> InputRange | None:
    """What the pixels of the training images, or of a random sample of them, look like to the network."""
    order = np.random.default_rng(card.seed % 2**32).permutation(len(survey.usable))[:MOST_INSPECTED]
    images = [survey.usable[place] for place in sorted(order)]
    found = [
        pixel_statistics(batch.images)
        for batch in load_batches(
            [project.ref(image) for image in images],
            channels=card.channels,
            max_pixels=project.config.data.max_pixels,
            input_scale=card.input_scale,
            mean=card.mean,
            std=card.std,
            batch_size=1,
            workers=project.config.scoring.workers,
        )
        if not isinstance(batch, Unreadable)
    ]
    return InputRange.of(np.concatenate(found)) if found else None


def _labeled(project: Project, image: TrainingImage) -> LabeledImage:
    return LabeledImage(
        path=project.image(image.uri),
        width=image.width,
        height=image.height,
        masks=tuple(project.path(label.mask_uri) for label in image.labels),
        annotators=tuple(label.annotator for label in image.labels),
        held_out=tuple(((part.x, part.y, part.w, part.h), part.outline) for part in image.held_out),
    )
