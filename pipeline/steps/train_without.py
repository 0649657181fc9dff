"""Training a network that never sees some classes: the labels in force, with those classes void.

Audit regions are left out where they are of the models (`selection.audit_training`).

It is no model of the project: it has no row, belongs to no round and never scores. It lies below
`<workdir>/novelty/<hash>`, so the same labels, settings and classes train once, and a killed run goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from db.engine import Database
from db.queries.models import TrainingImage, TrainingLabel
from pipeline.config import IGNORE, content_hash
from pipeline.data.images import read_pixels
from pipeline.data.masks import store_mask
from pipeline.data.project import Project
from pipeline.errors import DataError, UserError
from pipeline.model.checkpoints import CARD_FILE, forget_resume
from pipeline.progress import Progress, silent
from pipeline.steps.held_out import labels_to_train_on
from pipeline.steps.train import fit, plan_training, survey_labels


@dataclass(frozen=True)
class TrainWithoutReport:
    """The folder of the network, and whether it was trained now."""

    folder: Path
    trained: bool

    def lines(self) -> list[str]:
        """The report as text."""
        return [f"{'Trained' if self.trained else 'Found'} a network without the classes: {self.folder}."]


def train_without(
    project: Project, database: Database, classes: Sequence[int], *, progress: Progress = silent
) -> TrainWithoutReport:
    """Train a network without some classes, unless the same training was finished before.

    Args:
        classes: indices of the classes that become void.

    Raises:
        UserError: no label is left, or training cannot be done as configured.
    """
    folder = project.workdir / "novelty"
    with database.session(write=False) as session:
        labeled, held_out = labels_to_train_on(session, project)
    survey = survey_labels(project, _voided(project, labeled, classes, folder / "masks"), progress=progress)
    if not survey.usable:
        raise UserError(
            "Without these classes no label is left to train on.", "Name fewer classes, or label more."
        )
    plan = plan_training(project, survey, None, **held_out)
    folder = folder / content_hash([plan.config_hash, plan.labels_hash])[:16]
    trained = not (folder / CARD_FILE).is_file()
    if trained:
        fit(project, plan, folder=folder, title="train without the classes", progress=progress)
        forget_resume(folder)
    return TrainWithoutReport(folder, trained)


def _voided(
    project: Project, labeled: Sequence[TrainingImage], classes: Sequence[int], folder: Path
) -> list[TrainingImage]:
    """The labels with these classes void. A label that cannot be read stays, for the survey to report."""

    def void(label: TrainingLabel, size: tuple[int, int]) -> TrainingLabel:
        try:
            mask = read_pixels(project.path(label.mask_uri), size=size)[:, :, 0]
        except DataError:
            return label
        known = np.where(np.isin(mask, classes), IGNORE, mask).astype(np.uint8)
        path, digest = store_mask(folder, known)
        return label._replace(mask_uri=project.uri(path), mask_sha256=digest)

    return [
        image._replace(labels=tuple(void(label, (image.width, image.height)) for label in image.labels))
        for image in labeled
    ]
