"""The first queue of a project without labels: chosen, exported, labeled and learned from without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture
from safetensors.torch import save_file
from sqlalchemy import func, select
from timm import create_model

from db.queries import audits
from db.tables import Image, Label, Queue, QueueItem, Round
from pipeline.data.project import Project
from pipeline.errors import ConfigError, UserError
from pipeline.operation.new_model import decide
from pipeline.operation.nightly import run_nightly
from pipeline.operation.played_labels import play_rounds
from pipeline.operation.runner import Runner
from pipeline.steps.export import export
from pipeline.steps.import_labels import import_labels
from pipeline.steps.ingest import ingest
from pipeline.steps.select import select as choose
from pipeline.summaries.project import masks_to_take, project_status
from pipeline.summaries.rounds import round_history
from tests.factories import ask, configured, count_rows, fetch, fetch_one, round_state
from tests.pipeline.steps.ingest.folder import Folder

REGIONS = 6
"""Cells of 8 pixels in an image of 24 × 16."""


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Twelve images in two sequences, ingested without any mask."""
    folder = Folder(tmp_path)
    for group in "ab":
        folder.sequence(group, 6, masks=False)
    folder.ingest()
    return folder


def configured_as(folder: Folder, **sections: Any) -> Project:
    project = configured(folder.project(), **({"selection": {"budget": 12}} | sections))
    (folder.root / "segcurate.yaml").write_text("", encoding="utf-8")
    return project


def paint(queue: Path, *, images: int = 1000) -> None:
    """Class 0 and 1 in the regions of the first images of an exported queue."""
    for line in (queue / "manifest.jsonl").read_text(encoding="utf-8").splitlines()[:images]:
        entry = json.loads(line)
        mask = np.full((entry["height"], entry["width"]), 255, np.uint8)
        for region in entry["regions"]:
            x, y, w, h = (region[name] for name in "xywh")
            mask[y : y + h, x : x + w] = region["rank"] % 2
        Picture.fromarray(mask).save(queue / entry["mask"])


def is_light(path: Path) -> bool:
    return bool(np.asarray(Picture.open(path)).mean() > 128)


def test_the_first_queue_takes_even_steps_through_the_sequences_and_says_so(folder: Folder) -> None:
    report = choose(configured_as(folder), folder.database)
    assert report.notes == (
        "There is no model yet, which `stratified` needs: the queue is chosen in even steps through each "
        "sequence of images (`strided`).",
    )
    assert report.lines()[0] == report.notes[0]
    assert (report.name, report.candidates, len(report.items)) == ("round-00", 12 * REGIONS, 12)
    strided = [item for item in report.items if item.slice == "selected"]
    assert len({item.image_id for item in strided}) == len(strided) == 11
    assert {item.predicted_class for item in report.items} == {None}
    assert report.by_class == {"not predicted": 12}
    assert all("redicted" not in item.reason for item in report.items)
    queue = fetch_one(folder.database, Queue)
    assert (queue.strategy, queue.run_id, queue.spec["images"]) == ("strided", None, 12)
    assert round_state(folder.database) == (0, "export")


def test_images_that_are_independent_are_drawn_at_random_and_whole_where_images_are_asked_for(
    folder: Folder,
) -> None:
    project = configured(folder.project(independent=True), selection={"budget": 5})
    report = choose(project, folder.database, overrides={"unit": "image"})
    assert "at random (`random`)" in report.notes[0]
    assert {(item.x, item.y, item.w, item.h) for item in report.items} == {(0, 0, 24, 16)}
    assert (report.strategy, report.candidates, len(report.items)) == ("random", 12, 5)


def test_the_first_queue_covers_what_the_pretrained_encoder_sees(folder: Folder, tmp_path: Path) -> None:
    """Six pictures are dark and six are light: as many as are asked for stand for both."""
    weights = tmp_path / "encoder.safetensors"
    save_file(create_model("test_resnet").state_dict(), weights)
    model = {"encoder": "tu-test_resnet", "architecture": "unet", "encoder_weights": str(weights)}
    project = configured_as(folder, model=model, selection={"unit": "image", "first_queue": "coverage"})
    for number, (uri,) in enumerate(folder.rows(Image.uri)):
        picture = np.full((16, 24, 3), 20 if number < 6 else 230, np.uint8)
        picture[:, :4, number % 3] = 120
        Picture.fromarray(picture).save(folder.root / uri)
    report = choose(project, folder.database, overrides={"budget": 2}, dry_run=True)
    assert "by k-means of the pretrained encoder's features (`coverage`)" in report.notes[0]
    (item,) = [item for item in report.items if item.slice == "selected"]
    assert item.reason.startswith("Stands for a group of images that look alike")
    project = configured(project, selection={"audit_fraction": 0.0})
    for seed in range(3):
        found = choose(project, folder.database, overrides={"budget": 2, "seed": seed}, dry_run=True)
        assert len({is_light(folder.root / found.uris[item.image_id]) for item in found.items}) == 2


@pytest.mark.parametrize("selection", [{"strategy": "coverage"}, {"max_similarity": 0.9}])
def test_features_of_random_weights_are_refused(folder: Folder, selection: dict[str, Any]) -> None:
    project = configured_as(folder, model={"encoder_weights": "none"}, selection={"budget": 4, **selection})
    with pytest.raises(ConfigError, match="`model.encoder_weights` is `none`"):
        choose(project, folder.database)
    assert count_rows(folder.database, Queue) == 0


@pytest.mark.parametrize("kind", ["superpixel", "segment"])
def test_regions_that_need_pixels_or_a_prediction_give_way_to_cells(folder: Folder, kind: str) -> None:
    project = configured_as(folder, scoring={"regions": {"kind": kind, "cell": 8}})
    report = choose(project, folder.database, dry_run=True)
    assert report.notes[1:] == (
        f"Its regions are cells of 8 × 8 pixels; `{kind}` regions come with the first scores.",
    )
    assert {(item.w, item.h) for item in report.items} == {(8, 8)}


def test_a_strategy_that_ranks_by_predictions_is_refused_where_it_is_asked_for(folder: Folder) -> None:
    with pytest.raises(
        UserError, match="`entropy` ranks by a model's predictions, and there is no model yet"
    ):
        choose(configured_as(folder), folder.database, overrides={"strategy": "entropy"})
    assert count_rows(folder.database, Queue) == 0


def test_the_audit_slice_is_a_draw_from_all_regions_with_its_probability(folder: Folder) -> None:
    report = choose(configured_as(folder, selection={"budget": 30}), folder.database)
    drawn = [item for item in report.items if item.slice == "audit"]
    assert len(drawn) == 3
    assert {item.inclusion_probability for item in drawn} == {3 / (12 * REGIONS)}
    (audit,) = ask(folder.database, audits.audit_slices)
    assert (audit.drawn, audit.population, audit.model_id, audit.of_pool) == (3, 72, None, True)


def test_the_same_queue_comes_again_and_a_preview_of_the_next_one_while_it_is_out(folder: Folder) -> None:
    project = configured_as(folder)
    first = [(item.image_id, item.x, item.y) for item in choose(project, folder.database).items]
    assert [(item.image_id, item.x, item.y) for item in choose(project, folder.database).items] == first
    assert count_rows(folder.database, Queue) == 1
    export(project, folder.database)
    preview = choose(project, folder.database, dry_run=True)
    assert preview.lines()[1].startswith("preview of the next queue: 12 of 60 regions")
    assert not {(item.image_id, item.x, item.y) for item in preview.items} & set(first)
    assert count_rows(folder.database, QueueItem) == 12


def test_it_goes_out_with_empty_masks_comes_back_and_opens_the_first_training(folder: Folder) -> None:
    project, database = configured_as(folder), folder.database
    choose(project, database)
    exported = export(project, database)
    assert list(exported.lines())[1:] == [
        "The masks to start from are empty: there is no model yet.",
        "Put the painted masks into its folder `masks`, then import it; see its README.md.",
    ]
    entries = [json.loads(line) for line in (exported.folder / "manifest.jsonl").read_text().splitlines()]
    premask = np.asarray(Picture.open(exported.folder / entries[0]["premask"]))
    assert np.unique(premask).tolist() == [255]
    assert (entries[0]["model"], entries[0]["heatmap"]) == (None, None)
    assert entries[0]["regions"][0]["clicks"] is None
    assert (exported.folder / entries[0]["overlay"]).is_file()
    assert "the masks in `premasks/` are empty" in (exported.folder / "README.md").read_text()
    assert ask(database, project_status).next_command == "segcurate import queues/round-00"

    paint(exported.folder, images=2)
    report = import_labels(project, database, source=exported.folder)
    assert report.open_items > 0
    assert round_state(database) == (0, "import")
    paint(exported.folder)
    assert import_labels(project, database, source=exported.folder).closed
    assert round_state(database) == (1, "train")
    assert ask(database, project_status).next_command == "segcurate train"
    rows = ask(database, round_history, sampler="none", class_names=["a", "b"])
    assert [(row.number, row.labeled_regions, row.model) for row in rows] == [(0, 12, None), (1, 12, None)]
    assert rows[0].no_estimate == "no model has scored its regions"


def test_a_first_queue_that_is_closed_without_a_label_gives_way_to_another_one(folder: Folder) -> None:
    project, database = configured_as(folder), folder.database
    choose(project, database)
    queue = export(project, database).folder
    report = import_labels(project, database, source=queue, close=True)
    assert (report.released, report.closed) == (12, False)
    assert report.lines()[-1] == "No image has a label yet, so the round goes on with another queue."
    assert round_state(database) == (0, "select")
    assert ask(database, project_status).next_command == "segcurate select"
    assert choose(project, database).name == "round-00-b"
    paint(export(project, database).folder, images=1)
    closed = import_labels(project, database, source=folder.root / "queues" / "round-00-b", close=True)
    assert closed.closed
    assert round_state(database) == (1, "train")


def test_a_queue_locks_classes_and_splits(folder: Folder) -> None:
    choose(configured_as(folder), folder.database)
    with pytest.raises(ConfigError, match=r"`data\.classes` has changed since splits were locked"):
        ingest(folder.project(classes=["a", "b", "c"]), folder.database)


def test_masks_that_come_before_the_queue_is_exported_take_its_place(folder: Folder) -> None:
    choose(configured_as(folder), folder.database)
    folder.mask("a/f0.png")
    report = folder.ingest()
    assert report.labeled_images == 1
    assert round_state(folder.database) == (1, "train")
    assert fetch(folder.database, select(Queue.name)) == ["initial"]
    assert fetch(folder.database, select(Round.number, Round.state).order_by(Round.number)) == [
        (0, "closed"),
        (1, "train"),
    ]


def test_masks_that_mean_nothing_are_refused_also_after_a_queue(folder: Folder) -> None:
    choose(configured_as(folder), folder.database)
    folder.mask("a/f0.png", value=7)
    with pytest.raises(UserError, match="neither"):
        folder.ingest()
    assert count_rows(folder.database, Label) == 0


def test_masks_that_appear_for_queued_images_are_said_to_be_there_and_taken_by_an_import(
    tmp_path: Path,
) -> None:
    folder = Folder(tmp_path)
    for number, group in enumerate("abcd"):
        folder.sequence(group, 1, first=number, masks=False)
    folder.ingest()
    project, database = configured_as(folder, selection={"unit": "image", "budget": 4}), folder.database
    choose(project, database)
    export(project, database)
    folder.mask("a/f0.png")
    project = configured_as(folder)
    (warning,) = [line for line in ingest(project, database).warnings if "asks for" in line]
    assert warning.endswith("`segcurate import masks --queue round-00`.")
    assert not [line for line in ingest(project, database).warnings if "asks for" in line]
    with database.session(write=False) as session:
        (found,) = masks_to_take(session, project)  # `status` says it until it is done
    assert str(found) == warning
    import_labels(project, database, source=folder.root / "masks", queue="round-00")
    with database.session(write=False) as session:
        assert masks_to_take(session, project) == []
    assert count_rows(database, QueueItem, QueueItem.status == "labeled", QueueItem.queue_id == 1) == 1


def test_images_outside_the_pool_and_exact_copies_are_no_candidates(folder: Folder) -> None:
    ids = fetch(folder.database, select(Image.id).order_by(Image.id))
    with folder.database.session() as session:
        session.get_one(Image, ids[0]).split = "test"
        session.get_one(Image, ids[1]).duplicate_of = ids[2]
    report = choose(configured_as(folder, selection={"budget": 1000}), folder.database)
    assert {item.image_id for item in report.items} == set(ids[2:])
    assert report.candidates == 10 * REGIONS


class TestTheNight:
    def test_it_selects_and_exports_the_first_queue_and_does_nothing_the_next_time(
        self, folder: Folder
    ) -> None:
        runner = Runner(configured_as(folder), folder.database)
        report = run_nightly(runner)
        assert (report.model, report.queue) == (None, "round-00")
        assert report.summary == "No new images; round-00 is active: 12 regions to label."
        assert report.folder == folder.root / "queues" / "round-00"
        again = run_nightly(runner)
        assert again.folder is None
        assert "12 of 12 regions wait for labels" in again.summary

    def test_no_training_is_due_before_labels_come(self, folder: Folder) -> None:
        found = ask(folder.database, decide, configured_as(folder))
        assert (found.train, found.new_labels) == (False, 0)
        assert "There are no labels to train on yet" in found.reason


class TestALoop:
    def test_it_ingests_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        new = Folder(tmp_path / "new")
        for group in "abcdefgh":
            new.sequence(group, 1)

        def stop(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("pipeline.operation.played_labels.STEPS", {"train": stop})
        with pytest.raises(KeyboardInterrupt):
            play_rounds(Runner(new.project(), new.database), rounds=1)
        assert fetch_one(new.database, select(func.count()).select_from(Image)) == 8
        assert round_state(new.database) == (1, "train")

    def test_it_needs_masks(self, folder: Folder) -> None:
        with pytest.raises(UserError, match="no masks to simulate an annotator with"):
            play_rounds(Runner(configured_as(folder), folder.database), rounds=1)
