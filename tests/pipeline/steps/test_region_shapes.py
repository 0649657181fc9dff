"""Superpixels, segments and region maps from scores to labels and back."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage
from sqlalchemy import select as query

from db.engine import Database
from db.queries import failures
from db.tables import Image, Label, LabelRegion, QueueItem, RegionScore, Round
from pipeline.config import IGNORE
from pipeline.data.masks import write_mask
from pipeline.data.project import Project
from pipeline.regions.outlines import decode_outline, paint_regions
from pipeline.steps.annotate import annotate
from pipeline.steps.export import export
from pipeline.steps.import_labels import import_labels
from pipeline.steps.score import score
from pipeline.steps.select import select
from tests.factories import ask, change, fetch, fetch_one, make_pool

WIDTH, HEIGHT = 96, 64


def pool_of(root: Path, images: int = 3, **regions: Any) -> tuple[Project, Database]:
    scoring = {"samples": 3, "regions": {"cell": 16, **regions}, "heatmaps": {"images": "none"}}
    return make_pool(root, [(WIDTH, HEIGHT)] * images, scoring=scoring)


def maps_of(root: Path) -> dict[str, Any]:
    return {"folder": str(root / "maps"), "template": "{stem}.png"}


def masks_of(rows: list[Any]) -> list[np.ndarray]:
    found = []
    for row in rows:
        mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
        paint_regions(mask, np.array([[row.x, row.y, row.w, row.h]]), [row.outline])
        found.append(mask)
    return found


def rows_of(database: Database, image_id: int) -> list[RegionScore]:
    mine = query(RegionScore).where(RegionScore.image_id == image_id)
    return fetch(database, mine.order_by(RegionScore.region_index))


def write_maps(folder: Path, images: Path) -> None:
    """Region maps with values that are no row, and a strip on the left that is no region."""
    folder.mkdir()
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for path in images.glob("*.png"):
        values = (3 + 10 * ((rows + columns // 3) // 20)).astype(np.uint8)
        values[:, :5] = 255
        PillowImage.fromarray(values).save(folder / path.name)


@pytest.mark.parametrize("kind", ["superpixel", "segment", "file"])
def test_stored_regions_tile_the_image_and_their_outlines_hold_their_pixels(
    kind: str, tmp_path: Path
) -> None:
    more: dict[str, Any] = maps_of(tmp_path) if kind == "file" else {}
    project, database = pool_of(tmp_path, kind=kind, **more)
    if kind == "file":
        write_maps(tmp_path / "maps", tmp_path / "images")
    report = score(project, database)
    assert (report.images, report.failed) == (3, 0)
    for image_id in (1, 2, 3):
        rows = rows_of(database, image_id)
        masks = masks_of(rows)
        assert [row.pixels for row in rows] == [int(mask.sum()) for mask in masks]
        times = np.sum(masks, axis=0)
        assert (times[:, 5:] == 1).all()
        assert (times[:, :5] == (0 if kind == "file" else 1)).all()
        if kind != "segment":
            assert any(row.outline for row in rows)
    if kind == "file":
        assert [row.region_index for row in rows_of(database, 1)] == [3, 13, 23, 33, 43]
    assert score(project, database).images == 0


def test_an_image_without_its_region_map_is_recorded_and_the_others_are_scored(tmp_path: Path) -> None:
    project, database = pool_of(tmp_path, kind="file", **maps_of(tmp_path))
    write_maps(tmp_path / "maps", tmp_path / "images")
    (tmp_path / "maps" / "000.png").unlink()
    PillowImage.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "maps" / "001.png")
    report = score(project, database)
    assert (report.images, report.failed) == (1, 2)
    reasons = {row.subject: row.reason for row in ask(database, failures.list_failures, step="score")}
    missing, small = (reasons[f"images/00{number}.png"] for number in (0, 1))
    assert "no region map" in missing
    assert "000.png" in missing
    assert "has 9×9 pixels, its image 96×64" in small


@pytest.mark.parametrize("kind", ["superpixel", "file"])
def test_a_queue_of_shapes_is_exported_labeled_inside_them_only_and_not_asked_for_again(
    kind: str, tmp_path: Path
) -> None:
    more: dict[str, Any] = maps_of(tmp_path) if kind == "file" else {"cell": 28}
    project, database = pool_of(tmp_path, kind=kind, **more)
    if kind == "file":
        write_maps(tmp_path / "maps", tmp_path / "images")
    known = np.random.default_rng(0).integers(0, 4, (HEIGHT, WIDTH)).astype(np.uint8)
    write_mask(tmp_path / "known.png", known)
    change(database, Image, mask_uri=project.uri(tmp_path / "known.png"))
    wanted = {"budget": 4, "no_touching": True, "per_image_cap": None, "audit_fraction": 0}
    score(project, database)
    select(project, database, overrides=wanted)
    folder = export(project, database).folder
    items = fetch(database, QueueItem)
    assert any(item.outline for item in items)
    entries = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    asked = {entry["image_id"]: np.zeros((HEIGHT, WIDTH), dtype=bool) for entry in entries}
    for item, mask in zip(items, masks_of(items), strict=True):
        assert not (asked[item.image_id] & mask).any()
        asked[item.image_id] |= mask
    for entry in entries:
        premask = np.asarray(PillowImage.open(folder / entry["premask"]))
        np.testing.assert_array_equal(premask != IGNORE, asked[entry["image_id"]])
        drawn = np.zeros((HEIGHT, WIDTH), dtype=bool)
        for region in entry["regions"]:
            x, y, w, h = (region[side] for side in "xywh")
            drawn[y : y + h, x : x + w] |= decode_outline(region["outline"], width=w, height=h)
            assert bool(region["polygons"]) == (region["outline"] is not None)
        np.testing.assert_array_equal(drawn, asked[entry["image_id"]])
    assert "pycocotools" in (folder / "README.md").read_text()

    assert annotate(project, database, folder).painted == len(items)
    report = import_labels(project, database, source=folder, origin="simulation")
    assert report.closed
    for label in fetch(database, Label):
        mask = np.asarray(PillowImage.open(project.path(label.mask_uri)))
        np.testing.assert_array_equal(mask, np.where(asked[label.image_id], known, IGNORE))
    assert {(row.outline, row.x, row.y) for row in fetch(database, LabelRegion)} == {
        (item.outline, item.x, item.y) for item in items
    }

    change(database, Round, Round.number == 2, state="select")
    again = select(project, database, overrides=wanted)
    assert again.items
    for item in again.items:
        x, y, w, h = item.x, item.y, item.w, item.h
        shape = decode_outline(item.outline, width=w, height=h)
        assert (
            asked.get(item.image_id, np.zeros((HEIGHT, WIDTH), bool))[y : y + h, x : x + w] & shape
        ).sum() < (0.5 * shape.sum())


def test_half_a_painted_shape_counts_and_less_does_not(tmp_path: Path) -> None:
    project, database = pool_of(tmp_path, images=1, kind="superpixel", cell=32)
    score(project, database)
    wanted = {"budget": 2, "no_touching": False, "per_image_cap": None, "audit_fraction": 0}
    select(project, database, overrides=wanted)
    folder = export(project, database).folder
    first, second = fetch(database, query(QueueItem).order_by(QueueItem.rank))
    painted = np.full((HEIGHT, WIDTH), IGNORE, dtype=np.uint8)
    for mask, share in zip(masks_of([first, second]), (0.55, 0.45), strict=True):
        places = np.argwhere(mask)
        rows, columns = places[: round(share * len(places))].T
        painted[rows, columns] = 1
    (entry,) = (json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines())
    write_mask(folder / entry["mask"], painted)
    report = import_labels(project, database, source=folder)
    assert (report.imported, report.open_items, len(report.unpainted)) == (1, 1, 1)
    region = fetch_one(database, LabelRegion)
    assert (region.outline, region.region_index) == (first.outline, first.region_index)
    assert fetch(database, query(QueueItem.status).order_by(QueueItem.rank)) == ["labeled", "queued"]


@pytest.mark.parametrize("versions", ["recorded", "missing"])
@pytest.mark.parametrize("seconds", [-3600, 0, 60])
def test_an_image_whose_region_map_was_redrawn_is_scored_again_and_no_other(
    tmp_path: Path, seconds: int, versions: str
) -> None:
    """Whatever the new map's time: `cp -p` keeps an old one. A run of an earlier release has no versions."""
    folder = tmp_path / "maps"
    project, database = pool_of(tmp_path, images=2, kind="file", folder=str(folder), template="{stem}.png")
    write_maps(folder, tmp_path / "images")
    score(project, database)
    if versions == "missing":
        shutil.rmtree(project.workdir / "region_maps")
        assert score(project, database).images == 0
    halves = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    halves[:, 40:] = 9
    replaced = folder / "001.png"
    at = replaced.stat().st_mtime + seconds
    PillowImage.fromarray(halves).save(replaced)
    os.utime(replaced, (at, at))
    assert score(project, database).images == 1
    assert [row.region_index for row in rows_of(database, 2)] == [0, 9]
    assert len(rows_of(database, 1)) == 5
    assert score(project, database).images == 0


def test_a_region_map_with_a_new_time_and_the_same_content_is_not_scored_again(tmp_path: Path) -> None:
    folder = tmp_path / "maps"
    project, database = pool_of(tmp_path, images=2, kind="file", folder=str(folder), template="{stem}.png")
    write_maps(folder, tmp_path / "images")
    score(project, database)
    later = time.time() + 60
    os.utime(folder / "001.png", (later, later))
    assert score(project, database).images == 0
