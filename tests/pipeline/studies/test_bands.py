"""A large image is measured band by band: the numbers are those of the whole image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data import bands
from pipeline.progress import silent
from pipeline.steps.held_out import assessed_images
from pipeline.steps.ready import chosen_model
from pipeline.steps.served_model import sampler_calibrators
from pipeline.studies.held_out import HeldOutImages
from pipeline.studies.measurement import measure
from pipeline.studies.quality import QualityStudy
from pipeline.studies.stress import measure_stress
from pipeline.uncertainty.served_model import open_samplers
from tests.conftest import opened

SAMPLERS = ("none", "mc_dropout")


def everything(folder: Path) -> dict[str, Any]:
    """What evaluate, assess and stress find on two images of the test split."""
    with opened(folder) as (project, database):
        with database.session(write=False) as session:
            row = chosen_model(session, None)
            split, items = assessed_images(session, project)
            calibrators = sampler_calibrators(session, row.id, SAMPLERS)
        model = open_samplers(project, row.checkpoint_uri, calibrators)
        few = items[:2]
        evaluated = measure(
            split, HeldOutImages(project, few), model, config=project.config.evaluation, progress=silent
        )
        study = QualityStudy(project, model, few, [few[0].ref])
        assert study.run(silent) == 2
        stressed, _ = measure_stress(model.first, HeldOutImages(project, few), progress=silent)
        return {
            "evaluate": [
                {str(key): [value.value, value.low, value.high] for key, value in found.metrics.items()}
                for found in evaluated
            ],
            "assess": study.document(split, None),
            "stress": {
                f"{image_id} {condition}": values
                for image_id, of_image in stressed.items()
                for condition, values in of_image.items()
            },
        }


def numbers(found: Any, path: str = "") -> dict[str, float]:
    if isinstance(found, dict):
        found = found.items()
    elif isinstance(found, list | tuple):
        found = enumerate(found)
    else:
        return {path: float(found)} if isinstance(found, int | float) else {}
    return {place: number for key, part in found for place, number in numbers(part, f"{path}/{key}").items()}


def test_numbers_of_an_image_do_not_depend_on_the_bands_that_it_is_measured_in(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = numbers(everything(trained))
    monkeypatch.setattr(bands, "BAND_VALUES", 10_000)
    assert len(list(bands.bands(48, 64 * 12, multiple=4))) > 3
    in_bands = numbers(everything(trained))
    assert len(whole) > 500
    np.testing.assert_allclose(list(in_bands.values()), list(whole.values()), atol=2e-5, rtol=2e-5)
    assert list(in_bands) == list(whole)
