"""When a new model is trained, and what follows; without Prefect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from db.queries import models as model_queries
from db.queries import rounds
from db.tables import Label, Model, Queue
from pipeline.errors import UserError
from pipeline.evaluation.estimate import Estimate
from pipeline.evaluation.promotion import Verdict
from pipeline.operation.new_model import decide
from pipeline.operation.retrain import RetrainReport, run_retrain
from pipeline.operation.runner import Runner
from tests.conftest import label_regions, opened, set_option
from tests.pipeline.operation.test_nightly import everything, items, killed_before


def retrain(folder: Path, *, runner: type[Runner] = Runner, **options: Any) -> RetrainReport:
    with opened(folder) as (project, database):
        return run_retrain(runner(project, database), **options)


def round_state(folder: Path) -> tuple[int, str]:
    """The current round's number, and the step that comes next in it."""
    with opened(folder) as (_, database), database.session(write=False) as session:
        current = rounds.current_round(session)
        assert current is not None
        return current.number, current.state


def models(folder: Path) -> dict[str, str]:
    with opened(folder) as (_, database), database.session(write=False) as session:
        return {row.name: row.status for row in session.scalars(select(Model))}


def new_labels(folder: Path) -> int:
    with opened(folder) as (_, database), database.session(write=False) as session:
        return model_queries.count_new_labels(session)


def test_with_too_few_labels_nothing_is_done(out: Path) -> None:
    labeled = label_regions(out, at_least=1)
    set_option(out, "retrain", "min_new_labels", labeled + 1)
    before = everything(out)
    report = retrain(out)
    assert report.summary == f"{labeled} of {labeled + 1} new labels."
    assert report.name is None
    assert everything(out) == before


def test_enough_labels_close_the_round_and_bring_a_model_and_the_next_queue(out: Path) -> None:
    labeled = label_regions(out, at_least=4)
    assert labeled < 6
    report = retrain(out)
    assert (report.new_labels, report.name) == (labeled, "r02")
    assert items(out, "round-01").count("released") == 6 - labeled
    assert report.nightly is not None
    assert report.nightly.queue == "round-02"
    assert round_state(out) == (2, "import")
    assert new_labels(out) == 0


def test_force_trains_with_few_labels_and_a_lost_mask_is_not_new_for_ever(out: Path) -> None:
    label_regions(out, at_least=2)
    with opened(out) as (project, database), database.session(write=False) as session:
        label = session.scalars(select(Label).order_by(Label.id.desc())).first()
        assert label is not None
        project.path(label.mask_uri).unlink()
    report = retrain(out, force=True, then_nightly=False)
    assert report.name == "r02"
    assert report.nightly is None
    assert round_state(out) == (2, "score")
    assert new_labels(out) == 0


def test_a_round_that_was_closed_trains_however_few_its_labels_are(out: Path) -> None:
    set_option(out, "retrain", "min_new_labels", 1000)
    label_regions(out, at_least=1, close=True)
    assert round_state(out) == (2, "train")
    with opened(out) as (project, database), database.session(write=False) as session:
        assert decide(session, project).train


def test_a_refused_model_leaves_the_old_one_to_score_and_the_next_queue_comes(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worse(*_: Any, **__: Any) -> Verdict:
        return Verdict(Estimate(-0.2, -0.3, -0.1), units=12, margin=0.02, confidence=0.95)

    monkeypatch.setattr("pipeline.steps.promotion.compare", worse)
    label_regions(out, at_least=6)
    report = retrain(out)
    assert (report.name, report.promoted) == ("r02", False)
    assert "r02 is refused, r01 stays" in report.summary
    assert models(out) == {"r01": "promoted", "r02": "refused"}
    assert report.nightly is not None
    assert (report.nightly.model, report.nightly.queue) == ("r01", "round-02")
    assert set(items(out, "round-02")) == {"queued"}
    assert retrain(out).summary == "0 of 4 new labels."


def test_a_night_that_fails_after_a_training_is_a_warning_and_the_model_is_told(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise UserError("The disk is full.")

    label_regions(out, at_least=4)
    monkeypatch.setattr("pipeline.steps.score.score", full)
    report = retrain(out)
    assert (report.name, report.nightly, report.warnings) == ("r02", None, ("The disk is full.",))
    assert report.summary.startswith("r02 is")
    monkeypatch.undo()
    assert retrain(out).nightly is not None


def test_retrainings_that_are_killed_before_each_step_still_bring_one_model_and_one_queue(out: Path) -> None:
    label_regions(out, at_least=4)
    for step in ("close_round", "train", "calibrate", "evaluate", "select"):
        with pytest.raises(KeyboardInterrupt):
            retrain(out, runner=killed_before(step))
    report = retrain(out)
    assert list(models(out)) == ["r01", "r02"]
    assert round_state(out) == (2, "import")
    assert report.nightly is not None
    with opened(out) as (_, database), database.session(write=False) as session:
        names = session.scalars(select(Queue.name).where(Queue.kind == "selected").order_by(Queue.id)).all()
    assert names == ["round-01", "round-02"]
