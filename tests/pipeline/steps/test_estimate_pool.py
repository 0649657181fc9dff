"""How good the model is on what is not labeled yet, and which audits say nothing about it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from db.tables import Label, Model, ModelLabel, PoolEstimate, Queue, QueueItem, Round, ScoringRun, utc_now
from pipeline.evaluation.estimate import Estimate
from pipeline.format import percent
from pipeline.progress import silent
from pipeline.steps.estimate_pool import PoolReport, update_pool_estimate
from pipeline.summaries.pool import PoolSummary
from pipeline.summaries.rounds import RoundSummary, round_history
from tests.factories import (
    CLASSES,
    HEIGHT,
    WIDTH,
    Workspace,
    add_label,
    ask,
    change,
    count_rows,
    new_item,
    new_queue,
    new_run,
    put,
)
from tests.textures import add_images, add_trained_model, make_segmenter, read_pair, textured_project

Box = tuple[int, int, int, int]
HALF: Box = (0, 0, WIDTH // 2, HEIGHT)
POPULATION = 30


@pytest.fixture
def audited(tmp_path: Path) -> Workspace:
    """Image 1 was labeled before the queue; of three audited halves of images 2, 3 and 4, two are labeled.
    The model says class 0 everywhere."""
    made = textured_project(tmp_path)
    add_images(*made, "pool", 4)
    model = add_trained_model(*made, make_segmenter(made.project, always=0))
    with made.database.session() as session:
        session.get_one(Model, model.id).status = "promoted"
        session.get_one(Round, 1).state = "closed"
        put(session, Round(number=2, state="evaluate"))
        initial = put(session, new_queue("initial"))
        first = add_label(
            session, made.project, 1, initial.id, truth(made, 1), regions=[(0, 0, WIDTH, HEIGHT)]
        )
        session.add(ModelLabel(model_id=model.id, label_id=first.id))
        run = put(session, new_run(model.id))
        queue = put(session, new_queue(round_id=1, run_id=run.id, created_at=utc_now()))
        drawn: dict[str, Any] = {"slice": "audit", "inclusion_probability": 3 / POPULATION}
        for image_id, status in ((2, "labeled"), (3, "labeled"), (4, "released")):
            session.add(new_item(queue.id, image_id, image_id, HALF, status=status, **drawn))
        session.add(new_item(queue.id, 9, 2, (WIDTH // 2, 0, 8, 8), status="labeled"))
        for image_id in (2, 3):
            add_label(session, made.project, image_id, queue.id, truth(made, image_id), regions=[HALF])
    return made


def truth(made: Workspace, image_id: int) -> np.ndarray:
    return read_pair(made.project, f"pool_{image_id - 1}.png")[1]


def updated(made: Workspace) -> PoolReport:
    return update_pool_estimate(*made, progress=silent)


def summary(report: PoolReport) -> PoolSummary:
    assert report.document is not None
    return PoolSummary.from_document(report.document)


def first_round(made: Workspace) -> RoundSummary:
    return ask(made.database, round_history, sampler="none", class_names=CLASSES)[0]


def wrong(mask: np.ndarray) -> np.ndarray:
    """Pixels that are not of class 0, and labeled pixels."""
    return np.array([((mask != 0) & (mask != 255)).sum(), (mask != 255).sum()])


def test_labels_with_certainty_stand_for_themselves_and_the_audit_for_what_was_unlabeled(
    audited: Workspace,
) -> None:
    assert "the next `segcurate evaluate`" in (first_round(audited).no_estimate or "")
    found = summary(updated(audited))
    first, second = (wrong(truth(audited, image_id)[:, : WIDTH // 2]) for image_id in (2, 3))
    audit = first + second
    total = wrong(truth(audited, 1)) + POPULATION / 2 * audit
    assert found.unlabeled.error_rate.value == pytest.approx(audit[0] / audit[1], abs=1e-6)
    assert found.pool.error_rate.value == pytest.approx(total[0] / total[1], abs=1e-6)
    assert found.pool.class_share[0].value == pytest.approx(1 - total[0] / total[1], abs=1e-6)
    assert found.unlabeled.error_rate.low < found.unlabeled.error_rate.value < found.unlabeled.error_rate.high
    assert (found.regions, found.drawn, found.population, found.images) == (2, 3, POPULATION, 2)
    assert (found.model, found.queue, found.certain_pixels) == (
        "r01",
        "round-01",
        wrong(truth(audited, 1))[1],
    )
    text = " ".join(found.lines())
    assert f"{POPULATION} regions that had no label when round-01 was drawn" in text
    assert "2 audited regions in 2 images, which it has not learned from" in text
    assert "1 of the 3 regions that the audit drew has no label" in text
    assert f"In the whole pool, r01 gets {percent(found.pool.error_rate.value)} [" in text
    assert f"Classes of the pool: {CLASSES[0]} {percent(found.pool.class_share[0].value)} [" in text
    assert found.lowest == pytest.approx(audit[0] / audit[1] * 2 / 3, abs=1e-6)
    row = first_round(audited)
    assert (row.unlabeled, row.no_estimate) == (found, None)


def test_the_same_labels_are_not_measured_again_and_a_correction_is(audited: Workspace) -> None:
    before = summary(updated(audited))
    weights = audited.project.workdir / "models" / "r01"
    shutil.move(weights, weights.with_name("gone"))
    assert summary(updated(audited)) == before
    with audited.database.session() as session:
        queue = session.scalars(select(Queue).where(Queue.name == "round-01")).one()
        mask = np.where(truth(audited, 2) == 255, 255, 1).astype(np.uint8)
        add_label(session, audited.project, 2, queue.id, mask, regions=[HALF])
    gone = updated(audited)
    assert gone.document is None
    assert "gives no estimate of the pool" in gone.warnings[0]
    shutil.move(weights.with_name("gone"), weights)
    after = summary(updated(audited))
    assert after.unlabeled.error_rate.value > before.unlabeled.error_rate.value
    assert count_rows(audited.database, PoolEstimate) == 1


def test_a_label_that_came_after_the_draw_is_not_counted_as_certain(audited: Workspace) -> None:
    before = summary(updated(audited))
    with audited.database.session() as session:
        initial = session.scalars(select(Queue).where(Queue.name == "initial")).one()
        add_label(session, audited.project, 4, initial.id, truth(audited, 4), regions=[HALF])
    assert summary(updated(audited)) == before


def test_an_audit_that_the_model_has_learned_from_says_nothing(audited: Workspace) -> None:
    with audited.database.session() as session:
        late = session.scalars(select(Label).where(Label.image_id == 2)).one()
        session.add(ModelLabel(model_id=1, label_id=late.id))
    assert summary(updated(audited)).regions == 1
    with audited.database.session() as session:
        late = session.scalars(select(Label).where(Label.image_id == 3)).one()
        session.add(ModelLabel(model_id=1, label_id=late.id))
    assert updated(audited).document is None


def test_a_file_that_is_gone_counts_as_not_labeled_and_is_named(audited: Workspace) -> None:
    image = audited.project.root / "images" / "pool_2.png"
    image.rename(audited.project.root / "gone.png")
    report = updated(audited)
    assert (summary(report).regions, summary(report).drawn) == (1, 3)
    assert [name for name, _ in report.failed] == ["images/pool_2.png"]
    assert [name for name, _ in updated(audited).failed] == ["images/pool_2.png"]
    (audited.project.root / "gone.png").rename(image)
    assert summary(updated(audited)).regions == 2


def test_where_the_interval_is_wide_a_sentence_says_so_instead_of_more_figures(audited: Workspace) -> None:
    found = summary(updated(audited))
    wide = replace(found.unlabeled, error_rate=Estimate(0.12, 0.0003, 0.66))
    text = " ".join(replace(found, unlabeled=wide).lines())
    assert "12 % [0.03 %, 66 %] of the pixels wrong" in text
    assert "2 audited images are too few to tell how good r01 is there" in text
    assert not [word for word in ("mIoU", "Classes of the pool", "whole pool") if word in text]


def test_other_settings_are_estimated_again(audited: Workspace) -> None:
    before = summary(updated(audited))
    wider = audited.configured(evaluation={"confidence": 0.99})
    after = summary(update_pool_estimate(wider, audited.database, progress=silent))
    assert after.unlabeled.error_rate.value == before.unlabeled.error_rate.value
    assert after.unlabeled.error_rate.high > before.unlabeled.error_rate.high


@pytest.mark.parametrize(
    ("table", "values", "reason"),
    [
        (ScoringRun, {"scorer": {"keep_regions": 5}}, "`scoring.keep_regions` kept"),
        (QueueItem, {"slice": "selected"}, "no region that was drawn at random"),
        (QueueItem, {"status": "skipped"}, "no region of its audit was labeled"),
        (Round, {"state": "import"}, "not labeled yet"),
        (Queue, {"round_id": None}, None),  # withdrawn
        (Queue, {"run_id": None}, "no model has scored its regions"),
    ],
)
def test_an_audit_that_is_no_sample_of_what_was_unlabeled_gives_no_estimate(
    audited: Workspace, table: type[Any], values: dict[str, Any], reason: str | None
) -> None:
    change(audited.database, table, **values)
    assert updated(audited) == PoolReport()
    row = first_round(audited)
    found = row.no_estimate
    assert (found is None) if reason is None else (reason in (found or ""))
    assert row.withdrawn == (("round-01",) if reason is None else ())


def test_skipped_regions_of_earlier_queues_and_a_single_image_are_said(audited: Workspace) -> None:
    with audited.database.session() as session:
        initial = session.scalars(select(Queue).where(Queue.name == "initial")).one()
        session.add(new_item(initial.id, 1, 4, HALF, status="skipped"))
    change(audited.database, QueueItem, QueueItem.image_id == 3, status="skipped")
    found = summary(updated(audited))
    text = " ".join(found.lines())
    assert "Without 1 region that annotators skipped in earlier queues." in text
    assert "a single image gives no interval" in text
    assert "the audit drew" not in " ".join(replace(found, drawn=1).lines())
