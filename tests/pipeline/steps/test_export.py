"""A queue becomes a folder: whole, readable, and nowhere half-written."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from db.queries import failures, rounds
from pipeline.errors import NotYourTurn, UserError
from pipeline.labeling.folder import FolderWriter
from pipeline.steps.export import export
from tests.factories import ask
from tests.pipeline.labeling.exported_project import (
    CLASS_IDS,
    NAMES,
    ROTATED,
    UNPAINTED,
    Exported,
    entries_of,
)


def test_an_export_has_all_that_an_annotator_needs(selected: Exported) -> None:
    folder = export(*selected).folder
    assert folder == selected.project.root / "queues" / "round-01"
    entries = entries_of(folder)
    assert set(entries) == set(NAMES)
    assert [entry.rank for entry in entries.values()] == sorted(entry.rank for entry in entries.values())
    for name, entry in entries.items():
        image = selected.images()[name]
        assert (entry.image_id, entry.sha256) == (image.id, image.sha256)
        assert (entry.width, entry.height) == NAMES[name]
        assert entry.scores["entropy"] == 0.5
        assert entry.model == "r01"
        assert [region.item for region in entry.regions] == [item.id for item in selected.items(name)]
        with PillowImage.open(folder / entry.image) as shown:
            assert shown.size == NAMES[name]
        assert entry.overlay is not None
        with PillowImage.open(folder / entry.overlay) as drawn:
            assert drawn.mode == "RGB"
            assert drawn.width == NAMES[name][0]
            assert drawn.height >= NAMES[name][1]
    assert list((folder / "masks").iterdir()) == []
    assert selected.state() == (1, "import")


def test_premasks_are_the_models_prediction_inside_the_queued_regions_only(selected: Exported) -> None:
    folder = export(*selected).folder
    seen: set[int] = set()
    for name, entry in entries_of(folder).items():
        assert entry.premask is not None
        premask = np.asarray(PillowImage.open(folder / entry.premask))
        inside = np.zeros(premask.shape, dtype=bool)
        for item in selected.items(name):
            inside[item.y : item.y + item.h, item.x : item.x + item.w] = True
        assert (premask[~inside] == UNPAINTED).all()
        assert np.isin(premask[inside], CLASS_IDS).all()
        seen |= set(premask[inside].tolist())
    assert len(seen) > 1


def test_the_regions_table_and_the_label_map_say_what_the_manifest_says(selected: Exported) -> None:
    folder = export(*selected).folder
    with (folder / "regions.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    items = selected.items()
    assert [int(row["rank"]) for row in rows] == [item.rank for item in items]
    assert [row["reason"] for row in rows] == [item.reason for item in items]
    assert {row["uri"] for row in rows} == {f"images/{name}" for name in NAMES}
    label_map = json.loads((folder / "labelmap.json").read_text())
    assert [(item["name"], item["id"]) for item in label_map["classes"]] == [
        ("sky", 0),
        ("road", 7),
        ("pole", 40),
    ]
    assert label_map["not_labeled"]["id"] == UNPAINTED
    assert "| 40 | pole |" in (folder / "README.md").read_text()


def test_images_are_linked_copied_on_request_and_turned_upright(selected: Exported) -> None:
    linked = entries_of(export(*selected, folder=selected.project.root / "one").folder)
    plain = selected.project.root / "one" / linked["left/frame 1.png"].image
    assert plain.is_symlink()
    assert plain.resolve() == selected.project.root / "images" / "left" / "frame 1.png"
    turned = selected.project.root / "one" / linked[ROTATED].image
    assert not turned.is_symlink()
    copying = selected.configured(export={"images": "copy"})
    copied = entries_of(export(copying, selected.database, folder=selected.project.root / "two").folder)
    copy = selected.project.root / "two" / copied["left/frame 1.png"].image
    assert not copy.is_symlink()
    assert copy.read_bytes() == plain.read_bytes()


def test_links_hold_where_the_projects_folder_is_moved(selected: Exported, tmp_path: Path) -> None:
    root = selected.project.root
    (root / "elsewhere" / "deep").mkdir(parents=True)
    (root / "exports").symlink_to("elsewhere/deep")  # a link counts from the folder that it really lies in
    folders = [export(*selected).folder, export(*selected, folder=root / "exports" / "one").folder]
    outside = export(*selected, folder=tmp_path / "outside").folder
    links = [path for folder in folders for path in (folder / "images").iterdir() if path.is_symlink()]
    assert len(links) == 2 * sum(path.is_symlink() for path in (outside / "images").iterdir()) > 0
    assert all(path.is_file() for path in (outside / "images").iterdir())

    moved = root.rename(root.with_name("moved"))

    assert all((moved / path.relative_to(root)).is_file() for path in links)


def test_names_in_an_export_are_plain_ascii_and_never_alike(selected: Exported) -> None:
    entries = entries_of(export(*selected).folder)
    stems = [Path(entry.mask or "").stem for entry in entries.values()]
    assert len(set(stems)) == len(NAMES)
    assert all(
        stem.isascii() and set(stem) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-") for stem in stems
    )


def test_an_unreadable_image_is_left_out_and_recorded(selected: Exported) -> None:
    (selected.project.root / "images" / "tiny.png").write_bytes(b"not an image")
    folder = export(*selected).folder
    assert set(entries_of(folder)) == set(NAMES) - {"tiny.png"}
    (failure,) = ask(selected.database, failures.list_failures, step="export")
    assert failure.subject == "images/tiny.png"


def test_exporting_again_replaces_the_folder_until_somebody_has_worked_in_it(selected: Exported) -> None:
    folder = export(*selected).folder
    (folder / "labelmap.json").unlink()
    assert export(*selected).folder == folder
    assert (folder / "labelmap.json").is_file()
    work = folder / "masks" / "mine.png"
    work.write_bytes(b"an afternoon of work")
    with pytest.raises(UserError, match="contains masks already"):
        export(*selected)
    assert work.read_bytes() == b"an afternoon of work"


def test_a_folder_of_something_else_is_not_replaced(selected: Exported) -> None:
    other = selected.project.root / "thesis"
    other.mkdir()
    (other / "chapter1.txt").write_text("years")
    with pytest.raises(UserError, match="thesis contains other files"):
        export(*selected, folder=other)
    assert (other / "chapter1.txt").read_text() == "years"
    assert selected.state() == (1, "export")


def test_a_read_only_output_folder_is_named(selected: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pipeline.files.tempfile.mkdtemp", refuse)  # root may write everywhere
    with pytest.raises(UserError, match="queues: permission is denied"):
        export(*selected)
    assert selected.state() == (1, "export")


def test_a_full_disk_leaves_no_folder(selected: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.labeling.image_files.shutil.copyfileobj", full)
    with pytest.raises(UserError, match="disk is full"):
        export(selected.configured(export={"images": "copy"}), selected.database)
    assert list((selected.project.root / "queues").iterdir()) == []
    assert selected.state() == (1, "export")


KILLED = """
import os, signal, sys
from pathlib import Path
from typing import Any
from db.engine import Database
from pipeline.config import ProjectConfig
from pipeline.data.project import Project
from pipeline.labeling.folder import FolderWriter
from pipeline.steps.export import export

config = ProjectConfig(**__import__("json").loads(sys.argv[2]))
project = Project(config=config, root=Path(sys.argv[1]))
written = []
whole = FolderWriter.add
def add(*arguments):
    written.append(1)
    if len(written) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*arguments)
FolderWriter.add = add
export(project, Database(project.database_url))
"""


def test_a_killed_export_leaves_no_half_folder_and_can_be_run_again(selected: Exported) -> None:
    settings = selected.project.config.model_dump_json()
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(selected.project.root), settings],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    queues = selected.project.root / "queues"
    assert [path.name for path in queues.iterdir() if not path.name.startswith(".")] == []
    assert selected.state() == (1, "export")
    folder = export(*selected).folder
    assert [path.name for path in queues.iterdir()] == ["round-01"]
    assert set(entries_of(folder)) == set(NAMES)


def test_export_refuses_politely_when_it_is_not_its_turn(selected: Exported) -> None:
    with selected.database.session() as session:
        current = rounds.current_round(session)
        assert current is not None
        current.state = "score"
    with pytest.raises(NotYourTurn, match="`segcurate score` comes next"):
        export(*selected)


def test_an_export_whose_files_another_one_cleared_away_is_not_published(
    selected: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = FolderWriter.finish

    def clear_away(writer: FolderWriter) -> None:
        next((writer.folder / "premasks").iterdir()).unlink()
        finish(writer)

    monkeypatch.setattr(FolderWriter, "finish", clear_away)
    with pytest.raises(UserError, match="Another export to .*round-01 is running"):
        export(*selected)
    assert list((selected.project.root / "queues").iterdir()) == []
    assert selected.state() == (1, "export")
