"""What is said of a simulation, from cells of known overlaps."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib import resources

import numpy as np
import pytest

from db.engine import Database
from db.queries import simulations
from db.queries.simulations import FULL, INITIAL, CellKey
from pipeline.config import ProjectConfig
from pipeline.evaluation.overlap import Overlap
from pipeline.report.figures import SERIES
from pipeline.report.page import render_simulation
from pipeline.report.sections.simulation import _curves, _differences, _first_labels, _reached
from pipeline.report.simulation_figure import draw_simulation
from pipeline.summaries.simulations import SimulationSummary, newest_summary

CONFIG = ProjectConfig(name="a", data={"images": "images", "classes": ["ground", "car"]})  # pyright: ignore
BUDGETS = [10, 20, 40]
LEVELS = {"stratified": (0.30, 0.44, 0.52), "class_random": (0.30, 0.38, 0.45), "random": (0.30, 0.33, 0.40)}


def cell(
    iou: float, *, labels: int, clicks: float, corrected: bool = True, images: int = 12
) -> dict[str, object]:
    """A cell whose IoU of both classes is `iou` in every test image."""
    right = np.round(np.full((images, 2), 1000 * iou))
    confusion = np.zeros((images, 2, 2))
    confusion[:, [0, 1], [0, 1]] = right
    confusion[:, [0, 1], [1, 0]] = (1000 - right) / 2
    overlap = Overlap.of(
        confusion,
        image_ids=range(images),
        image_runs=range(images),
        groups=[f"g{index}" for index in range(images)],
        least=1,
    )
    return {
        "overlap": overlap.document(),
        "miou": overlap.mean_iou,
        "ece": 0.1,
        "ece_before": 0.2,
        "images": images,
        "pixels": 100 * labels,
        "labels": labels,
        "clicks": clicks,
        **({"clicks_correcting": labels + clicks / 10} if corrected else {}),
    }


def summarised(
    *,
    seeds: int = 3,
    without: CellKey | None = None,
    other_first: float | None = None,
    corrected: bool = True,
    budget_unit: str | None = None,
) -> SimulationSummary:
    database = Database("sqlite:///:memory:")
    unit = {} if budget_unit is None else {"budget_unit": budget_unit}
    with database.session() as session:
        row = simulations.open_simulation(
            session, hash="f" * 64, settings={"budgets": BUDGETS, "unit": "region", **unit}
        )
        for seed in range(seeds):
            shift = 0.01 * seed
            keys = {CellKey(INITIAL, seed, 10): (0.30, 10.0), CellKey(FULL, seed, 0): (0.60, 900.0)}
            if other_first is not None:
                keys[CellKey("initial:coverage", seed, 10)] = (other_first, 12.0)
            for name, levels in LEVELS.items():
                dear = 3.0 if name == "stratified" else 1.0
                for budget, level in zip(BUDGETS[1:], levels[1:], strict=True):
                    noise = 0.002 * ((seed * 7 + budget + len(name)) % 5)
                    keys[CellKey(name, seed, budget)] = (level + noise, dear * budget)
            for key, (level, clicks) in keys.items():
                if key != without:
                    labels = key.budget or 100
                    simulations.put_cell(
                        session,
                        row.id,
                        key,
                        cell(level + shift, labels=labels, clicks=clicks, corrected=corrected),
                    )
        found = newest_summary(session, CONFIG)
    assert found is not None
    return found


def test_first_labels_of_several_ways_have_a_table_and_a_paired_difference() -> None:
    found = summarised(other_first=0.35)
    coverage = found.cold_starts[1]
    assert [one.name for one in found.cold_starts] == ["random", "coverage"]
    assert coverage.difference is not None
    assert coverage.difference.value == pytest.approx(0.05, abs=1e-6)
    assert [one.name for one in found.strategies] == ["stratified", "class_random", "random"]
    lines = list(found.lines())
    place = lines.index("The first 10 regions, chosen in several ways:")
    assert lines[place + 3].split()[:2] == ["coverage", "0.360"]
    table = _first_labels(found)
    assert len(table.rows) == 2
    assert summarised().cold_starts == []


def test_the_table_fits_a_terminal_and_ends_with_a_verdict_for_regions_and_for_clicks() -> None:
    found = summarised()
    lines = list(found.lines())
    assert max(len(line) for line in lines if line.startswith("  ")) <= 80
    assert [one.name for one in found.strategies] == ["stratified", "class_random", "random"]
    per_region, drawing, correcting = found.verdicts
    assert per_region.answer == "yes"
    assert lines[-3].startswith("Yes, per region: stratified beats class_random and random")
    assert lines[-2].startswith("No, per click (drawing): stratified is behind class_random")
    assert (drawing.per, correcting.per) == ("click (drawing)", "click (correcting)")
    assert drawing.answer != "yes"
    areas = found.comparisons[0].areas
    assert areas["clicks"].value < areas["clicks_correcting"].value < areas["labels"].value
    assert 0.40 < found.comparisons[0].saved["labels"].value < 0.50


def test_cells_that_do_not_know_the_clicks_of_correcting_are_compared_without() -> None:
    found = summarised(corrected=False)
    assert [one.per for one in found.verdicts] == ["region", "click (drawing)"]
    assert "to correct" not in "\n".join(found.lines()).replace("and to correct proposals instead", "")
    assert "area_by_clicks_correcting" not in found.document()["comparisons"][0]


def test_budgets_of_clicks_are_said_to_be_clicks() -> None:
    found = summarised(budget_unit="click", other_first=0.35)
    lines = list(found.lines())
    assert max(len(line) for line in lines if line.startswith("  ")) <= 80
    assert any(line.startswith("mIoU by clicks to draw the labels") for line in lines)
    assert "The first 10 clicks, chosen in several ways:" in lines
    assert found.comparisons[0].area is found.comparisons[0].areas["clicks"]
    assert found.document()["budget_unit"] == "click"
    head, row, *_ = found.csv().splitlines()
    assert dict(zip(head.split(","), row.split(","), strict=True))["budget_unit"] == "click"
    assert [one.per for one in found.verdicts] == ["region", "click (drawing)", "click (correcting)"]
    assert _reached(found).caption == "With 40 clicks"


def test_a_seed_that_lacks_a_cell_is_left_out_and_said() -> None:
    found = summarised(without=CellKey("random", 1, 40))
    assert found.seeds == (0, 2)
    assert found.missing == 1
    assert "1 cell" in list(found.lines())[1]


def test_a_simulation_that_has_only_its_first_models_is_summarised_without_a_strategy() -> None:
    database = Database("sqlite:///:memory:")
    with database.session() as session:
        row = simulations.open_simulation(
            session, hash="f" * 64, settings={"budgets": BUDGETS, "unit": "region"}
        )
        for seed in range(2):
            simulations.put_cell(
                session, row.id, CellKey(INITIAL, seed, 10), cell(0.3, labels=10, clicks=10.0)
            )
        summary = newest_summary(session, CONFIG)
    assert summary is not None
    assert (summary.seeds, summary.strategies, summary.verdicts) == ((), [], [])
    assert list(summary.lines())


def test_json_has_the_intervals_and_csv_a_line_a_cell() -> None:
    found = summarised()
    document = found.document()
    area = document["comparisons"][0]["area"]
    assert area["seeds_and_images"]["low"] <= area["seeds"]["value"] <= area["seeds_and_images"]["high"]
    assert document["strategies"][0]["share_of_all_labels"]["value"] == pytest.approx(0.87, abs=0.02)
    head, *rows = found.csv().splitlines()
    assert head.endswith("iou ground,iou car")
    assert len(rows) == 3 * (1 + 1 + 3 * 2)


def test_the_report_draws_both_curves_and_both_tables() -> None:
    found = summarised()
    over_labels, *over_clicks, gained = _curves(found)
    assert "stratified: 0.5" in over_labels.svg
    assert ["clicks to draw" in over_clicks[0].svg, "clicks to correct" in over_clicks[1].svg] == [True, True]
    assert [name for _, name in gained.legend] == ["stratified − class_random", "stratified − random"]
    assert len(_reached(found).rows) == 3
    assert _reached(found).head[-2:] == ["clicks to draw", "clicks to correct"]
    assert len(_differences(found).rows) == 6
    without = summarised(corrected=False)
    assert len(_curves(without)) == 3
    assert _reached(without).head[-1] == "clicks to draw"


def test_strategies_that_share_a_cell_have_the_same_interval_there() -> None:
    first = [one.curve[0].over_both for one in summarised().strategies]
    assert first[0].low < first[0].value
    assert first == 3 * [first[0]]


def test_the_picture_has_a_panel_for_labels_for_clicks_and_for_differences() -> None:
    figure = draw_simulation(summarised(), title="streets")
    labels, clicks, gained = figure.axes
    assert len(labels.lines) == len(clicks.lines) == 3
    legend = gained.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "stratified − class_random",
        "stratified − random",
    ]
    with pytest.raises(ValueError, match="finished seed"):
        draw_simulation(summarised(without=CellKey(INITIAL, 0, 10), seeds=1), title="streets")


def test_the_page_of_a_simulation_stands_alone() -> None:
    page = render_simulation("<b>streets", summarised(), written_at=datetime(2026, 1, 2, tzinfo=UTC))
    assert "&lt;b&gt;streets" in page
    assert "3 seeds · 02 January 2026" in page
    assert "Yes, per region: stratified beats class_random and random" in page
    assert "http" not in page.replace("http-equiv", "")
    style = (resources.files("pipeline.report") / "templates" / "page.css").read_text(encoding="utf-8")
    assert all(f"--s{turn}: {color}" in style for turn, color in enumerate(SERIES))
