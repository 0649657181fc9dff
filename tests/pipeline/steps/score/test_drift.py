"""What a nightly run says about its new images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile
import torch
from PIL import Image as PillowImage
from sqlalchemy import select

from db.engine import Database
from db.queries.failures import list_failures
from db.tables import Image, ImageScore, Round, ScoringRun
from pipeline.config import HeatmapConfig, RegionConfig, ScoringConfig
from pipeline.data.input_range import InputRange, pixel_statistics
from pipeline.data.project import Project
from pipeline.model.checkpoints import load_model, save_model
from pipeline.model.device import pick_device
from pipeline.steps.score import score
from tests.factories import add_files, ask, change, draw_images, fetch, fetch_one, make_pool

SCORING = ScoringConfig(
    sampler="none",
    regions=RegionConfig(cell=32),
    batch_size=4,
    workers=0,
    heatmaps=HeatmapConfig(images="none"),
)
SIZE = (64, 48)


def darkened(paths: list[Path], folder: Path) -> list[Path]:
    folder.mkdir()
    for path in paths:
        pixels = np.asarray(PillowImage.open(path), dtype=np.float32) / 255
        dark = np.rint(255 * 0.2 * pixels**4).astype(np.uint8)
        PillowImage.fromarray(dark).save(folder / path.name)
    return sorted(folder.iterdir())


def summary(database: Database, run_id: int) -> dict:
    return fetch_one(database, select(ScoringRun).where(ScoringRun.id == run_id)).summary or {}


def remember(project: Project, low: float, high: float) -> None:
    """Put an input range into the model's card: what training would have seen."""
    folder = project.workdir / "models" / "r01"
    segmenter, card = load_model(folder, device=pick_device("cpu"), class_names=None)
    lowest = [[low] * 3, [0.1] * 3, [low] * 3, [low] * 3]
    highest = [[high] * 3, [1.0] * 3, [high] * 3, [high] * 3]
    seen = InputRange(images=9, lowest=lowest, highest=highest)
    save_model(folder, segmenter, card.model_copy(update={"input_range": seen}))


def test_a_night_in_the_pool_raises_a_warning_with_its_images_and_a_day_does_not(tmp_path: Path) -> None:
    day = draw_images(tmp_path / "day", [SIZE] * 56)
    made = make_pool(tmp_path, day[:20], scoring=SCORING)
    project, database = made.configured(evaluation={"block": 2}), made.database
    add_files(project, database, day[20:32], split="calibration")
    first = score(project, database)
    assert first.drift is None
    stored = summary(database, first.run_id)["drift"]
    assert stored["warning"] is None
    assert [reference["against"] for reference in stored["references"]] == ["calibration"]

    change(database, Round, state="score")
    add_files(project, database, day[32:44])
    second = score(project, database)
    assert second.drift is None
    stored = summary(database, second.run_id)["drift"]
    assert [(one["against"], one["run_id"], one["images"]) for one in stored["references"]] == [
        ("last_run", second.run_id, 20),
        ("calibration", None, 12),
    ]

    change(database, Round, state="score")
    night = add_files(project, database, darkened(day[:12], tmp_path / "night"))
    third = score(project, database)
    assert third.drift is not None
    assert any(third.drift in line for line in third.lines())
    stored = summary(database, third.run_id)["drift"]
    assert stored["warning"] == third.drift
    assert {image["image_id"] for image in stored["images"]} <= set(night)
    assert ("brightness", True) in [
        (row["measure"], row["drifted"]) for one in stored["references"] for row in one["measures"]
    ]
    scored = set(fetch(database, ImageScore.image_id))
    assert scored == set(range(1, 21)) | set(range(33, 45)) | set(night)  # no calibration image among them

    change(database, Round, state="score")
    add_files(project, database, day[44:])
    fourth = score(project, database)
    assert fourth.drift is None
    stored = summary(database, fourth.run_id)["drift"]
    assert stored["drifted"] == [[night[0], night[-1]]]
    assert stored["references"][0]["images"] == 20 + 12  # and none of the night


def test_a_look_with_too_few_sequences_raises_no_alarm_and_is_repeated_with_the_next_images(
    tmp_path: Path,
) -> None:
    day = draw_images(tmp_path / "day", [SIZE] * 48)
    project, database = make_pool(tmp_path, day[:12], scoring=SCORING)
    for index in range(12):
        change(database, Image, Image.id == index + 1, group_name=f"day {index}")
    add_files(project, database, day[12:24], split="calibration")
    assert score(project, database).drift is None

    change(database, Round, state="score")
    add_files(project, database, darkened(day[24:36], tmp_path / "night 1"), group_name="night 1")
    assert score(project, database).drift is None
    stored = summary(database, 1)["drift"]
    assert stored["checked_through"] == 12
    assert (stored["references"][0]["units"], stored["references"][0]["level"]) == ([12, 1], None)
    assert {row["p"] for row in stored["references"][0]["measures"]} == {None}

    change(database, Round, state="score")
    add_files(project, database, darkened(day[36:42], tmp_path / "night 2"), group_name="night 2")
    add_files(project, database, darkened(day[42:], tmp_path / "night 3"), group_name="night 3")
    report = score(project, database)
    stored = summary(database, 1)["drift"]
    assert report.drift is not None, str(stored["references"][0])
    assert (stored["references"][0]["units"], stored["images_compared"]) == ([12, 3], 24)
    assert (stored["checked_through"], stored["drifted"]) == (48, [[25, 48]])


def test_an_image_of_another_scale_is_scored_and_reported_and_one_without_numbers_is_refused(
    tmp_path: Path,
) -> None:
    paths = draw_images(tmp_path / "images", [SIZE] * 3)
    pixels = np.asarray(PillowImage.open(paths[0]), dtype=np.float32) / 255
    for name, values in (
        ("plain", pixels),
        ("magnified", 16 * pixels),
        ("broken", np.where(pixels > 0.5, np.nan, pixels)),
    ):
        paths.append(tmp_path / "images" / f"{name}.tif")
        tifffile.imwrite(paths[-1], values.astype(np.float32), photometric="rgb")
    project, database = make_pool(tmp_path, paths, scoring=SCORING)
    remember(project, -1.0, 1.0)
    report = score(project, database)
    assert (report.images, report.failed) == (5, 1)
    assert [item["uri"] for item in report.outliers] == ["images/magnified.tif"]
    stored = summary(database, report.run_id)["input_range"]
    assert stored["outside"] == 1
    assert stored["images"][0]["image_id"] == 5
    assert stored["images"][0]["times"] > 1
    text = "\n".join(report.lines())
    assert "images/magnified.tif: " in text
    assert "far outside of what the model has seen" in text
    (failure,) = ask(database, list_failures, step="score")
    assert failure.subject == "images/broken.tif"
    assert "no finite numbers" in failure.reason


def test_an_image_of_the_usual_kind_lies_inside_and_the_unit_is_how_far_training_images_differ() -> None:
    generator = np.random.default_rng(0)
    training = torch.from_numpy(generator.uniform(-1, 1, (6, 2, 8, 8)).astype(np.float32))
    seen = InputRange.of(pixel_statistics(training))
    assert seen.outliers(pixel_statistics(training)) == [None] * 6
    brighter = pixel_statistics(training[:1] + 0.5)
    mean = brighter[0, 0] - np.array(seen.highest[0])
    spread = np.maximum(
        np.array(seen.highest[0]) - seen.lowest[0], 0.1 * (np.array(seen.highest[3]) - seen.lowest[2])
    )
    np.testing.assert_allclose(seen.distance(brighter)[0, 0], mean / spread, rtol=1e-4)
    (found,) = seen.outliers(brighter)
    assert found is not None
    assert found["times"] > 1
