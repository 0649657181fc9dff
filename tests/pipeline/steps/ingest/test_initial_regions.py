"""The first labels, where regions are superpixels or maps of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture

from db.tables import Label, LabelRegion, QueueItem
from pipeline.config import IGNORE, RegionConfig
from pipeline.data.project import Project
from pipeline.regions.outlines import paint_regions
from pipeline.steps.ingest import ingest
from tests.pipeline.steps.ingest.folder import Folder, count_opens

SHAPE = (QueueItem.image_id, QueueItem.x, QueueItem.y, QueueItem.w, QueueItem.h, QueueItem.outline)


def project_of(own: Folder, initial: dict[str, Any], **regions: Any) -> Project:
    project = own.project(splits={"test": {"fraction": 0.2}, "initial": {"unit": "region", **initial}})
    scoring = project.config.scoring.model_copy(update={"regions": RegionConfig.model_validate(regions)})
    return Project(config=project.config.model_copy(update={"scoring": scoring}), root=own.root)


def write_maps(folder: Folder) -> None:
    """Two regions an image, above and below a diagonal."""
    rows, columns = np.mgrid[:16, :24]
    for path in (folder.root / "images").rglob("*.png"):
        target = folder.root / "maps" / path.relative_to(folder.root / "images")
        target.parent.mkdir(parents=True, exist_ok=True)
        Picture.fromarray((4 + (3 * rows > 2 * columns)).astype(np.uint8)).save(target)


@pytest.fixture
def sequences(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path)
    for group in "abcde":
        folder.sequence(group, 2)
    return folder


@pytest.mark.parametrize("kind", ["superpixel", "file"])
def test_drawn_regions_have_outlines_and_labels_say_nothing_outside_of_them(
    kind: str, sequences: Folder
) -> None:
    write_maps(sequences)
    regions = {"kind": kind, "cell": 8, **({"folder": "maps"} if kind == "file" else {})}
    project = project_of(sequences, {"count": 5}, **regions)
    report = ingest(project, sequences.database)
    items = sequences.rows(*SHAPE)
    assert report.labeled_regions == len(items) == 5
    assert any(outline for *_, outline in items)
    known = np.repeat(np.arange(16) * 2 // 16, 24).reshape(16, 24)
    for image_id, uri in sequences.rows(Label.image_id, Label.mask_uri):
        inside = np.zeros((16, 24), dtype=bool)
        for owner, *box, outline in items:
            if owner == image_id:
                paint_regions(inside, np.array([box]), [outline])
        np.testing.assert_array_equal(sequences.read_mask(uri), np.where(inside, known, IGNORE))
    stored = sequences.rows(LabelRegion.x, LabelRegion.y, LabelRegion.w, LabelRegion.h, LabelRegion.outline)
    assert sorted(stored, key=str) == sorted((item[1:] for item in items), key=str)
    assert ingest(project, sequences.database).labeled_regions == 0


def test_a_share_of_the_pool_is_counted_in_its_own_regions(sequences: Folder) -> None:
    write_maps(sequences)
    project = project_of(sequences, {"fraction": 0.5}, kind="file", folder="maps")
    pool = ingest(project, sequences.database).splits["pool"]
    assert len(sequences.rows(*SHAPE)) == pool  # half of two regions an image


def test_an_image_without_a_region_map_is_recorded_and_labeled_once_it_has_one(sequences: Folder) -> None:
    write_maps(sequences)
    missing = sequences.root / "maps" / "c" / "f0.png"
    content = missing.read_bytes()
    missing.unlink()
    project = project_of(sequences, {}, kind="file", folder="maps")
    ingest(project, sequences.database)
    in_pool = sequences.splits()["images/c/f0.png"] == "pool"
    before = len(sequences.rows(*SHAPE))
    assert ("images/c/f0.png" in sequences.failures()) == in_pool
    missing.write_bytes(content)
    ingest(project, sequences.database)
    assert len(sequences.rows(*SHAPE)) == before + 2 * in_pool
    assert not sequences.failures()


def test_cells_stand_in_for_segments_before_there_is_a_model(sequences: Folder) -> None:
    ingest(project_of(sequences, {"count": 4}, kind="segment", cell=8), sequences.database)
    items = sequences.rows(*SHAPE)
    assert [item[3:] for item in items] == [(8, 8, None)] * 4


def test_the_regions_of_an_image_are_found_once(sequences: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    write_maps(sequences)
    opens = count_opens(monkeypatch, sequences.root)
    project = project_of(sequences, {}, kind="file", folder="maps")
    pool = ingest(project, sequences.database).splits["pool"]
    assert [count for name, count in opens.items() if name.startswith("maps/")] == [1] * pool
