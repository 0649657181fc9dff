"""The gate of mutual information: what decides, and what the selection does about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from db.queries.evaluations import Kind, put_assessment
from pipeline.errors import UserError
from pipeline.evaluation.estimate import Estimate
from pipeline.evaluation.gate import NoveltyRow, decide_gate, novelty_row, novelty_rows
from pipeline.steps.select import select
from tests.factories import ask
from tests.pipeline.acquisition.synthetic import Store, make_store

RANKED: dict[str, Any] = {"strategy": "mutual_information", "budget": 10}


def row(
    source: str, low: float, *, sampler: str = "mc_dropout", measure: str = "mutual_information"
) -> NoveltyRow:
    return NoveltyRow(sampler, measure, source, Estimate(low + 0.05, low, low + 0.1))


def quality(*rows: NoveltyRow) -> dict[str, Any]:
    return {"novelty": [novelty_row(item) for item in rows]}


def novelty(*rows: NoveltyRow) -> dict[str, Any]:
    return {"held_out_classes": {"rows": [novelty_row(item) | {"metric": "auroc"} for item in rows]}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path)


def put(store: Store, kind: Kind, document: dict[str, Any]) -> None:
    ask(store.database, put_assessment, model_id=1, kind=kind, document=document)


class TestWhatDecides:
    def test_classes_that_were_held_out_decide_before_inputs_that_were_made_up(self):
        rows = novelty_rows(quality(row("noise", 0.2)), novelty(row("held_out_classes", 0.7)))
        gate = decide_gate(rows, sampler="mc_dropout", threshold=0.6)
        assert gate is not None
        assert gate.row.source == "held_out_classes"
        assert gate.passed

    def test_of_made_up_inputs_the_one_that_is_noticed_least_decides(self):
        rows = [row("noise", 0.9), row("shuffled_patches", 0.55)]
        gate = decide_gate(rows, sampler="mc_dropout", threshold=0.6)
        assert gate is not None
        assert gate.row.source == "shuffled_patches"
        assert not gate.passed

    def test_an_auroc_without_an_interval_does_not_pass(self):
        single = NoveltyRow("mc_dropout", "mutual_information", "noise", Estimate(0.99))
        gate = decide_gate([single], sampler="mc_dropout", threshold=0.6)
        assert gate is not None
        assert not gate.passed

    def test_other_samplers_and_measures_say_nothing(self):
        rows = [row("noise", 0.9, sampler="tta"), row("noise", 0.9, measure="entropy")]
        assert decide_gate(rows, sampler="mc_dropout", threshold=0.6) is None

    def test_a_former_copy_of_held_out_classes_gives_way_to_the_stored_ones(self):
        old = quality(row("held_out_classes", 0.9))
        assert [found.auroc.low for found in novelty_rows(old, novelty(row("held_out_classes", 0.5)))] == [
            0.5
        ]


class TestWhatTheSelectionDoes:
    def test_a_measure_below_the_gate_is_refused_with_its_value_and_the_way_around(self, store: Store):
        put(store, "quality", quality(row("noise", 0.41)))
        with pytest.raises(UserError, match=r"0\.460 \[0\.410, 0\.510\].*0\.60.*--force"):
            select(store.configured(**RANKED), store.database)

    def test_force_selects_and_says_that_it_was_forced(self, store: Store):
        put(store, "quality", quality(row("noise", 0.41)))
        preview = select(store.configured(**RANKED), store.database, force=True)
        assert len(preview.items) == 10
        assert any(line.startswith("Forced, although") and "0.460" in line for line in preview.warnings)

    def test_held_out_classes_that_were_measured_later_open_the_gate(self, store: Store):
        put(store, "quality", quality(row("noise", 0.41)))
        put(store, "novelty", novelty(row("held_out_classes", 0.62)))
        preview = select(store.configured(**RANKED), store.database)
        assert not any("mutual information" in line for line in preview.warnings)

    def test_without_an_assessment_the_selection_only_warns(self, store: Store):
        preview = select(store.configured(**RANKED), store.database)
        assert any("not assessed" in line and "segcurate assess" in line for line in preview.warnings)

    def test_a_strategy_without_mutual_information_has_no_gate(self, store: Store):
        put(store, "quality", quality(row("noise", 0.41)))
        preview = select(store.configured(strategy="entropy", budget=10), store.database)
        assert not any("mutual information" in line for line in preview.warnings)
