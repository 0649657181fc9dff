"""The doctor looks and measures, and writes nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from db.tables import Image, ImageScore, RegionScore, ScoringRun
from pipeline.ownership import open_database
from pipeline.steps.doctor import doctor
from tests.conftest import opened
from tests.factories import fetch

pytestmark = pytest.mark.slow


def test_the_speed_is_that_of_the_served_model_and_nothing_is_written(trained: Path) -> None:
    with opened(trained) as (project, database):
        report = doctor(project, seconds=1.5)
        pool = sum(split == "pool" for split in fetch(database, Image.split))
        written = [len(fetch(database, table)) for table in (ScoringRun, RegionScore, ImageScore)]
    speed = report.speed
    assert speed is not None
    assert written == [0, 0, 0]
    assert (speed.model, speed.device, speed.sampler, speed.pool) == ("r01", "cpu", "none", pool)
    assert speed.images > 0
    assert 0.05 < speed.seconds < 10
    lines = list(report.lines())
    assert f"r01 scores {speed.rate:.1f} images/s on cpu" in lines[-3]
    assert lines[-2].startswith(f"The pool's {pool} images: about ")
    assert json.loads(json.dumps(report.document()))["speed"]["images_per_second"] == speed.rate


def test_images_that_are_gone_end_the_measurement(trained: Path) -> None:
    with opened(trained) as (project, _):
        shutil.rmtree(trained / "images")
        report = doctor(project, seconds=30)
    assert report.speed is None
    assert "None of the images that were tried could be read" in report.not_measured
    pool = next(fact for fact in report.facts if fact.name == "pool")
    assert "is gone: mount its disk" in pool.remedy


def test_a_database_that_cannot_be_opened_is_a_fact_with_its_remedy(trained: Path) -> None:
    with opened(trained) as (project, _):
        open_database(project).close()  # which belongs to it from now on
        renamed = replace(project, config=project.config.model_copy(update={"name": "other"}))
        report = doctor(renamed, seconds=0)
    database = next(fact for fact in report.facts if fact.name == "database")
    assert "belongs to the project 'squares'" in database.found
    assert f"to do: {database.remedy}" in list(report.lines())


def test_without_a_project_there_is_a_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = list(doctor(None).lines())
    assert lines[-1] == "to do: Write a configuration with `segcurate init`."
    assert list(tmp_path.iterdir()) == []
