"""A simulation: the same table however it is computed, and a user's project that it leaves alone."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from db.engine import Database
from db.queries import simulations
from db.tables import Image, Label, LabelRegion, Queue, QueueItem, Round, Simulation
from pipeline.data.project import Project
from pipeline.errors import ConfigError, UserError
from pipeline.operation.runner import Runner
from pipeline.operation.simulate import Simulated, parse_budgets, run_simulate
from pipeline.operation.simulate.arms import STORE, Arm
from pipeline.operation.simulate.workers import one_thread
from pipeline.steps.label_costs import cut_queue, label_costs
from pipeline.steps.select import select
from pipeline.summaries.simulations import SimulationSummary
from tests.conftest import CLASSES, opened

pytestmark = pytest.mark.slow

BUDGETS = (6, 12)
ASKED: dict[str, Any] = {
    "strategies": "stratified,random",
    "seeds": 1,
    "budgets": "6,12",
    "workers": 1,
    "reference": True,
}


def simulate(folder: Path, **changes: Any) -> SimulationSummary:
    with opened(folder) as (project, database):
        return run_simulate(Runner(project, database), **{**ASKED, **changes})


def table(folder: Path) -> dict[tuple[Any, ...], Any]:
    """The cells of the only simulation."""
    with opened(folder) as (_, database), database.session(write=False) as session:
        (found,) = session.query(Simulation).all()
        return {tuple(key): cell for key, cell in simulations.cells(session, found.id).items()}


def count_rows(folder: Path) -> list[int]:
    """Rows of the user's project that a simulation must leave alone."""
    with opened(folder) as (_, database), database.session(write=False) as session:
        return [session.query(name).count() for name in (Round, Queue, QueueItem, Label, LabelRegion)]


@pytest.fixture(scope="module")
def simulated(trained_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a simulation, computed in this process without a break."""
    folder = Path(shutil.copytree(trained_once, tmp_path_factory.mktemp("simulated") / "project"))
    simulate(folder)
    return folder


def test_a_simulation_says_what_each_strategy_reached(simulated: Path) -> None:
    cells = table(simulated)
    assert list(cells) == [("full", 0, 0), ("initial", 0, 6), ("random", 0, 12), ("stratified", 0, 12)]
    assert [cell["labels"] for key, cell in cells.items() if key[0] != "full"] == [6, 12, 12]
    assert cells[("initial", 0, 6)]["clicks"] >= 6
    assert 0 < cells[("stratified", 0, 12)]["miou"] < 1
    summary = simulate(simulated)
    assert summary.missing == 0
    assert summary.seeds == (0,)
    text = "\n".join(summary.lines())
    assert "Two seeds are the least" in text
    assert max(map(len, (line for line in text.splitlines() if line.startswith("  ")))) <= 80
    assert summary.csv().count("\n") == 5
    assert summary.strategies[0].full_share is not None
    assert [one["per"] for one in summary.document()["verdicts"]] == [
        "region",
        "click (drawing)",
        "click (correcting)",
    ]


def test_the_users_rounds_queues_and_labels_stay(simulated: Path, trained_once: Path) -> None:
    assert count_rows(simulated) == count_rows(trained_once)
    assert not (simulated / ".segcurate" / "simulations").exists()
    assert not (simulated / "queues").exists()


def test_more_seeds_are_added_to_the_cells_that_are_finished(simulated: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(simulated, tmp_path / "project"))
    before = table(folder)
    logged: list[str] = []
    with opened(folder) as (project, database):
        asked = {**ASKED, "strategies": "random", "seeds": 2, "reference": False}
        run_simulate(Runner(project, database, log=logged.append), **asked)
    after = table(folder)
    assert {key: after[key] for key in before} == before
    assert sorted(set(after) - set(before)) == [("initial", 1, 6), ("random", 1, 12)]
    assert "2 are finished" in logged[0]


def test_other_ways_to_choose_the_first_labels_are_compared_with_the_shared_ones(
    simulated: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(simulated, tmp_path / "project"))
    before = table(folder)
    summary = simulate(folder, strategies="random", reference=False, cold_start="random,strided")
    after = table(folder)
    assert {key: after[key] for key in before} == before
    (new,) = set(after) - set(before)
    assert new == ("initial:strided", 0, 6)
    assert after[new]["labels"] == 6
    assert after[new]["model"] != after[("initial", 0, 6)]["model"]
    assert [(one.name, one.miou.value) for one in summary.cold_starts] == [
        ("random", after[("initial", 0, 6)]["miou"]),
        ("strided", after[new]["miou"]),
    ]
    difference = summary.cold_starts[1].difference
    assert difference is not None
    assert difference.value == pytest.approx(after[new]["miou"] - after[("initial", 0, 6)]["miou"])
    assert "The first 6 regions, chosen in several ways:" in list(summary.lines())
    assert [one.name for one in summary.strategies] == ["random"]
    assert not (folder / ".segcurate" / "simulations").exists()


def test_strategies_of_a_seed_start_from_the_same_model_and_seeds_from_others(simulated: Path) -> None:
    cells = table(simulated)
    assert cells[("stratified", 0, 12)]["model"] != cells[("random", 0, 12)]["model"]
    assert (
        cells[("stratified", 0, 12)]["overlap"]["fingerprint"]
        == (cells[("initial", 0, 6)]["overlap"]["fingerprint"])
    )


def test_an_arm_that_another_version_began_is_computed_again(trained: Path) -> None:
    found: list[dict[Any, dict[str, Any]]] = []
    with opened(trained) as (project, database), one_thread():
        arm = Arm(project, Simulated(("random",), 1, BUDGETS), trained / "arms", "random", 0, "cpu").initial
        for _ in range(2):
            found.append({})
            arm.run(database, found[-1].__setitem__)
            with closing(sqlite3.connect(arm.home / STORE)) as store, store:
                store.execute("UPDATE alembic_version SET version_num = '0013'")
    assert list(found[0]) == arm.cells
    assert found[0] == found[1]


def test_no_strategy_sees_a_mask_of_a_region_that_is_not_labeled(trained: Path) -> None:
    """Painted over outside of the first labels, the masks of the pool lead to the same model and queues."""
    found: list[tuple[Any, ...]] = []
    for turn in range(2):
        with opened(trained) as (project, database), one_thread():
            arm = Arm(
                project, Simulated(("stratified",), 1, BUDGETS), trained / str(turn), "stratified", 0, "cpu"
            )
            cells: dict[Any, dict[str, Any]] = {}
            arm.initial.run(database, cells.__setitem__)
            with opened_arm(arm.initial) as (played, store):
                queues = [
                    select(played, store, overrides={"strategy": strategy, "budget": 6}, dry_run=True).items
                    for strategy in ("stratified", "class_random", "strided", "random", "entropy")
                ]
                found.append(
                    (
                        cells[arm.initial.cells[0]]["model"],
                        [[(i.image_id, i.x, i.y, i.score) for i in items] for items in queues],
                    )
                )
                paint_over(trained, store)
    assert found[0] == found[1]
    assert [len(items) for items in found[0][1]] == 5 * [6]


def test_no_mask_behind_the_last_region_of_a_budget_of_clicks_is_seen(trained: Path) -> None:
    """The queue is cut where its clicks are spent; what is painted behind that, and elsewhere, changes
    nothing: neither what was selected, nor where it was cut."""
    asked = Simulated(("entropy",), 1, (30, 70), in_clicks=True)
    with opened(trained) as (project, database), one_thread():
        arm = Arm(project, asked, trained / "simulation", "entropy", 0, "cpu")
        arm.initial.run(database, lambda key, cell: None)
        with opened_arm(arm.initial) as (played, store):
            spent = label_costs(played, store).clicks
            found: list[tuple[Any, ...]] = []
            for turn in range(3):
                whole = select(played, store, overrides={"strategy": "entropy", "budget": 40}).items
                left = cut_queue(played, store, clicks=70)
                with store.session(write=False) as session:
                    kept = [(i.image_id, i.x, i.y) for i in session.query(QueueItem).order_by("rank")]
                found.append((left, [(i.image_id, i.x, i.y) for i in whole], kept[-left:]))
                assert cut_queue(played, store, clicks=70) == left
                if turn == 0:
                    paint_over(trained, store, queued=True)
                elif turn == 1:
                    paint_over(trained, store)
    assert 30 <= spent < 70
    assert found[0] == found[1]
    assert 1 <= found[0][0] < len(found[0][1])
    assert found[2][1] == found[0][1]


def test_budgets_of_clicks_end_where_the_labels_have_cost_as_much(trained: Path) -> None:
    summary = simulate(trained, budgets="30clicks,70clicks", strategies="entropy,random", reference=False)
    cells = table(trained)
    assert list(cells) == [("entropy", 0, 70), ("initial", 0, 30), ("random", 0, 70)]
    for (_, _, budget), cell in cells.items():
        assert budget <= cell["clicks"] < budget + 30
        assert cell["labels"] < cell["clicks"]
    first = cells[("initial", 0, 30)]
    assert first["clicks_correcting"] == first["clicks"]
    assert cells[("random", 0, 70)]["clicks_correcting"] > first["clicks"]
    assert cells[("random", 0, 70)]["clicks_correcting"] != cells[("random", 0, 70)]["clicks"]
    assert summary.budget_unit == "click"
    again = simulate(trained, budgets="30clicks,70clicks", strategies="entropy,random", reference=False)
    assert again.cells == summary.cells


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"strategies": "random,best"}, "no strategy 'best'"),
        ({"strategies": "random,random"}, "different strategies"),
        ({"strategies": "mutual_information"}, "needs samples"),
        ({"budgets": "a lot"}, "'a lot' is no budget"),
        ({"budgets": "12,6"}, "must be larger than the one before"),
        ({"budgets": "6,100000"}, "have a mask"),
        ({"budgets": "20clicks,40"}, "mixes clicks with other budgets"),
        ({"budgets": "40clicks,20clicks"}, "clicks that ascend"),
        ({"budgets": "1%clicks,2%clicks"}, "no budgets in clicks"),
        ({"budgets": "20clicks,90000clicks", "strategies": "random", "reference": False}, "smaller budgets"),
        ({"seeds": 0}, "at least 1"),
        ({"strategies": "random:noise_beta=-1"}, "greater than 0"),
        ({"strategies": "random:budget=7"}, "no setting of a strategy"),
        ({"strategies": "random:max_similarity=0.9"}, "`model.encoder_weights` is `none`"),
        ({"cold_start": "random,entropy"}, "no ways to choose the first labels"),
        ({"cold_start": "coverage"}, "`model.encoder_weights` is `none`"),
    ],
)
def test_what_cannot_be_simulated_is_refused_with_a_reason(
    simulated: Path, asked: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        simulate(simulated, **asked)


def test_a_strategy_may_have_settings_of_its_own_and_an_audit_slice(trained: Path) -> None:
    with opened(trained) as (project, _):
        asked = Simulated(("entropy:noise_beta=4:min_gap=2:cost_power=1", "entropy"), 1, BUDGETS, audit=True)
        own, plain = (
            Arm(project, asked, trained / "simulation", name, 0, "cpu").simulated_project().config.selection
            for name in asked.strategies
        )
    assert (own.strategy, own.noise_beta, own.min_gap, own.cost_power) == ("entropy", 4.0, 2, 1.0)
    assert (plain.strategy, plain.noise_beta, plain.min_gap) == ("entropy", None, 0)
    assert own.audit_fraction == plain.audit_fraction == project.config.selection.audit_fraction > 0
    assert (
        Arm(project, Simulated(("entropy",), 1, BUDGETS), trained, "entropy", 0, "cpu")
        .simulated_project()
        .config.selection.audit_fraction
        == 0
    )


def test_a_budget_is_a_number_or_a_share() -> None:
    assert parse_budgets("1%,2%,40", 1000, unit="region") == (10, 20, 40)
    with pytest.raises(ConfigError, match="two or more"):
        parse_budgets("5", 1000, unit="region")


@contextmanager
def opened_arm(arm: Arm) -> Generator[tuple[Project, Database]]:
    project = arm.simulated_project()
    with closing(Database(project.database_url)) as database:
        yield project, database


def paint_over(folder: Path, store: Database, *, queued: bool = False) -> None:
    """Give every pixel of the pool's masks another class, but those of labeled regions, and with `queued` of
    queued ones."""
    with store.session(write=False) as session:
        regions: list[Any] = session.query(Label.image_id, LabelRegion).join(LabelRegion).all()
        if queued:
            regions += session.query(QueueItem.image_id, QueueItem).all()
        for image in session.query(Image).where(Image.split == "pool"):
            path = folder / str(image.mask_uri)
            mask = np.array(PillowImage.open(path))
            painted = ((mask + 1) % len(CLASSES)).astype(np.uint8)
            for image_id, part in regions:
                if image_id == image.id:
                    box = np.s_[part.y : part.y + part.h, part.x : part.x + part.w]
                    painted[box] = mask[box]
            assert (painted != mask).any()
            PillowImage.fromarray(painted).save(path)
