"""How far calibration reorders the queue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from sqlalchemy import select

from db.queries import runs
from db.queries import scores as score_queries
from db.tables import Calibration, ScoringRun
from pipeline.calibration.reordering import compare_orders
from pipeline.config import RegionConfig, ScoringConfig
from pipeline.steps.score import reordering as step
from pipeline.steps.score import score
from tests.factories import ask, change, draw_images, fetch_one, make_pool

SCORING = ScoringConfig(samples=3, workers=0, regions=RegionConfig(cell=32), batch_size=2)


def test_the_rank_correlation_is_scipys_with_ties() -> None:
    generator = np.random.default_rng(0)
    before = np.round(generator.random(300), 2)
    after = before + generator.normal(0, 0.2, 300)
    found = compare_orders(before, after, share=0.2)
    assert found.spearman == pytest.approx(spearmanr(before, after)[0])
    assert (found.top, found.regions) == (60, 300)
    top_before = np.argsort(-before, kind="stable")[:60]
    top_after = np.argsort(-after, kind="stable")[:60]
    assert found.top_overlap == pytest.approx(np.isin(top_before, top_after).mean())


def test_a_monotone_change_reorders_nothing_and_the_top_has_ten_regions_at_least() -> None:
    scores = np.random.default_rng(1).random(100)
    found = compare_orders(scores, scores**3, share=0.01)
    assert (found.spearman, found.top_overlap, found.top) == (1.0, 1.0, 10)
    few = compare_orders(scores[:4], scores[:4], share=1.0)
    assert (few.top, few.regions) == (4, 4)


def test_equal_scores_have_no_order_and_no_regions_are_refused() -> None:
    assert np.isnan(compare_orders(np.zeros(20), np.arange(20.0), share=0.5).spearman)
    with pytest.raises(ValueError, match="one length"):
        compare_orders(np.zeros(0), np.zeros(0), share=0.5)
    with pytest.raises(ValueError, match="one length"):
        compare_orders(np.zeros(3), np.zeros(4), share=0.5)


@pytest.mark.parametrize("kind", ["grid", "segment"])
def test_a_run_says_once_how_far_its_calibration_reorders_the_queue(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scoring = SCORING.model_copy(update={"regions": RegionConfig.model_validate({"kind": kind, "cell": 32})})
    images = draw_images(tmp_path / "images", [(96, 64)] * 5)
    calibrated, database = make_pool(tmp_path / "hot", images, scoring=scoring, temperatures=(8.0, 8.0))
    report = score(calibrated, database)
    with database.session() as session:
        after = score_queries.scored_regions(session, run_id=report.run_id, image_ids=[1, 2, 3, 4, 5])
        runs.update_summary(session, report.run_id, other={"kept": True})
    found = report.reordering
    assert found is not None
    assert (found["images"], found["regions"]) == (5, len(after))
    assert found["spearman"] < 1
    if kind == "grid":  # the same regions with and without calibration: a plain run has them all
        plain, other = make_pool(tmp_path / "plain", images, scoring=scoring, temperatures=(1.0, 1.0))
        run_id = score(plain, other).run_id
        before = ask(other, score_queries.scored_regions, run_id=run_id, image_ids=[1, 2, 3, 4, 5])
        expected, _ = spearmanr([row.entropy for row in before], [row.entropy for row in after])
        assert found["spearman"] == pytest.approx(expected, abs=1e-6)
        other.close()
    assert any(f"rank correlation {found['spearman']:.3f}" in line for line in report.lines())

    monkeypatch.setattr(step, "score_images", lambda *_, **__: pytest.fail("measured again"))
    assert score(calibrated, database).reordering == found
    summary = fetch_one(database, select(ScoringRun).where(ScoringRun.id == report.run_id)).summary or {}
    assert summary["reordering"] == found
    assert summary["other"] == {"kept": True}


def test_where_nothing_is_calibrated_nothing_is_reordered(tmp_path: Path) -> None:
    project, database = make_pool(tmp_path, [(64, 64)] * 2, scoring=SCORING)
    change(database, Calibration, calibrator="identity", parameters={})
    report = score(project, database)
    assert report.reordering is None
    assert not any("rank correlation" in line for line in report.lines())
