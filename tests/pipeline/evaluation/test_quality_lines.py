"""An assessment as text: what is worse than chance is said, and a terminal of 80 columns holds the tables."""

from __future__ import annotations

from typing import Any

from pipeline.evaluation.quality_lines import chance_lines, report_lines
from tests.pipeline.report.stored import quality_document

NAMES = ("background", "crack")


def document(auroc: float | None, reach: float | None = 0.05) -> dict[str, Any]:
    """An assessment of two classes in which entropy finds the errors on crack with this AUROC."""
    found = quality_document(NAMES)
    for row in found["detection"]:
        if (row["part"], row["measure"], row["metric"]) == ("class:crack", "entropy", "auroc"):
            row["value"] = auroc
            row["low"] = None if auroc is None or reach is None else auroc - reach
            row["high"] = None if auroc is None or reach is None else auroc + reach
    return found


def test_a_class_whose_errors_are_found_worse_than_by_chance_is_named() -> None:
    lines = list(chance_lines(document(0.39)))
    assert len(lines) == 3
    assert lines[0] == (
        "Entropy (none) is worse than chance at finding errors on crack: AUROC 0.39 [0.34, 0.44]. The "
        "model is more certain where it misses crack than where it is right."
    )
    assert set(lines) < set(report_lines("r01", document(0.39)))


def test_measures_that_fail_alike_share_a_sentence_about_all_pixels() -> None:
    found = document(0.6)
    for row in found["detection"]:
        if (row["sampler"], row["part"], row["metric"]) == ("none", "all", "auroc"):
            row |= {"value": 0.42, "low": 0.38, "high": 0.46}
    measures = [row["measure"] for row in found["detection"] if row["value"] == 0.42]
    (line,) = chance_lines(found)
    assert len(measures) > 2
    assert all(measure.replace("_", " ") in line.lower() for measure in measures)
    assert line.endswith("(none) are worse than chance at finding errors: AUROC 0.42 to 0.42.")


def test_an_interval_that_holds_chance_is_not_called_worse() -> None:
    assert all("no better than chance" in line for line in chance_lines(document(0.47)))
    assert all("no better than chance" in line for line in chance_lines(document(0.53)))
    assert len(list(chance_lines(document(0.53)))) == 3


def test_a_class_that_is_found_or_never_wrong_needs_no_sentence() -> None:
    assert list(chance_lines(document(0.6))) == []
    assert list(chance_lines(document(None))) == []


def test_without_an_interval_the_value_itself_is_judged() -> None:
    assert "worse than chance" in next(chance_lines(document(0.39, reach=None)))
    assert list(chance_lines(document(0.55, reach=None))) == []


def test_the_tables_fit_80_columns() -> None:
    tables = [line for line in report_lines("r01", document(0.39)) if line.startswith("  ")]
    assert len(tables) > 30
    assert max(map(len, tables)) <= 80


def test_a_model_without_errors_gets_one_sentence_and_no_ranking_of_errors() -> None:
    found = quality_document(NAMES)
    for row in found["detection"]:
        row |= {"value": None, "low": None, "high": None}
    lines = list(report_lines("r01", found))
    assert "Detection of errors: not measured. No pixel of these images is wrong, or none is right." in lines
    text = "\n".join(lines)
    assert "Classes whose errors" not in text
    assert "Rank correlation" not in text
    assert "AUPR" not in text
    assert any(line.startswith("Reliability: ") for line in lines)
