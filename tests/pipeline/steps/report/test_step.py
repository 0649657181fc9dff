"""The report is drawn from whatever the store knows by now."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from db.queries import evaluations, simulations
from db.queries.evaluations import put_assessment
from db.queries.failures import list_failures
from db.queries.simulations import CellKey
from db.tables import Assessment, Model, QueueItem, ScoringRun
from pipeline.errors import UserError
from pipeline.report.gallery import MISSING_RANKS, GalleryRow, draw_gallery
from pipeline.steps.calibrate import calibrate
from pipeline.steps.evaluate import evaluate
from pipeline.steps.report import report
from pipeline.steps.report.step import PAGE_TILES
from pipeline.steps.score import score
from pipeline.steps.select import select
from tests.factories import CLASSES, Workspace, ask, change, fetch
from tests.pipeline.report.stored import novelty_document, quality_document, scoring_document, stress_document
from tests.pipeline.summaries.test_simulations import cell
from tests.recorded_progress import RecordedProgress
from tests.textures import add_images, add_trained_model, make_segmenter, textured_project


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A project whose first round has been evaluated, scored and selected from."""
    made = textured_project(tmp_path_factory.mktemp("project"))
    for split, count in (("pool", 3), ("calibration", 2), ("test", 4)):
        add_images(*made, split, count)
    add_trained_model(*made, make_segmenter(made.project))
    for step in (calibrate, evaluate, score, select):
        step(*made)
    return made


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_before_the_first_evaluation_there_is_nothing_to_draw(tmp_path: Path) -> None:
    project, database = textured_project(tmp_path)
    with pytest.raises(UserError, match="no model has been evaluated"):
        report(project, database)
    assert not (project.workdir / "report").exists()


def test_a_simulation_has_a_page_where_no_model_has_been_evaluated(tmp_path: Path) -> None:
    project, database = textured_project(tmp_path)

    def finish(name: str, seed: int, budget: int, iou: float) -> None:
        with database.session() as session:
            row = simulations.open_simulation(
                session, hash="a", settings={"budgets": [6, 12], "unit": "region"}
            )
            document = cell(iou, labels=budget, clicks=2.0 * budget)
            simulations.put_cell(session, row.id, CellKey(name, seed, budget), document)

    finish("initial", 0, 6, 0.3)
    finish("entropy", 0, 12, 0.5)
    finish("random", 1, 12, 0.4)
    with pytest.raises(UserError, match="no seed simulated to its end"):
        report(project, database)
    finish("random", 0, 12, 0.4)
    written = report(project, database)
    assert [path.name for path in written.pages] == ["simulation.html"]
    assert names(written.folder) == {f"simulation.{ending}" for ending in ("html", "png", "csv", "json")}
    assert "Two seeds are the least" in (written.folder / "simulation.html").read_text(encoding="utf-8")
    assert len((written.folder / "simulation.csv").read_text().splitlines()) == 5


def test_a_round_becomes_pictures_and_a_table(scored: Workspace) -> None:
    folder = report(*scored).folder
    assert folder == scored.project.workdir / "report"
    assert names(folder) == {
        "learning_curve.png",
        "reliability_r01.png",
        "risk_coverage_r01.png",
        "gallery_round-01.png",
        "metrics.csv",
        "report.html",
    }
    with (folder / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["split"] for row in rows} == {"test", "calibration"}
    found = [
        row
        for row in rows
        if row["metric"] == "miou"
        and (row["split"], row["sampler"], row["calibrated"]) == ("test", "mc_dropout", "True")
    ]
    assert len(found) == 1
    assert float(found[0]["low"]) <= float(found[0]["value"]) <= float(found[0]["high"])
    assert {row["class"] for row in rows if row["metric"] == "iou"} == {"ground", "water", "tree"}


def test_each_model_and_each_queue_that_is_drawn_is_counted(scored: Workspace, tmp_path: Path) -> None:
    progress = RecordedProgress()
    report(*scored, folder=tmp_path / "out", progress=progress)
    assert progress.calls == {
        "draw models": [(0, 1), (1, 1)],
        "draw queues": [(0, 2), (1, 2), (2, 2)],
    }


def test_the_page_says_what_the_store_knows(scored: Workspace) -> None:
    page = (report(*scored).folder / "report.html").read_text(encoding="utf-8")
    assert "Next: <code>segcurate export</code>" in page
    assert "round-01: " in page
    tiles = re.findall(r'<article class="region">', page)
    assert 1 <= len(tiles) <= 2 * PAGE_TILES
    with scored.database.session(write=False) as session:
        digest = session.query(Model).one().checkpoint_sha256
        value = evaluations.metrics_of(
            session, model_id=1, split="test", sampler="mc_dropout", calibrated=True
        )[("miou", -1)].value
    assert digest is not None
    assert digest[:12] in page
    assert value is not None
    assert f"{value:.3f}" in page
    for command in ("assess", "stress", "novelty"):
        assert f"<code>segcurate {command}</code>" in page


def test_assessments_and_the_run_s_summary_reach_the_page(scored: Workspace, tmp_path: Path) -> None:
    with scored.database.session() as session:
        for kind, document in (
            ("quality", quality_document(CLASSES)),
            ("stress", stress_document()),
            ("novelty", novelty_document()),
        ):
            put_assessment(session, model_id=1, kind=kind, document=document)  # type: ignore[arg-type]
        run = session.query(ScoringRun).one()
        before, run.summary = run.summary, scoring_document()
    try:
        folder = report(*scored, folder=tmp_path / "out").folder
    finally:
        with scored.database.session() as session:
            session.query(Assessment).delete()
            session.query(ScoringRun).one().summary = before
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "refuses to rank by mutual information" in page
    assert "Confidence falls with accuracy." in page
    assert "Pool images farthest from everything labeled" in page
    assert "The new images differ most of all in &lt;script&gt;" in page
    assert "<code>segcurate stress</code>" not in page


def test_drawing_again_replaces_what_is_there(scored: Workspace, tmp_path: Path) -> None:
    folder = report(*scored, folder=tmp_path / "out").folder
    first = (folder / "metrics.csv").read_bytes()
    (folder / "learning_curve.png").write_bytes(b"old")
    report(*scored, folder=folder)
    assert (folder / "metrics.csv").read_bytes() == first
    assert (folder / "learning_curve.png").stat().st_size > 1000


def test_an_image_that_is_gone_is_recorded_and_the_rest_is_drawn(scored: Workspace, tmp_path: Path) -> None:
    missing = scored.project.root / "images" / "pool_0.png"
    aside = missing.rename(tmp_path / "aside.png")
    try:
        folder = report(*scored, folder=tmp_path / "out").folder
    finally:
        shutil.move(aside, missing)
    failures = [row for row in ask(scored.database, list_failures) if row.step == "report"]
    assert [row.subject for row in failures] == ["images/pool_0.png"]
    assert "gallery_round-01.png" in names(folder)


def test_a_checkpoint_that_is_gone_costs_only_its_gallery(scored: Workspace, tmp_path: Path) -> None:
    checkpoint = scored.project.workdir / "models" / "r01"
    checkpoint.rename(tmp_path / "aside")
    try:
        folder = report(*scored, folder=tmp_path / "out").folder
    finally:
        shutil.move(tmp_path / "aside", checkpoint)
    assert "learning_curve.png" in names(folder)
    assert "gallery_round-01.png" not in names(folder)
    failures = [row for row in ask(scored.database, list_failures) if row.step == "report"]
    assert [row.subject for row in failures] == [".segcurate/models/r01"]


def test_a_queue_of_nothing_but_audit_draws_has_no_gallery(scored: Workspace, tmp_path: Path) -> None:
    before = fetch(scored.database, QueueItem)
    change(scored.database, QueueItem, slice="audit")
    try:
        assert "gallery_round-01.png" not in names(report(*scored, folder=tmp_path / "out").folder)
    finally:
        for item in before:
            change(scored.database, QueueItem, QueueItem.id == item.id, slice=item.slice)


def test_a_picture_says_why_ranks_are_missing_where_some_are(
    scored: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    pictured: list[list[str]] = []

    def drawn(rows: Sequence[GalleryRow], *, note: str = "", **options: Any) -> Figure:
        said.append(note)
        pictured.append([row.heading.partition(".")[0] for row in rows])
        return draw_gallery(rows, note=note, **options)

    monkeypatch.setattr("pipeline.steps.report.step.draw_gallery", drawn)
    before = fetch(scored.database, QueueItem)
    first_of_image = {item.image_id: item for item in sorted(before, key=lambda item: -item.rank)}
    try:
        for item in before:
            rank = item.rank if item is first_of_image[item.image_id] else 100 + item.rank
            change(scored.database, QueueItem, QueueItem.id == item.id, slice="selected", rank=rank)
        report(*scored, folder=tmp_path / "out")
        change(scored.database, QueueItem, QueueItem.rank == 1, slice="audit")
        report(*scored, folder=tmp_path / "out")
    finally:
        for item in before:
            change(scored.database, QueueItem, QueueItem.id == item.id, slice=item.slice, rank=item.rank)
    assert pictured[1][0] != "1"
    assert said == ["", MISSING_RANKS], pictured
