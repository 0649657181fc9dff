"""What runs by itself decides from these: what is new, and what somebody has begun."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_lowercase

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from db.queries.in_force import is_version, newest_versions
from db.tables import Image, ImageScore, Label, LabelRegion, Model, ModelLabel, Queue, ScoringRun


def free_queue_name(session: Session, *, number: int, round_id: int) -> str:
    """The name of a round's next queue: `round-03`, or `round-03-b` after one that was taken back.

    A draft that the round has keeps its name.
    """
    first = f"round-{number:02d}"
    taken = set(
        session.scalars(
            select(Queue.name).where(
                Queue.name.startswith(first, autoescape=True),
                Queue.round_id.is_distinct_from(round_id) | Queue.exported_at.is_not(None),
            )
        )
    )
    names = [first, *(f"{first}-{letter}" for letter in ascii_lowercase[1:])]
    names += [f"{first}-{place}" for place in range(len(names) + 1, len(taken) + len(names) + 2)]
    return next(name for name in names if name not in taken)


def count_scored(session: Session, *, run_id: int) -> int:
    """How many images have scores of this run."""
    statement = select(func.count()).select_from(ImageScore).where(ImageScore.run_id == run_id)
    return session.scalar(statement) or 0


def model_runs(session: Session, *, model_id: int) -> Sequence[ScoringRun]:
    """The scoring runs of a model, newest first."""
    statement = select(ScoringRun).where(ScoringRun.model_id == model_id).order_by(ScoringRun.id.desc())
    return session.scalars(statement).all()


def has_labels_of(session: Session, *, queue_id: int) -> bool:
    """Whether any mask has come back for a queue."""
    return session.scalar(select(Label.id).where(Label.queue_id == queue_id).limit(1)) is not None


def newest_trained(session: Session) -> Model | None:
    """The newest model whose training has ended, promoted or not."""
    statement = select(Model).where(Model.status != "training").order_by(Model.id.desc()).limit(1)
    return session.scalars(statement).first()


def count_new_labels(session: Session) -> int:
    """Labeled regions that have come since the newest model was begun, and that no model was trained on.

    Only labels in force, of images that may be trained on. What a model left out, because it could not be
    read or is held out, is not new again.
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
    # A region that two annotators have labeled is one
    return session.scalar(select(func.count()).select_from(new.distinct().subquery())) or 0
