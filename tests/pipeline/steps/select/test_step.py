"""The step `select`: what it reads, what it refuses, what it stores."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select, update

from db.queries import queue_items, queues
from db.tables import ImageScore, Queue, QueueItem, RegionScore, Round, ScoringRun
from pipeline import rounds
from pipeline.acquisition.strategies import STRATEGIES, Priority, Strategy
from pipeline.errors import ConfigError, NothingLeft, NotYourTurn, UserError
from pipeline.steps.select import step
from pipeline.summaries.project import project_status
from tests.factories import add_model, add_rows, ask, change, count_rows, fetch, fetch_one, new_run
from tests.pipeline.acquisition.synthetic import CELLS, SIDE, Store, make_store

EVERYTHING: dict[str, Any] = {"budget": 10_000, "per_image_cap": None, "no_touching": False}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path)


def box(item: QueueItem) -> tuple[int, int, int, int]:
    return item.x, item.y, item.w, item.h


def chosen(preview: step.SelectionReport) -> list[tuple[int, tuple[int, int, int, int]]]:
    return [(item.image_id, box(item)) for item in preview.items]


def stored(store: Store) -> list[tuple[object, ...]]:
    queue = fetch_one(store.database, select(Queue).where(Queue.kind == "selected"))
    items = ask(store.database, queue_items.queue_items, queue.id)
    return [(i.rank, i.image_id, i.x, i.y, i.w, i.h, i.slice, i.score, i.reason, i.status) for i in items]


class TestWhatMayBeQueued:
    @pytest.mark.parametrize("unit", ["region", "image"])
    @pytest.mark.parametrize("strategy", ["random", "entropy", "stratified", "strided", "class_random"])
    @pytest.mark.parametrize("audit_fraction", [0.0, 1.0])
    def test_only_pool_images_enter_even_where_others_have_scores(
        self, store: Store, unit: str, strategy: str, audit_fraction: float
    ):
        calibration, test, guard, duplicate, twin, held_out, *pool = store.image_ids
        store.change_image(calibration, split="calibration")
        store.change_image(test, split="test")
        store.change_image(guard, split="guard")
        store.change_image(duplicate, duplicate_of=pool[0])
        store.change_image(held_out, split="test", sha256="f" * 64, duplicate_of=twin)
        store.change_image(twin, sha256="f" * 64)
        settings = EVERYTHING | {"unit": unit, "strategy": strategy, "audit_fraction": audit_fraction}
        preview = step.select(store.configured(**settings), store.database)
        assert {item.image_id for item in preview.items} == set(pool)
        assert len(preview.items) == len(pool) * (9 if unit == "region" else 1)

    @pytest.mark.parametrize("strategy", ["margin", "least_confidence"])
    def test_confidence_without_the_samples_of_an_earlier_version_is_refused_until_it_is_scored_again(
        self, store: Store, strategy: str
    ):
        project = store.configured(**EVERYTHING, strategy=strategy)
        change(store.database, ScoringRun, scorer={"sampler": "mc_dropout"})
        with pytest.raises(UserError, match="computed by an earlier version, without the samples") as caught:
            step.select(project, store.database)
        assert "segcurate score" in str(caught.value)
        assert step.select(store.configured(**EVERYTHING, strategy="entropy"), store.database).items
        change(store.database, ScoringRun, scorer={"sampler": "mc_dropout", "confidence": "mean"})
        assert step.select(project, store.database).items

    def test_scores_that_do_not_know_the_cost_cannot_be_divided_by_it(self, store: Store):
        project = store.configured(**EVERYTHING, strategy="entropy", cost_power=1.0)
        change(store.database, RegionScore, border=None)
        with pytest.raises(UserError, match="without the length of predicted borders") as caught:
            step.select(project, store.database)
        assert "segcurate score" in str(caught.value)
        assert step.select(store.configured(**EVERYTHING, strategy="entropy"), store.database).items
        change(store.database, RegionScore, border=80.0)
        items = step.select(project, store.database).items
        assert "divided by about 11 clicks to the power of 1" in items[0].reason

    def test_queued_and_labeled_regions_never_again_but_released_ones(self, store: Store):
        first, second = store.image_ids[:2]
        boxes = [tuple(box) for box in CELLS.tolist()]
        store.queue_earlier(
            [(first, boxes[0], "queued"), (first, boxes[1], "labeled"), (second, boxes[2], "released")]
        )
        preview = step.select(store.configured(**EVERYTHING), store.database)
        assert (first, boxes[0]) not in chosen(preview)
        assert (first, boxes[1]) not in chosen(preview)
        assert (second, boxes[2]) in chosen(preview)
        assert len(preview.items) == 20 * 9 - 2

    def test_where_every_image_is_labeled_whole_nothing_is_left_and_new_images_come_next(self, store: Store):
        change(store.database, Round, state="select")
        queue_id = store.queue_earlier([])
        *others, last = store.image_ids
        for image_id in others:
            store.label(queue_id, image_id, version=1, boxes=[(0, 0, SIDE, SIDE)])
        assert ask(store.database, project_status).next_command == "segcurate select"
        store.label(queue_id, last, version=1, boxes=[(0, 0, SIDE, SIDE)])
        status = ask(store.database, project_status)
        assert status.next_command == "segcurate ingest"
        assert status.reason.startswith("Every image of the pool is labeled.")
        with store.database.session() as session:
            session.execute(delete(RegionScore))
            session.execute(delete(ImageScore))
        with pytest.raises(NothingLeft, match="every image of the pool is labeled"):
            step.select(store.configured(**EVERYTHING), store.database)

    def test_the_boxes_of_the_latest_label_count_and_those_of_an_older_one_do_not(self, store: Store):
        image = store.image_ids[0]
        boxes = [tuple(box) for box in CELLS.tolist()]
        queue_id = store.queue_earlier([])
        store.label(queue_id, image, version=1, boxes=[boxes[0], boxes[1]])
        store.label(queue_id, image, version=2, boxes=[boxes[0]])
        preview = step.select(store.configured(**EVERYTHING), store.database)
        ours = {box for image_id, box in chosen(preview) if image_id == image}
        assert ours == set(boxes) - {boxes[0]}

    def test_a_region_that_is_half_covered_by_an_old_label_of_another_shape_is_taken(self, store: Store):
        image = store.image_ids[0]
        queue_id = store.queue_earlier([])
        store.label(queue_id, image, version=1, boxes=[(0, 0, 16, 32), (32, 0, 15, 32)])
        preview = step.select(store.configured(**EVERYTHING), store.database)
        ours = {box for image_id, box in chosen(preview) if image_id == image}
        assert (0, 0, 32, 32) not in ours
        assert (32, 0, 32, 32) in ours

    def test_the_same_box_queued_and_labeled_counts_once(self, store: Store):
        image = store.image_ids[0]
        third = (0, 0, 11, 32)
        queue_id = store.queue_earlier([(image, third, "labeled")])
        store.label(queue_id, image, version=1, boxes=[third])
        preview = step.select(store.configured(**EVERYTHING), store.database)
        assert (image, (0, 0, 32, 32)) in chosen(preview)

    def test_a_labeled_image_is_not_queued_whole(self, store: Store):
        queue_id = store.queue_earlier([])
        store.label(queue_id, store.image_ids[0], version=1, boxes=[(0, 0, SIDE, SIDE)])
        store.label(queue_id, store.image_ids[1], version=1, boxes=CELLS[:5].tolist())
        store.label(queue_id, store.image_ids[2], version=1, boxes=CELLS[:4].tolist())
        preview = step.select(store.configured(unit="image", budget=100), store.database)
        assert {item.image_id for item in preview.items} == set(store.image_ids[2:])
        assert {box(item) for item in preview.items} == {(0, 0, SIDE, SIDE)}

    def test_scores_of_another_model_or_of_an_unfinished_run_are_not_used(self, store: Store):
        add_rows(store.database, new_run(scorer_hash="b" * 64))
        preview = step.select(store.configured(budget=3), store.database)
        assert len(preview.items) == 3
        with store.database.session() as session:
            add_model(session, 0, state="closed")
        with pytest.raises(UserError, match="segcurate score"):
            step.select(store.configured(budget=3), store.database)


class TestUnits:
    def test_a_budget_in_images_buys_their_regions(self, store: Store):
        settings = EVERYTHING | {"budget": 2, "budget_unit": "images"}
        assert len(step.select(store.configured(**settings), store.database).items) == 18

    def test_the_unit_image_ranks_images_by_their_score(self, store: Store):
        settings: dict[str, Any] = {
            "unit": "image",
            "strategy": "entropy",
            "budget": 5,
            "audit_fraction": 0.0,
        }
        preview = step.select(store.configured(**settings), store.database)
        best = fetch(store.database, select(ImageScore.image_id).order_by(ImageScore.entropy.desc()).limit(5))
        assert [item.image_id for item in preview.items] == list(best)
        assert {item.region_index for item in preview.items} == {-1}
        assert preview.items[0].reason.startswith("Most uncertain of 20 images")

    def test_a_gap_between_images_of_a_sequence_is_kept(self, store: Store):
        settings: dict[str, Any] = {"unit": "image", "budget": 20, "audit_fraction": 0.0, "min_gap": 4}
        preview = step.select(store.configured(**settings), store.database)
        places = sorted(
            (preview.groups[item.image_id], int(Path(preview.uris[item.image_id]).stem) // 2)
            for item in preview.items
        )
        assert len(places) >= 4
        for (group, here), (next_group, there) in pairwise(places):
            assert group != next_group or there - here >= 4
        assert any("min_gap" in warning for warning in preview.warnings)


class TestTheStoredQueue:
    def test_it_holds_what_the_preview_says(self, store: Store):
        preview = step.select(store.configured(budget=30, seed=7), store.database)
        rows = stored(store)
        assert [row[:2] for row in rows] == [(item.rank, item.image_id) for item in preview.items]
        assert [row[0] for row in rows] == list(range(1, 31))
        assert {row[-1] for row in rows} == {"queued"}
        queue = ask(store.database, queues.list_queues)[0]
        assert (queue.name, queue.kind, queue.strategy) == ("round-01", "selected", "stratified")
        assert (queue.unit, queue.seed, queue.run_id) == ("region", 7, 1)
        audit = [i for i in ask(store.database, queue_items.queue_items, queue.id) if i.slice == "audit"]
        current = ask(store.database, rounds.require, "export")
        assert [item.inclusion_probability for item in audit] == [3 / 180] * 3
        assert preview.by_slice == {"selected": 27, "audit": 3}
        assert sum(preview.by_class.values()) == sum(preview.by_group.values()) == 30
        assert current.state == "export"

    def test_scores_are_those_of_the_run(self, store: Store):
        settings: dict[str, Any] = {"strategy": "mutual_information", "budget": 12}
        preview = step.select(store.configured(**settings), store.database)
        with store.database.session(write=False) as session:
            for item in preview.items:
                row = session.get(RegionScore, (1, item.image_id, item.region_index))
                assert row is not None
                assert item.score == pytest.approx(row.mutual_information, abs=1e-6)
                assert item.predicted_class == row.predicted_class
        low, high = preview.score_range or (0, 0)
        assert low == min(item.score or 0 for item in preview.items) < high

    def test_a_dry_run_writes_nothing(self, store: Store):
        preview = step.select(store.configured(budget=30), store.database, dry_run=True)
        assert len(preview.items) == 30
        assert count_rows(store.database, Queue) == 0
        assert count_rows(store.database, QueueItem) == 0
        assert ask(store.database, rounds.require, "select").state == "select"
        assert step.select(store.configured(budget=30), store.database).document() == preview.document()

    def test_selecting_again_replaces_the_draft(self, store: Store):
        step.select(store.configured(budget=30), store.database)
        before = stored(store)
        step.select(store.configured(budget=30), store.database)
        assert stored(store) == before
        step.select(store.configured(budget=5), store.database)
        assert len(stored(store)) == 5

    def test_an_exported_queue_is_not_replaced(self, store: Store):
        step.select(store.configured(budget=30), store.database)
        with store.database.session() as session:
            rounds.advance(session, rounds.require(session, "export"), "export")
        with pytest.raises(NotYourTurn, match="segcurate import"):
            step.select(store.configured(budget=5), store.database)
        assert len(stored(store)) == 30

    def test_the_next_round_takes_other_regions(self, store: Store):
        first = step.select(store.configured(budget=40), store.database)
        with store.database.session() as session:
            current = rounds.require(session, "export")
            current.state = "closed"
            session.add(Round(number=2, state="select"))
        second = step.select(store.configured(budget=40), store.database)
        assert second.name == "round-02"
        assert not set(chosen(first)) & set(chosen(second))

    def test_killed_before_the_commit_it_leaves_nothing_and_a_rerun_gives_the_same_queue(self, store: Store):
        planned = step.select(store.configured(), store.database, dry_run=True)
        code = (
            "import os, signal, sys; from pathlib import Path\n"
            "from db.engine import Database; from pipeline import rounds\n"
            "from pipeline.config import ProjectConfig\nfrom pipeline.data.project import Project\n"
            "from pipeline.steps.select import step\n"
            "config = ProjectConfig.model_validate_json(sys.stdin.read())\n"
            "project = Project(config=config, root=Path(sys.argv[1]))\n"
            "rounds.advance = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
            "step.select(project, Database(project.database_url))\n"
        )
        child = subprocess.run(
            [sys.executable, "-c", code, str(store.project.root)],
            input=store.project.config.model_dump_json().encode(),
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[4])},
            check=False,
        )
        assert child.returncode == -signal.SIGKILL
        assert count_rows(store.database, Queue) == 0
        assert step.select(store.project, store.database).document() == planned.document()
        assert len(stored(store)) == len(planned.items)


class TestRefusals:
    def test_it_is_not_its_turn(self, store: Store):
        change(store.database, Round, state="train")
        with pytest.raises(NotYourTurn, match="segcurate train"):
            step.select(store.project, store.database)

    def test_an_exhausted_pool(self, store: Store):
        queue_id = store.queue_earlier([])
        for image in store.image_ids:
            store.label(queue_id, image, version=1, boxes=[(0, 0, SIDE, SIDE)])
        with pytest.raises(UserError, match="queued or labeled already"):
            step.select(store.project, store.database)

    @pytest.mark.parametrize("strategy", ["stratified", "strided"])
    def test_a_pool_without_scores(self, store: Store, strategy: str):
        for image in store.image_ids:
            store.change_image(image, split="guard")
        with pytest.raises(UserError, match="no region of the pool"):
            step.select(store.configured(strategy=strategy), store.database)

    def test_an_error_inside_a_strategy_is_not_taken_for_an_empty_pool(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ):
        def broken(*_: object) -> Priority:
            raise KeyError("predicted_class")

        monkeypatch.setitem(STRATEGIES, "entropy", Strategy(broken, measure="entropy"))
        with pytest.raises(KeyError, match="predicted_class"):
            step.select(store.configured(strategy="entropy"), store.database)

    @pytest.mark.parametrize("unit", ["region", "image"])
    def test_mutual_information_without_samples(self, store: Store, unit: str):
        with store.database.session() as session:
            for table in (RegionScore, ImageScore):
                session.execute(update(table).values(mutual_information=None, expected_entropy=None))
        with pytest.raises(UserError, match="scoring.sampler: mc_dropout"):
            step.select(store.configured(strategy="mutual_information", unit=unit), store.database)
        assert step.select(store.configured(strategy="entropy", unit=unit), store.database).items

    def test_an_override_that_is_not_valid(self, store: Store):
        with pytest.raises(ConfigError, match=r"selection\.budget"):
            step.select(store.project, store.database, overrides={"budget": 0})
        with pytest.raises(ConfigError, match=r"selection\.bugdet"):
            step.select(store.project, store.database, overrides={"bugdet": 3})

    def test_an_override_holds_for_this_queue(self, store: Store):
        preview = step.select(store.project, store.database, overrides={"budget": 4, "strategy": "random"})
        assert (len(preview.items), preview.strategy, preview.score_range) == (4, "random", None)


class TestWords:
    def test_a_budget_beyond_the_pool_takes_all_and_says_so(self, store: Store):
        preview = step.select(store.configured(**EVERYTHING), store.database)
        assert len(preview.items) == 180
        assert preview.warnings == ["The budget of 10 000 is more than is left: 180 regions."]

    def test_a_class_that_is_never_predicted_is_named(self, store: Store):
        change(store.database, RegionScore, RegionScore.predicted_class == 1, predicted_class=0)
        preview = step.select(store.configured(budget=20), store.database)
        assert any("mostly pole" in warning for warning in preview.warnings)
        assert len(preview.items) == 20

    def test_a_class_that_fills_no_region_gets_its_part_where_it_is_salient(self, store: Store):
        change(store.database, RegionScore, RegionScore.predicted_class == 1, predicted_class=0)
        change(store.database, ImageScore, stratum=0, stratum_share=1.0)
        change(store.database, RegionScore, stratum=RegionScore.predicted_class, stratum_share=0.9)
        change(store.database, RegionScore, RegionScore.region_index == 5, stratum=1, stratum_share=0.06)
        preview = step.select(store.configured(budget=20, audit_fraction=0.0), store.database)
        poles = [item for item in preview.items if ", 6 % pole" in item.reason]
        assert len(poles) >= 4
        assert not preview.warnings

    def test_a_class_that_is_hardly_predicted_is_found_by_uncertainty_not_by_chance_only(self, store: Store):
        change(store.database, RegionScore, stratum=0, stratum_share=1.0)
        change(store.database, ImageScore, stratum=0, stratum_share=1.0)
        (warning,) = step.select(store.configured(budget=20), store.database).warnings
        assert warning.startswith("No region counts for pole, sky: ")
        assert "found by their uncertainty and by the audit" in warning

    def test_an_audit_of_kept_regions_only_is_not_sold_as_one_of_the_pool(self, store: Store):
        change(store.database, ImageScore, regions=12)
        preview = step.select(store.configured(budget=20), store.database)
        assert any("keep_regions" in warning for warning in preview.warnings)

    def test_reasons_say_where_an_item_stands(self, store: Store):
        image = store.image_ids[0]
        with store.database.session() as session:
            session.execute(
                update(RegionScore)
                .where(RegionScore.image_id == image, RegionScore.region_index == 4)
                .values(entropy=1.5, predicted_class=1, class_share=0.41, impurity=0.9)
            )
            session.execute(
                update(RegionScore)
                .where(RegionScore.image_id == image, RegionScore.region_index == 0)
                .values(entropy=1.2, predicted_class=2, class_share=1.0, impurity=0.0)
            )
        settings: dict[str, Any] = {"budget": 20, "audit_fraction": 0.1}
        ranked = step.select(store.configured(strategy="entropy", **settings), store.database)
        reason = {(item.image_id, item.region_index): item.reason for item in ranked.items}
        assert (
            reason[image, 4]
            == "Most uncertain of 180 regions (entropy 1.50 of 1). Predicted 41 % pole, on a boundary."
        )
        assert (
            reason[image, 0] == "No. 2 of 180 regions by uncertainty (entropy 1.20 of 1). Predicted all sky."
        )
        audit = next(item for item in ranked.items if item.slice == "audit")
        assert audit.reason.startswith("Picked at random, as a check. Predicted ")
        by_class = step.select(store.configured(strategy="stratified", **settings), store.database)
        poles = [item.reason for item in by_class.items if "regions with pole" in item.reason]
        assert poles[0].startswith("Most uncertain of ")
        assert ", times the share of pole)." in poles[0]
        drawn = step.select(store.configured(strategy="random", **settings), store.database)
        assert any(item.reason.startswith("Picked at random from 180 regions. ") for item in drawn.items)
        stride = step.select(store.configured(strategy="strided", **settings), store.database)
        assert any(item.reason.startswith("Image ") and " of drive-" in item.reason for item in stride.items)
        noisy = step.select(store.configured(strategy="entropy", noise_beta=10, **settings), store.database)
        assert any("power noise β = 10" in item.reason for item in noisy.items)
