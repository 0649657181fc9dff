"""Models, what they were trained on, and what may be trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import delete, exists, select
from sqlalchemy.orm import Session, aliased

from db.queries.audits import AuditRegion
from db.queries.in_force import is_version, newest_versions
from db.tables import Image, Label, Model, ModelLabel


class TrainingLabel(NamedTuple):
    """A label in force."""

    id: int
    mask_uri: str
    mask_sha256: str
    annotator: str | None


class TrainingImage(NamedTuple):
    """An image that may be trained on, and its labels in the order in which they are painted; what is held
    out stays unlabeled."""

    id: int
    uri: str
    width: int
    height: int
    labels: tuple[TrainingLabel, ...]
    held_out: tuple[AuditRegion, ...] = ()


def training_labels(session: Session) -> list[TrainingImage]:
    """Every image that may be trained on, with the labels in force, by queue and then by version.

    Only images of the pool, none whose content is also that of a held-out image, and no duplicates.
    """
    newest = newest_versions()
    held_out = aliased(Image)
    statement = (
        select(
            Image.id,
            Image.uri,
            Image.width,
            Image.height,
            Label.id,
            Label.mask_uri,
            Label.mask_sha256,
            Label.annotator,
        )
        .join(Label, Label.image_id == Image.id)
        .join(newest, is_version(newest))
        .where(
            Image.split == "pool",
            Image.duplicate_of.is_(None),
            ~exists().where(
                held_out.sha256 == Image.sha256, held_out.split.in_(("calibration", "test", "guard"))
            ),
        )
        .order_by(Image.id, Label.queue_id, Label.version)
    )
    images: dict[int, TrainingImage] = {}
    for image_id, uri, width, height, label_id, mask_uri, sha256, annotator in session.execute(statement):
        known = images.get(image_id)
        label = TrainingLabel(label_id, mask_uri, sha256, annotator)
        labels = (*(known.labels if known else ()), label)
        images[image_id] = TrainingImage(image_id, uri, width, height, labels)
    return list(images.values())


def list_models(session: Session) -> Sequence[Model]:
    """All models, oldest first."""
    return session.scalars(select(Model).order_by(Model.id)).all()


def model_labels(session: Session, model_id: int) -> Sequence[Label]:
    """The labels that a model was trained on."""
    statement = (
        select(Label)
        .join(ModelLabel, ModelLabel.label_id == Label.id)
        .where(ModelLabel.model_id == model_id)
        .order_by(Label.image_id, Label.queue_id, Label.version)
    )
    return session.scalars(statement).all()


def start_model(
    session: Session,
    *,
    round_id: int,
    name: str,
    parent_id: int | None,
    checkpoint_uri: str,
    config: dict[str, Any],
    config_hash: str,
    labels_hash: str,
    seed: int,
    iterations: int,
    label_ids: Iterable[int],
) -> Model:
    """The round's model, about to be trained: a new row, or the one of an attempt that did not end."""
    model = session.scalars(select(Model).where(Model.round_id == round_id)).first()
    if model is None:
        model = Model(round_id=round_id, name=name)
        session.add(model)
    model.status = "training"
    model.parent_id = parent_id
    model.checkpoint_uri = checkpoint_uri
    model.checkpoint_sha256 = None
    model.config = config
    model.config_hash = config_hash
    model.labels_hash = labels_hash
    model.seed = seed
    model.iterations = iterations
    model.decision = None
    model.finished_at = None
    session.flush()
    session.execute(delete(ModelLabel).where(ModelLabel.model_id == model.id))
    session.add_all(ModelLabel(model_id=model.id, label_id=label_id) for label_id in label_ids)
    session.flush()
    return model
