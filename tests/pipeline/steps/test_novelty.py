"""The pool beside the held-out images, and classes that a model was never shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage
from scipy.spatial import KDTree
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from db.engine import Database
from db.queries.evaluations import assessment_of
from db.tables import Model, ModelLabel
from pipeline.config import Sampler
from pipeline.data.project import Project
from pipeline.errors import UserError
from pipeline.evaluation.bootstrap import BlockBootstrap, bootstrap_weights
from pipeline.evaluation.held_out_classes import HeldOutClasses
from pipeline.evaluation.measure_bins import MeasureBins
from pipeline.evaluation.populations import mean_difference, nearest_distances, shares
from pipeline.model.checkpoints import read_card
from pipeline.steps.novelty import novelty
from pipeline.steps.train_without import train_without
from tests.factories import CLASSES, HEIGHT, WIDTH, add_label, ask, new_queue, put
from tests.textures import add_images, add_trained_model, make_segmenter, textured_project


def test_neighbours_are_those_of_a_tree_search_among_unit_vectors() -> None:
    generator = np.random.default_rng(0)
    query, reference = generator.normal(size=(700, 6)), generator.normal(size=(90, 6)) * 5
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (query, reference)]
    expected, _ = KDTree(unit[1]).query(unit[0])
    np.testing.assert_allclose(nearest_distances(query, reference), expected, atol=1e-6)
    with pytest.raises(ValueError, match="6 features"):
        nearest_distances(query, np.empty((0, 6)))


def test_a_difference_of_means_covers_zero_where_there_is_none_and_not_where_there_is() -> None:
    generator = np.random.default_rng(1)
    first_block, second_block = np.repeat(np.arange(20), 4), np.repeat(np.arange(15), 4)
    first = np.repeat(generator.normal(size=20), 4)
    second = np.repeat(generator.normal(size=15), 4)
    found = mean_difference(first, second, first_block, second_block, confidence=0.95)
    assert found.value == pytest.approx(second.mean() - first.mean())
    assert found.low < 0 < found.high
    assert found.high - found.low > 1  # 35 blocks, not 140 images: ± 2·√(1/20 + 1/15)
    moved = mean_difference(first, second + 3, first_block, second_block, confidence=0.95)
    assert moved.low > 0


def test_shares_of_a_histogram_sum_to_one_with_what_lies_outside() -> None:
    assert shares(np.array([-1.0, 0.1, 0.6, 9.0]), np.array([0.0, 0.5, 1.0])) == [0.5, 0.5]


def test_metrics_of_held_out_classes_are_those_of_the_pixels() -> None:
    generator = np.random.default_rng(2)
    bins: dict[Sampler, dict[str, MeasureBins]] = {"none": {"entropy": MeasureBins.of("entropy")}}
    found = HeldOutClasses(torch.tensor([1, 3]), runs=3, bins=bins)
    values, truths = [], []
    for block in (0, 1, 2):
        label = torch.from_numpy(generator.choice([0, 1, 2, 3, 255], size=(40, 50)).astype(np.uint8))
        novel = np.isin(label.numpy(), [1, 3])
        measure = (0.15 * novel + generator.uniform(0, 0.6, label.shape)).clip(0, 1)
        found.add("none", {"entropy": torch.from_numpy(measure)}, label, run=block)
        known = label.numpy() != 255
        values.append(measure[known])
        truths.append(novel[known])
    value, truth = np.concatenate(values), np.concatenate(truths)
    assert found.pixels == truth.sum()
    weights = bootstrap_weights(3, resamples=100, seed=0)
    rows = {row.metric: row.estimate for row in found.rows(np.arange(3), BlockBootstrap(weights, 0.95))}
    false, true, _ = roc_curve(truth, value)
    assert rows["auroc"].value == pytest.approx(roc_auc_score(truth, value), abs=3e-3)
    assert rows["aupr"].value == pytest.approx(average_precision_score(truth, value), abs=5e-3)
    assert rows["fpr95"].value == pytest.approx(np.interp(0.95, true, false), abs=1e-2)
    assert rows["auroc"].low <= rows["auroc"].value <= rows["auroc"].high


def small(tmp_path: Path) -> tuple[Project, Database, Model]:
    """Two labeled and three unlabeled pool images, five held-out ones, and a model of the labeled two."""
    training = {"iterations": 4, "batch_size": 2, "crop": [32, 32], "checkpoint_every": 2}
    project, database = textured_project(tmp_path, training=training)
    add_images(project, database, "pool", 5)
    add_images(project, database, "test", 5)
    model = add_trained_model(project, database, make_segmenter(project))
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[:, 40:], mask[30:, :20] = 1, 2
    with database.session() as session:
        queue = put(session, new_queue("initial"))
        for image_id in (1, 2):
            label = add_label(session, project, image_id, queue.id, mask, source="initial")
            session.add(ModelLabel(model_id=model.id, label_id=label.id))
    return project, database, model


def test_the_pool_is_compared_and_classes_are_held_out_in_one_call(tmp_path: Path) -> None:
    project, database, model = small(tmp_path)
    report = novelty(project, database, classes=["water"], pool_images=2)
    assert report.held_out_classes is not None
    assert {row.sampler for row in report.held_out_classes.rows} == {"none", "mc_dropout", "tta"}
    folder = project.workdir / "novelty" / report.held_out_classes.model
    assert (folder / "model.safetensors").is_file()
    with database.session(write=False) as session:
        stored = assessment_of(session, model_id=model.id, kind="novelty")
        assert session.query(Model).count() == 1  # the second network is no model of the project
    assert stored is not None
    document = stored.document
    for part in ("confidence", "neighbours"):
        assert len(document[part]["edges"]) == len(document[part]["pool"]) + 1
        assert sum(document[part]["pool"]) == pytest.approx(1, abs=1e-4)
        assert sum(document[part]["held_out"]) == pytest.approx(1, abs=1e-4)
    assert len(document["farthest"]) == 2  # as many as were drawn, and only unlabeled ones
    assert {item["image_id"] for item in document["farthest"]} <= {3, 4, 5}
    assert document["held_out_classes"]["classes"] == ["water"]
    assert {row["metric"] for row in document["held_out_classes"]["rows"]} == {"auroc", "aupr", "fpr95"}
    lines = list(report.lines())
    assert ["sampler", "measure", "AUROC"] in [line.split() for line in lines]
    assert ["held-out", "pool", "difference"] in [line.split() for line in lines]
    assert max(len(line) for line in lines if line.startswith("  ")) <= 80

    before = (folder / "model.safetensors").stat().st_mtime_ns
    again = novelty(project, database, classes=["water"], pool_images=2)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before  # trained once
    assert again.held_out_classes is not None
    assert [row.estimate.value for row in again.held_out_classes.rows] == [
        row.estimate.value for row in report.held_out_classes.rows
    ]
    novelty(project, database, pool_images=2)
    kept = ask(database, assessment_of, model_id=model.id, kind="novelty")
    assert kept is not None
    assert kept.document["held_out_classes"] == document["held_out_classes"]


def test_the_second_network_learns_from_no_pixel_of_the_classes(tmp_path: Path) -> None:
    project, database, _ = small(tmp_path)
    with pytest.raises(UserError, match="no label is left"):
        train_without(project, database, [0, 1, 2])
    card = read_card(train_without(project, database, [1]).folder)
    assert card.input_range is not None
    assert card.input_range.images == 2
    assert np.array(card.input_range.lowest).shape == (4, 3)
    masks = list((project.workdir / "novelty" / "masks").rglob("*.png"))
    contents = {frozenset(np.unique(np.asarray(PillowImage.open(mask))).tolist()) for mask in masks}
    assert contents == {frozenset({255}), frozenset({0, 2, 255})}


def test_an_unknown_class_is_refused_by_name(tmp_path: Path) -> None:
    project, database = textured_project(tmp_path)
    with pytest.raises(UserError, match="no class `dragon`"):
        novelty(project, database, classes=["dragon"])
    with pytest.raises(UserError, match="but no class"):
        novelty(project, database, checkpoint=tmp_path)


@pytest.mark.parametrize("names", [CLASSES[:2], CLASSES])
def test_holding_out_so_many_classes_that_nothing_is_left_to_tell_apart_is_refused(
    tmp_path: Path, names: list[str]
) -> None:
    project, database = textured_project(tmp_path)
    with pytest.raises(UserError, match="nothing to tell apart") as refused:
        novelty(project, database, classes=names)
    assert refused.value.remedy == "Name fewer classes, so that two of ground, water, tree are left."
    two = project.config.data.model_copy(update={"classes": project.config.data.classes[:2]})
    of_two = replace(project, config=project.config.model_copy(update={"data": two}))
    with pytest.raises(UserError, match="has only the class water to learn") as refused:
        novelty(of_two, database, classes=["ground"])
    assert refused.value.remedy == (
        "Run `segcurate novelty` without `--classes`: holding one out needs three."
    )
