"""`segcurate prune`: old scores and heat maps go, what is needed stays, and a killed one goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from db.engine import Database
from db.tables import ImageScore, Round, ScoringRun
from pipeline.data.project import Project
from pipeline.errors import UserError
from pipeline.steps import prune as step
from pipeline.steps.prune import prune
from pipeline.steps.score import score
from tests.factories import Workspace, count_scores, fetch, make_pool, new_image, new_run


@pytest.fixture
def scored(tmp_path: Path) -> Workspace:
    """Three runs over two images, of three seeds, with a heat map an image."""
    settings: dict[str, Any] = {
        "samples": 2,
        "regions": {"kind": "grid", "cell": 32},
        "heatmaps": {"images": "all", "measures": ["entropy"]},
    }
    made = make_pool(tmp_path, [(64, 64)] * 2, scoring=settings)
    for seed in range(3):
        score(made.configured(scoring={"seed": seed}), made.database, any_time=True)
    return made


def runs_with_rows(database: Database) -> set[int]:
    return set(fetch(database, ImageScore.run_id))


def folders(project: Project) -> set[str]:
    return {folder.name for folder in (project.workdir / "heatmaps").iterdir()}


def test_all_but_the_newest_runs_lose_their_rows_and_heat_maps(scored: Workspace) -> None:
    assert (runs_with_rows(scored.database), folders(scored.project)) == ({1, 2, 3}, {"1", "2", "3"})
    report = prune(*scored, keep_runs=2)
    assert (runs_with_rows(scored.database), folders(scored.project)) == ({2, 3}, {"2", "3"})
    assert report.lines() == [
        "Run 1 of r01: 2 images and 8 regions are forgotten.",
        "1 folder of heat maps deleted.",
    ]
    assert prune(*scored, keep_runs=2).lines() == ["There is nothing to prune."]


def test_what_was_pruned_is_scored_from_the_start(scored: Workspace) -> None:
    prune(*scored, keep_runs=1)
    report = score(*scored, any_time=True)
    assert (report.run_id, report.images) == (4, 2)
    with scored.database.session(write=False) as session:
        assert count_scores(session, run_id=4) == (2, 8)
        first, again = (session.get_one(ScoringRun, run_id) for run_id in (1, 4))
        assert first.scorer_hash == again.scorer_hash


@pytest.mark.parametrize("place", ["_delete_rows", "_delete_folders"])
def test_a_prune_that_is_killed_goes_on(
    scored: Workspace, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:

    def die(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(step, place, die)
        with pytest.raises(KeyboardInterrupt):
            prune(*scored, keep_runs=1)
    assert folders(scored.project) == {"1", "2", "3"}
    alive = select(ScoringRun.id).where(ScoringRun.pruned_at.is_(None))
    assert fetch(scored.database, alive) == [3]
    prune(*scored, keep_runs=1)
    assert (runs_with_rows(scored.database), folders(scored.project)) == ({3}, {"3"})


def test_the_run_that_serves_stays_though_it_is_old(scored: Workspace) -> None:
    with scored.database.session() as session:
        session.add(new_image("x", position=9))
        session.add(Round(number=2, state="train"))
        model = session.get_one(ScoringRun, 3).model_id
        session.add(new_run(model, scorer_hash="begun"))
    report = prune(*scored, keep_runs=1)
    assert report.kept == {3: "the scores of r01, which serves"}
    assert runs_with_rows(scored.database) == {3}


def test_at_least_one_run_is_kept(scored: Workspace) -> None:
    with pytest.raises(UserError, match="at least 1 run, but got 0"):
        prune(*scored, keep_runs=0)
