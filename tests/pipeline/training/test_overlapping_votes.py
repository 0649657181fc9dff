"""Two annotators of one queue, of whom each labeled some regions and both labeled others."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from db.queries import models
from pipeline.config import IGNORE
from pipeline.data.project import Project
from pipeline.steps.train import Survey, hash_labels
from pipeline.training.dataset import LabeledImage, read_masks
from pipeline.training.losses import shares
from tests.factories import ask
from tests.pipeline.shared_queue import CELLS, CLASSES, SIDE, Mask, SharedQueue, make_shared_queue

Annotators = Literal["latest", "majority", "soft"]


@pytest.fixture
def shared(tmp_path: Path) -> SharedQueue:
    """Ann says road in the first two regions, and Bo, later, pole in the second and the third."""
    made = make_shared_queue(tmp_path, images=1)
    made.label(1, painted(slice(0, 2), 1), by="ann", regions=CELLS[:2])
    made.label(1, painted(slice(1, 3), 2), by="bo", regions=CELLS[1:3])
    return made


def painted(cells: slice, value: int) -> Mask:
    mask = np.full((SIDE, SIDE), IGNORE, np.uint8)
    for x, y, w, h in CELLS[cells]:
        mask[y : y + h, x : x + w] = value
    return mask


def in_force(shared: SharedQueue) -> models.TrainingImage:
    (image,) = ask(shared.database, models.training_labels)
    return image


def masks(shared: SharedQueue, annotators: Annotators) -> np.ndarray:
    """What is trained on, as the corners of the regions say it: [N, 4]."""
    image = in_force(shared)
    labeled = LabeledImage(
        path=shared.project.image(image.uri),
        width=image.width,
        height=image.height,
        masks=tuple(shared.project.path(label.mask_uri) for label in image.labels),
        annotators=tuple(label.annotator for label in image.labels),
    )
    read = read_masks(labeled, annotators)
    found = np.stack([read[:, y : y + h, x : x + w].reshape(len(read), -1) for x, y, w, h in CELLS], axis=1)
    assert (found == found[:, :, :1]).all()
    return found[:, :, 0]


def labels_hash(shared: SharedQueue, annotators: Annotators) -> str:
    config = shared.project.config
    training = config.training.model_copy(update={"annotators": annotators})
    project = Project(config=config.model_copy(update={"training": training}), root=shared.project.root)
    return hash_labels(project, Survey(usable=[in_force(shared)], pixels=np.zeros(3), failures=[]))


@pytest.mark.parametrize("annotators", ["latest", "majority"])
def test_what_one_alone_has_labeled_is_trained_on_and_the_later_one_decides_where_both_have(
    shared: SharedQueue, annotators: Annotators
) -> None:
    assert masks(shared, annotators).tolist() == [[1, 2, 2, IGNORE]]


@pytest.mark.parametrize("prior", [0.0, 1.0])
def test_each_region_is_divided_among_those_who_labeled_it(shared: SharedQueue, prior: float) -> None:
    """(n_c + a) / (N + a C), with N the votes that the region has."""
    votes = masks(shared, "soft")
    assert votes.tolist() == [[1, 1, IGNORE, IGNORE], [IGNORE, 2, 2, IGNORE]]
    found = shares(torch.from_numpy(votes)[None, :, None], len(CLASSES), prior=prior)[0, :, 0].T.numpy()
    counts = np.array([[0, 1, 0], [0, 1, 1], [0, 0, 1]])
    expected = (counts + prior) / (counts.sum(axis=1, keepdims=True) + prior * len(CLASSES))
    np.testing.assert_allclose(found[:3], expected, atol=1e-6)
    assert found[3].tolist() == [0, 0, 0]  # nobody's region has no target, whatever the prior


def test_a_correction_replaces_its_annotator_s_vote_and_nobody_else_s(shared: SharedQueue) -> None:
    shared.label(1, painted(slice(0, 2), 0), by="ann", regions=CELLS[:2])
    assert masks(shared, "soft").tolist() == [[IGNORE, 2, 2, IGNORE], [0, 0, IGNORE, IGNORE]]
    assert masks(shared, "latest").tolist() == [[0, 0, 2, IGNORE]]


@pytest.mark.parametrize("annotators", ["latest", "majority", "soft"])
def test_the_lineage_changes_with_each_annotator_s_label(shared: SharedQueue, annotators: Any) -> None:
    seen = [labels_hash(shared, annotators)]
    assert labels_hash(shared, annotators) == seen[0]
    shared.label(1, painted(slice(0, 2), 0), by="ann", regions=CELLS[:2])
    seen.append(labels_hash(shared, annotators))
    shared.label(1, painted(slice(1, 3), 0), by="bo", regions=CELLS[1:3])
    seen.append(labels_hash(shared, annotators))
    shared.label(1, painted(slice(1, 3), 0), by="cy", regions=CELLS[1:3])
    seen.append(labels_hash(shared, annotators))
    assert len(set(seen)) == 4
