"""`segcurate score`: everything once, whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage
from sqlalchemy import delete, select, update

from db.engine import Database
from db.queries import scores
from db.queries import shards as shards
from db.queries.failures import list_failures
from db.queries.rounds import current_round
from db.tables import Image, ImageScore, Model, RegionScore, Round, ScoringRun, Shard
from pipeline.config import HeatmapConfig, RegionConfig
from pipeline.drawing.heatmaps import two_colour
from pipeline.errors import ConfigError, NotYourTurn, UserError
from pipeline.progress import TILES
from pipeline.regions.shapes import region_boxes
from pipeline.steps.score import score
from pipeline.uncertainty.measures import MEASURES
from tests.factories import (
    Workspace,
    add_files,
    add_label,
    ask,
    change,
    count_rows,
    draw_images,
    fetch,
    fetch_one,
    make_pool,
    new_queue,
    put,
    tiny_checkpoint,
)
from tests.pipeline.drawing.stored import read_heatmap

COLUMNS = ("image_id", "region_index", "x", "y", "w", "h", "pixels", "predicted_class", *MEASURES)


def pool_of(root: Path, sizes: Sequence[tuple[int, int]], **changes: Any) -> Workspace:
    settings: dict[str, Any] = {"samples": 3, "regions": {"cell": 32}, "batch_size": 4, "shard_images": 3}
    return make_pool(root, sizes, scoring=settings | {"heatmaps": {"images": "none"}} | changes)


def rows_of(database: Database) -> dict[str, np.ndarray]:
    """Every region row of the only run, by image and region."""
    (run_id,) = fetch(database, ScoringRun.id)
    return ask(database, scores.region_columns, run_id=run_id, columns=COLUMNS)


def assert_same_rows(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name in COLUMNS:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, rtol=1e-4, err_msg=name)


def test_every_region_of_every_pool_image_is_scored_once(tmp_path: Path) -> None:
    sizes = [(96, 64), (50, 70), (96, 64), (33, 20), (96, 64), (1, 1), (50, 70)]
    project, database = pool_of(tmp_path, sizes)
    report = score(project, database)

    expected = [
        (number, index, *box)
        for number, (width, height) in enumerate(sizes, start=1)
        for index, box in enumerate(region_boxes(RegionConfig(cell=32), width, height).tolist())
    ]
    rows = rows_of(database)
    assert list(zip(*(rows[name].tolist() for name in COLUMNS[:6]), strict=True)) == expected
    assert all(np.isfinite(rows[name]).all() for name in MEASURES)
    assert ((rows["entropy"] > 0) & (rows["entropy"] <= 1)).all()
    assert (rows["mutual_information"] > 1e-5).any()
    assert (report.images, report.regions, report.failed) == (7, len(expected), 0)
    run = fetch_one(database, ScoringRun)
    assert run.finished_at is not None
    assert run.scorer["samples"] == 3
    assert [row.status for row in fetch(database, Shard)] == ["done"] * 3
    images = fetch(database, select(ImageScore).order_by(ImageScore.image_id))
    assert [row.regions for row in images] == [6, 4, 6, 1, 6, 1, 4]
    assert images[0].pixels == 96 * 64
    current = ask(database, current_round)
    assert current is not None
    assert current.state == "select"


def test_a_region_counts_for_the_class_of_which_it_has_most_in_proportion(tmp_path: Path) -> None:
    project, database = pool_of(tmp_path, [(96, 64)] * 2)
    score(project, database)
    assert [row.stratum for row in fetch(database, RegionScore)] == [None] * 12
    folder, names = project.workdir / "models" / "r01", project.config.data.class_names
    predicted = {row.predicted_class for row in fetch(database, RegionScore)}
    shares = [0.97 if index in predicted else 0.01 for index in range(4)]
    tiny_checkpoint(folder, project.config.model, names, class_shares=shares)
    forget(database)
    score(project, database)
    rows = fetch(database, RegionScore)
    found = {row.stratum for row in rows}
    assert found - predicted
    assert all(row.stratum_share >= 0.01 for row in rows)
    assert any(row.border > 0 for row in rows)
    other = [row for row in rows if row.stratum != row.predicted_class]
    assert all(row.stratum_share <= row.class_share for row in other)
    assert None not in [row.stratum for row in fetch(database, ImageScore)]


def forget(database: Database) -> None:
    """Delete all scores, so that they are computed anew."""
    with database.session() as session:
        for table in (RegionScore, ImageScore, Shard, ScoringRun):
            session.execute(delete(table))


def test_a_second_score_of_the_same_scorer_scores_nothing(tmp_path: Path) -> None:
    project, database = pool_of(tmp_path, [(64, 64)] * 5)
    first = score(project, database)
    before = rows_of(database)
    again = score(project, database)
    assert (first.images, again.images, again.regions) == (5, 0, 0)
    assert again.run_id == first.run_id
    assert_same_rows(rows_of(database), before)


def test_only_new_images_are_scored_and_others_keep_their_rows(tmp_path: Path) -> None:
    project, database = pool_of(tmp_path, [(64, 64)] * 4)
    score(project, database)
    before = rows_of(database)
    add_files(project, database, draw_images(tmp_path / "more", [(64, 32)] * 2, seed=9))
    report = score(project, database)
    after = rows_of(database)
    assert (report.images, report.regions) == (2, 4)
    old = after["image_id"] <= 4
    assert_same_rows({name: column[old] for name, column in after.items()}, before)


def test_another_scorer_makes_a_run_of_its_own(tmp_path: Path) -> None:
    made = pool_of(tmp_path, [(64, 64)] * 2)
    project, database = made
    score(project, database)
    assert score(made.configured(scoring={"seed": 1}), database).images == 2
    faster = {"seed": 1, "batch_size": 1, "workers": 0, "shard_images": 1}
    assert score(made.configured(scoring=faster), database).images == 0
    assert count_rows(database, ScoringRun) == 2


def test_held_out_guarded_duplicate_and_labeled_images_are_never_scored(tmp_path: Path) -> None:
    project, database = pool_of(tmp_path, [(64, 64)] * 3)
    for split in ("calibration", "test", "guard"):
        add_files(project, database, draw_images(tmp_path / split, [(64, 64)] * 2), split=split)
    (copy,) = add_files(project, database, draw_images(tmp_path / "copy", [(64, 64)]))
    with database.session() as session:
        session.execute(update(Image).where(Image.id == copy).values(duplicate_of=1))
        queue = put(session, new_queue("initial"))
        for image_id, box in ((2, (0, 0, 64, 64)), (3, (0, 0, 32, 32))):
            mask = np.zeros((64, 64), np.uint8)
            add_label(session, project, image_id, queue.id, mask, regions=[box], source="initial")
    assert score(project, database).images == 2
    assert sorted(set(rows_of(database)["image_id"].tolist())) == [1, 3]


def test_an_unreadable_image_is_recorded_and_the_rest_is_scored(tmp_path: Path) -> None:
    project, database = pool_of(tmp_path, [(64, 64)] * 5)
    whole = (tmp_path / "images" / "000.png").read_bytes()
    (tmp_path / "images" / "000.png").write_bytes(whole[:80])
    report = score(project, database)
    assert (report.images, report.failed) == (4, 1)
    (failure,) = ask(database, list_failures, step="score")
    assert failure.subject == "images/000.png"
    assert "000.png" in failure.reason
    assert [row.failed for row in fetch(database, select(Shard).order_by(Shard.id))] == [1, 0]

    (tmp_path / "images" / "000.png").write_bytes(whole)
    report = score(project, database)
    assert (report.images, report.failed) == (1, 0)
    rows = rows_of(database)
    assert sorted(set(rows["image_id"].tolist())) == [1, 2, 3, 4, 5]
    assert len(rows["image_id"]) == 5 * 4
    assert ask(database, list_failures, step="score") == []


def test_scores_do_not_depend_on_batches_workers_or_shards(tmp_path: Path) -> None:
    sizes = [(96, 64), (50, 70), (96, 64), (50, 70), (96, 64)]
    one = pool_of(tmp_path / "one", sizes, batch_size=1, workers=0, shard_images=2)
    many = pool_of(tmp_path / "many", sizes, batch_size=8, workers=3, shard_images=100)
    score(*one)
    score(*many)
    assert_same_rows(rows_of(many[1]), rows_of(one[1]))


def test_without_samples_the_columns_of_samples_are_empty(tmp_path: Path) -> None:
    project, database = pool_of(tmp_path, [(64, 64)], sampler="none")
    score(project, database)
    row, *_ = fetch(database, RegionScore)
    assert (row.expected_entropy, row.mutual_information) == (None, None)
    assert row.entropy > 0
    run = fetch_one(database, ScoringRun)
    assert "samples" not in run.scorer


def test_kept_regions_are_the_most_uncertain_of_each_class(tmp_path: Path) -> None:
    everything = pool_of(tmp_path / "all", [(160, 160)] * 2)
    bounded = pool_of(tmp_path / "kept", [(160, 160)] * 2, keep_regions=2)
    score(*everything)
    report = score(*bounded)
    rows, kept = rows_of(everything[1]), rows_of(bounded[1])
    expected: list[tuple[int, int]] = []
    for image in (1, 2):
        for class_index in set(rows["predicted_class"].tolist()):
            mine = np.flatnonzero((rows["image_id"] == image) & (rows["predicted_class"] == class_index))
            best = mine[np.argsort(-rows["entropy"][mine], kind="stable")][:2]
            expected += [(image, int(rows["region_index"][row])) for row in best]
    assert list(zip(kept["image_id"].tolist(), kept["region_index"].tolist(), strict=True)) == sorted(
        expected
    )
    assert report.regions == len(expected) < len(rows["image_id"])


SCORE_SLOWLY = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from db.engine import Database
from pipeline.data.project import load_project
from pipeline.steps.score import step
from pipeline.steps.score.writer import ShardWriter
commit = ShardWriter._commit
def say(self, opened):
    commit(self, opened)
    print("committed", flush=True)
    sys.stdin.readline()
ShardWriter._commit = say
project = load_project(Path(sys.argv[1]))
step.score(project, Database(project.database_url))
"""


def test_a_killed_run_goes_on_where_it_was_and_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    sizes = [(64, 64), (48, 32), (64, 64), (64, 64), (48, 32), (64, 64), (64, 64)]
    calm, calm_database = pool_of(tmp_path / "calm", sizes, shard_images=2)
    score(calm, calm_database)

    killed, database = pool_of(tmp_path / "killed", sizes, shard_images=2)
    config = killed.root / "segcurate.yaml"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[4]), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", SCORE_SLOWLY, str(config)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "committed\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert fetch(database, ScoringRun.finished_at) == [None]
    assert fetch(database, Round.state) == ["score"]
    assert count_rows(database, ImageScore) == 2

    report = score(killed, database)
    assert report.images == 5
    assert_same_rows(rows_of(database), rows_of(calm_database))
    assert set(fetch(database, Shard.status)) == {"done"}


def test_a_writer_that_fails_stops_the_run_with_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, database = pool_of(tmp_path, [(64, 64)] * 6, shard_images=1)

    def full(*_arguments: Any, **_keywords: Any) -> None:
        raise UserError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(shards, "replace_shard", full)
        with pytest.raises(UserError, match="the disk is full"):
            score(project, database)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("write", "decode"))]
    assert score(project, database).images == 6


def test_all_heat_maps_are_written_before_their_rows(tmp_path: Path) -> None:
    heatmaps = HeatmapConfig(images="all", measures=["entropy", "mutual_information"], per_class=True)
    project, database = pool_of(tmp_path, [(70, 50), (64, 64)], heatmaps=heatmaps.model_dump())
    score(project, database)
    with database.session(write=False) as session:
        row = session.get(ImageScore, (1, 1))
        assert row is not None
        assert row.heatmaps is not None
        names = {"entropy", "mutual_information", *(f"softmax_{index}" for index in range(4))}
        assert set(row.heatmaps) == names
    maps = {name: read_heatmap(project.path(uri)) for name, uri in row.heatmaps.items()}
    assert maps["entropy"].values.shape == (13, 18)
    assert (maps["entropy"].low, maps["entropy"].high) == (0, 1)
    assert maps["entropy"].values.std() > 0
    assert 0 < maps["mutual_information"].high < 1
    total = sum(maps[f"softmax_{index}"].values for index in range(4))
    assert np.abs(total - 1).max() < 0.01


def test_the_most_uncertain_images_have_heat_maps_and_lost_ones_come_back(tmp_path: Path) -> None:
    heatmaps = HeatmapConfig(images="top", top=2)
    project, database = pool_of(tmp_path, [(64, 64)] * 5, heatmaps=heatmaps.model_dump())
    report = score(project, database)
    ranked = ask(database, scores.top_images, run_id=report.run_id, limit=5)
    assert [uris is not None for _, uris in ranked] == [True, True, False, False, False]
    uri = (ranked[0][1] or {})["entropy"]
    before = project.path(uri).read_bytes()
    project.path(uri).unlink()
    assert score(project, database).images == 0
    assert project.path(uri).read_bytes() == before
    score(project, database, heatmaps="full")
    assert read_heatmap(project.path(uri)).values.shape == (64, 64)
    score(project, database)
    assert read_heatmap(project.path(uri)).values.shape == (64, 64)


def test_heat_maps_of_samples_need_samples(tmp_path: Path) -> None:
    heatmaps = HeatmapConfig(measures=["mutual_information"])
    project, database = pool_of(tmp_path, [(64, 64)], sampler="none", heatmaps=heatmaps.model_dump())
    with pytest.raises(ConfigError, match="mutual_information"):
        score(project, database)


def test_scoring_writes_the_picture_and_its_two_maps_of_the_most_uncertain_images(tmp_path: Path) -> None:
    heatmaps = HeatmapConfig(images="top", top=1, two_colour=True)
    project, database = pool_of(tmp_path, [(64, 48)] * 2, heatmaps=heatmaps.model_dump())
    report = score(project, database)
    (_, first), (_, second) = ask(database, scores.top_images, run_id=report.run_id, limit=2)
    assert second is None
    assert first is not None
    assert set(first) == {"entropy", "expected_entropy", "mutual_information", "two_colour"}
    entropy, information = (
        read_heatmap(project.path(first[name])) for name in ("expected_entropy", "mutual_information")
    )
    with PillowImage.open(project.path(first["two_colour"])) as file:
        pixels, span = np.asarray(file).astype(int), float(str(file.info["mutual_information_span"]))
    expected = two_colour(entropy.values, information.values, mutual_information_span=span)
    assert np.abs(pixels - expected).max() <= 6  # the two maps are rounded to 255 steps
    assert score(project, database).images == 0


def test_without_samples_there_is_no_second_colour(tmp_path: Path) -> None:
    heatmaps = HeatmapConfig(two_colour=True)
    project, database = pool_of(tmp_path, [(64, 64)], sampler="none", heatmaps=heatmaps.model_dump())
    with pytest.raises(ConfigError, match="two_colour"):
        score(project, database)


def test_score_waits_for_its_turn_and_for_a_promoted_model(tmp_path: Path) -> None:
    project, database = pool_of(tmp_path, [(64, 64)])
    change(database, Model, status="trained")
    with pytest.raises(UserError, match="segcurate evaluate"):
        score(project, database)
    change(database, Round, state="train")
    with pytest.raises(NotYourTurn, match="segcurate train"):
        score(project, database)


def test_large_images_are_tiled_into_the_same_regions(tmp_path: Path) -> None:
    whole = pool_of(tmp_path / "whole", [(300, 200)])
    tiled = pool_of(tmp_path / "tiled", [(300, 200)], tile=128, overlap=32)
    score(*whole)
    score(*tiled)
    expected, found = rows_of(whole[1]), rows_of(tiled[1])
    for name in COLUMNS[:7]:
        np.testing.assert_array_equal(found[name], expected[name])
    assert np.isfinite(found["entropy"]).all()


def test_the_images_are_counted_beside_the_tiles_of_each(tmp_path: Path) -> None:
    tile = {"tile": 64, "overlap": 16, "batch_size": 1, "shard_images": 1}
    project, database = pool_of(tmp_path, [(250, 200)] * 2, **tile)
    seen: dict[str, list[tuple[int, int | None]]] = {}

    def count(title: str, done: int, total: int | None, note: str = "") -> None:
        seen.setdefault(title, []).append((done, total))

    score(project, database, progress=count)
    (_, many), *_ = tiles = seen.pop(TILES)
    assert many is not None
    assert tiles == [(done, many) for done in range(1, many + 1)] * 2
    assert seen == {"score": [(1, 2), (2, 2)]}
