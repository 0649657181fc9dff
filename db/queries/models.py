"""Models, their training labels, and the images that may be trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Select, delete, exists, func, select
from sqlalchemy.orm import Session, aliased

from db.queries.audits import AuditRegion
from db.queries.labels import is_version, newest_versions
from db.tables import Image, Label, LabelRegion, Model, ModelLabel


class TrainingLabel(NamedTuple):
    """A label in force."""

    id: int
    mask_uri: str
    mask_sha256: str
    annotator: str | None


class TrainingImage(NamedTuple):
    """An image for training, and its labels in the order of composition; held-out regions stay unlabeled."""

    id: int
    uri: str
    width: int
    height: int
    labels: tuple[TrainingLabel, ...]
    held_out: tuple[AuditRegion, ...] = ()


def list_models(session: Session) -> Sequence[Model]:
    """All models, oldest first."""
    return session.scalars(select(Model).order_by(Model.id)).all()


def round_model(session: Session, round_id: int) -> Model | None:
    """The model that was trained in a round."""
    return session.scalars(select(Model).where(Model.round_id == round_id)).first()


def promoted_model(session: Session) -> Model | None:
    """The newest promoted model, which scores the pool."""
    return session.scalars(_promoted().limit(1)).first()


def promoted_models(session: Session, *, other_than: int) -> Sequence[Model]:
    """Every promoted model but that one, newest first."""
    return session.scalars(_promoted().where(Model.id != other_than)).all()


def newest_trained(session: Session) -> Model | None:
    """The newest model whose training has ended, promoted or not."""
    statement = select(Model).where(Model.status != "training").order_by(Model.id.desc()).limit(1)
    return session.scalars(statement).first()


def training_labels(session: Session) -> list[TrainingImage]:
    """Every image that may be trained on, with the labels in force, by queue and then by version.

    Only images of the pool, without duplicates and without the content of held-out images.
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


def model_labels(session: Session, model_id: int) -> Sequence[Label]:
    """The labels that a model was trained on."""
    statement = (
        select(Label)
        .join(ModelLabel, ModelLabel.label_id == Label.id)
        .where(ModelLabel.model_id == model_id)
        .order_by(Label.image_id, Label.queue_id, Label.version)
    )
    return session.scalars(statement).all()


def labeled_ids(session: Session, model_id: int) -> Sequence[int]:
    """The images that a model was trained on, by id."""
    statement = (
        select(Label.image_id)
        .join(ModelLabel, ModelLabel.label_id == Label.id)
        .where(ModelLabel.model_id == model_id)
        .distinct()
        .order_by(Label.image_id)
    )
    return session.scalars(statement).all()


def count_new_labels(session: Session) -> int:
    """The number of labeled regions that were imported after the newest model was begun, and that no model
    was trained on.

    Only labels in force of pool images count. A label that a model left out, because it was unreadable or
    held out, does not count as new again.
    """
    newest = newest_versions()
    trained = (
        select(ModelLabel.label_id)
        .join(Model, Model.id == ModelLabel.model_id)
        .where(ModelLabel.label_id == Label.id, Model.status != "training")
    )
    region = (LabelRegion.x, LabelRegion.y, LabelRegion.w, LabelRegion.h, LabelRegion.region_index)
    new = (
        select(Label.image_id, Label.queue_id, *region)
        .join(Label, Label.id == LabelRegion.label_id)
        .join(Image, Image.id == Label.image_id)
        .join(newest, is_version(newest))
        .where(Image.split == "pool", Image.duplicate_of.is_(None), ~trained.exists())
    )
    model = newest_trained(session)
    if model is not None:
        new = new.where(Label.created_at > model.created_at)
    # A region with labels of two annotators counts once
    return session.scalar(select(func.count()).select_from(new.distinct().subquery())) or 0


def start_model(
    session: Session, *, round_id: int, name: str, label_ids: Iterable[int], **columns: Any
) -> Model:
    """The round's model at the start of its training: a new row, or the row of an interrupted training.

    Args:
        columns: the other columns of `model` that are known before the training.
    """
    model = round_model(session, round_id)
    if model is None:
        model = Model(round_id=round_id, name=name)
        session.add(model)
    ended = {"checkpoint_sha256": None, "decision": None, "finished_at": None}
    for column, value in {"status": "training", **ended, **columns}.items():
        setattr(model, column, value)
    session.flush()
    session.execute(delete(ModelLabel).where(ModelLabel.model_id == model.id))
    session.add_all(ModelLabel(model_id=model.id, label_id=label_id) for label_id in label_ids)
    session.flush()
    return model


def _promoted() -> Select[tuple[Model]]:
    return select(Model).where(Model.status == "promoted").order_by(Model.id.desc())
