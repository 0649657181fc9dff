"""Which models are promoted, and what they are compared with."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select

from db.engine import Database
from db.queries import models as model_queries
from db.tables import Evaluation, Image, Model
from pipeline.steps.calibrate import calibrate
from pipeline.steps.evaluate import EvaluationReport, evaluate
from pipeline.summaries.models import model_history
from tests.factories import Workspace, ask, change, fetch, round_state
from tests.textures import add_images, add_trained_model, make_segmenter, textured_project


@pytest.fixture
def small(tmp_path: Path) -> Workspace:
    return textured_project(tmp_path, pixels=500)


def state(database: Database) -> str:
    return round_state(database)[1]


def test_a_model_that_is_worse_beyond_its_interval_is_refused(small: Workspace) -> None:
    add_images(*small, "calibration", 4)
    add_images(*small, "test", 12)
    add_trained_model(*small, make_segmenter(small.project, always=0), number=1)
    calibrate(*small)
    assert evaluate(*small).promoted
    add_trained_model(*small, make_segmenter(small.project, always=2), number=2)
    calibrate(*small)
    report = evaluate(*small)
    assert not report.promoted
    assert "r02 is refused, r01 stays" in report.decision
    models = fetch(small.database, select(Model).order_by(Model.id))
    assert [row.status for row in models] == ["promoted", "refused"]
    assert models[1].decision == report.decision
    promoted = ask(small.database, model_queries.promoted_model)
    assert promoted is not None
    assert promoted.name == "r01"
    assert state(small.database) == "score"


def test_a_model_is_measured_again_on_the_grown_split_before_it_is_compared(small: Workspace) -> None:
    add_images(*small, "test", 6)
    later = Image.position >= 4
    change(small.database, Image, later, split="guard", split_version=None)
    add_trained_model(*small, make_segmenter(small.project, overconfident=5), number=1)
    calibrate(*small)
    assert "4 images" in evaluate(*small).decision
    change(small.database, Image, later, split="test", split_version=2)
    add_trained_model(*small, make_segmenter(small.project, always=0), number=2)
    calibrate(*small)
    report = evaluate(*small)
    assert not report.promoted
    assert report.promotion is not None
    assert (report.promotion["split_version"], report.promotion["same_images"]) == (2, True)
    assert "of the test (version 2) split" in report.decision
    sizes = fetch(
        small.database,
        select(Evaluation.model_id, Evaluation.split_version, Evaluation.images).distinct(),
    )
    assert sorted(sizes) == [(1, 1, 4), (1, 2, 6), (2, 2, 6)]
    shown = ask(small.database, model_history, class_names=["a"] * 3, sampler="none")
    assert [(row.split, row.split_version, row.images) for row in shown] == [("test", 2, 6)] * 2


def test_an_equal_model_takes_over(small: Workspace) -> None:
    add_images(*small, "test", 6)
    for number in (1, 2):
        add_trained_model(*small, make_segmenter(small.project, overconfident=5), number=number)
        calibrate(*small)
        report = evaluate(*small)
    assert report.promoted
    assert "+0.000 [+0.000, +0.000] against r01, the best so far, on the same images" in report.decision


def test_a_model_is_compared_with_the_best_one_not_with_the_newest(small: Workspace) -> None:
    """A large tolerance lets a bad model through; the next bad one is still compared with the good one."""
    project, database = small.configured(evaluation={"promote_tolerance": 2.0}), small.database
    add_images(project, database, "test", 4)
    good = make_segmenter(project, overconfident=5)
    bad = make_segmenter(project, always=0)
    reports: list[EvaluationReport] = []
    for number, segmenter in enumerate((good, bad, bad), start=1):
        add_trained_model(project, database, segmenter, number=number)
        calibrate(project, database)
        reports.append(evaluate(project, database))

    report = reports[-1]
    assert report.promoted
    assert "against r01, the best so far, on the same images (4 images in " in report.decision
    assert "Worse in IoU than r01: " in report.decision
    document = report.promotion
    assert document is not None
    assert (document["against"], document["same_images"], document["images"]) == ("r01", True, 4)
    assert f"With {document['units']} independent units, a loss under" in report.decision
    names = project.config.data.class_names
    assert {one["class"] for one in document["worse"]} <= set(names)
    assert all(one["high"] < 0 for one in document["worse"])
    shown = ask(database, model_history, class_names=names, sampler="none")
    assert shown[2].promotion == document
    assert shown[0].promotion is None
    assert (shown[2].split, shown[2].images) == ("test", 4)


def test_without_any_held_out_mask_the_model_is_promoted_unmeasured(small: Workspace) -> None:
    add_trained_model(*small, make_segmenter(small.project, overconfident=5))
    calibrate(*small)
    report = evaluate(*small)
    assert report.promoted
    assert "without a measurement" in report.decision
    assert len(report.warnings) == 2
