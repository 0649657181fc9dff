"""What an evaluation measures of each image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.calibration.calibrators import Calibrators, Temperature
from pipeline.progress import silent
from pipeline.steps.held_out import assessed_images
from pipeline.steps.ready import chosen_model
from pipeline.studies import measurement
from pipeline.studies.held_out import HeldOutImages
from pipeline.studies.measurement import EvaluationRow, measure
from pipeline.uncertainty.served_model import open_samplers
from tests.conftest import opened


def measured(folder: Path, calibrators: Calibrators) -> list[EvaluationRow]:
    with opened(folder) as (project, database):
        with database.session(write=False) as session:
            row = chosen_model(session, None)
            split, items = assessed_images(session, project)
        model = open_samplers(project, row.checkpoint_uri, {"none": calibrators, "mc_dropout": calibrators})
        images = HeldOutImages(project, items[:2])
        return measure(split, images, model, config=project.config.evaluation, progress=silent)


def test_where_calibration_changes_nothing_each_image_is_measured_once_with_the_same_numbers(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[Any] = []
    original = measurement.image_statistics

    def watch(*given: Any, **named: Any) -> Any:
        counted.append(given)
        return original(*given, **named)

    monkeypatch.setattr(measurement, "image_statistics", watch)
    once = measured(trained, Calibrators())
    assert len(counted) == 2 * 2  # images × samplers
    monkeypatch.setattr(Calibrators, "change_nothing", False)
    counted.clear()
    twice = measured(trained, Calibrators())
    assert len(counted) == 2 * 2 * 2
    assert [(row.sampler, row.calibrated) for row in once] == [
        (sampler, calibrated) for sampler in ("none", "mc_dropout") for calibrated in (False, True)
    ]
    assert repr([(row.metrics, row.curves) for row in once]) == repr(
        [(row.metrics, row.curves) for row in twice]
    )


def test_a_single_identity_of_two_leaves_both_to_be_measured(trained: Path) -> None:
    rows = {
        (row.sampler, row.calibrated): row.metrics[("nll", -1)].value
        for row in measured(trained, Calibrators(deterministic=Temperature(3.0)))
    }
    assert rows["none", True] != rows["none", False]
    assert rows["mc_dropout", True] == rows["mc_dropout", False]
