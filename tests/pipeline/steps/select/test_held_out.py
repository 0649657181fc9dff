"""Queues of held-out images: drawn before they have masks, never trained on, and measured on once labeled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture
from sqlalchemy import select

from db.queries import images as image_queries
from db.queries import models
from db.tables import Image, Label, Queue, QueueItem
from db.tables import Project as ProjectRow
from pipeline.config import SplitsConfig
from pipeline.data.masks import MaskCodec
from pipeline.data.project import Project
from pipeline.data.splits import CALIBRATION, GUARD, POOL, TEST, Images, draw_to_label
from pipeline.errors import DataError, NothingLeft, NotYourTurn
from pipeline.steps.export import export
from pipeline.steps.held_out import held_out_images
from pipeline.steps.import_labels import import_labels
from pipeline.steps.import_labels import step as import_step
from pipeline.steps.ingest import ingest
from pipeline.steps.select import select as choose
from pipeline.steps.select.held_out import HeldOutReport, select_held_out
from pipeline.summaries.project import import_command, project_status
from tests.factories import ask, change, configured, count_rows, fetch, fetch_one
from tests.pipeline.steps.ingest.folder import Folder
from tests.pipeline.steps.select.test_first_queue import paint

BLOCKS: dict[str, Any] = {
    name: {"fraction": 0.2, "by": "block", "block": 2, "guard": 1} for name in ("test", "calibration")
}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Twenty images in one sequence, whose class ids are no indices, without any mask."""
    folder = Folder(tmp_path)
    folder.sequence("a", 20, masks=False)
    (tmp_path / "segcurate.yaml").write_text("", encoding="utf-8")
    ingest(project_of(folder), folder.database)
    return folder


def project_of(folder: Folder, **splits: Any) -> Project:
    classes = [{"name": "a", "id": 3}, {"name": "b", "id": 9}]
    project = folder.project(splits=BLOCKS | {"minimum_units": 2} | splits, classes=classes)
    return configured(project, evaluation={"block": 1})


def draw(folder: Folder, *, split: Any = "test", **options: Any) -> HeldOutReport:
    return select_held_out(project_of(folder), folder.database, split=split, **options)


def label(queue: Path, *, images: int = 100, first: int = 3) -> None:
    """Both classes, by their ids, in the first images of an exported queue."""
    for line in (queue / "manifest.jsonl").read_text(encoding="utf-8").splitlines()[:images]:
        entry = json.loads(line)
        mask = np.full((entry["height"], entry["width"]), first, np.uint8)
        mask[:, : entry["width"] // 2] = 9
        Picture.fromarray(mask).save(queue / entry["mask"])


def splits(folder: Folder) -> list[str]:
    return fetch(folder.database, select(Image.split).order_by(Image.position))


class TestTheDraw:
    def test_whole_blocks_leave_the_pool_with_their_guards_and_one_image_of_each_is_asked_for(
        self, folder: Folder
    ) -> None:
        report = draw(folder)
        assert (report.name, report.units, report.held, len(report.uris)) == ("test-01", 2, 4, 2)
        now = splits(folder)
        assert now.count("test") == 4
        assert now.count("guard") == report.guards > 0
        held = [place for place, split in enumerate(now) if split == "test"]
        asked = {int(Path(uri).stem[1:]) // 2 for uri in report.uris}
        assert asked == {place // 2 for place in held}
        for place in held:
            beside = [now[other] for other in (place - 1, place + 1) if 0 <= other < 20]
            assert "pool" not in beside
        queue = fetch_one(folder.database, Queue)
        assert (queue.kind, queue.round_id, queue.unit) == ("held_out", None, "image")

    def test_a_draw_says_before_anybody_paints_that_its_images_are_too_few_independent_units(
        self, folder: Folder
    ) -> None:
        assert (draw(folder).evidence, draw(folder).needed) == (2, 2)
        assert not [line for line in draw(folder).lines() if line.startswith("warning")]
        project = configured(project_of(folder), evaluation={"block": 10})
        [warning] = [
            line
            for line in select_held_out(project, folder.database, split="test").lines()
            if line.startswith("warning")
        ]
        assert (
            "the test split has at most 1 of the 2 independent units that it needs: neighbours in" in warning
        )
        assert "`data.independent: true`" in warning
        project = configured(project, data={"independent": True})
        assert select_held_out(project, folder.database, split="test").evidence == 2
        [warning] = [
            line
            for line in select_held_out(project, folder.database, split="test", budget=1).lines()
            if line.startswith("warning")
        ]
        assert "at most 1 of the 2 independent units that it needs. Ask for more images" in warning

    def test_a_second_draw_before_the_export_replaces_the_first_and_gives_its_images_back(
        self, folder: Folder
    ) -> None:
        draw(folder, budget=4)
        larger = splits(folder)
        report = draw(folder, budget=1)
        now = splits(folder)
        assert (now.count("test"), larger.count("test")) == (2, 8)
        assert now.count("pool") == 20 - 2 - report.guards
        assert fetch(folder.database, select(Queue.name)) == ["test-01"]
        assert count_rows(folder.database, QueueItem) == 1

    def test_a_preview_changes_nothing(self, folder: Folder) -> None:
        assert len(draw(folder, dry_run=True).uris) == 2
        assert set(splits(folder)) == {"pool"}
        assert count_rows(folder.database, Queue) == 0

    def test_images_that_are_queued_or_labeled_are_never_held_out(self, folder: Folder) -> None:
        project = configured(project_of(folder), selection={"budget": 2})
        choose(project, folder.database)
        queued = set(fetch(folder.database, select(QueueItem.image_id)))
        draw(folder, budget=10)
        now = dict(fetch(folder.database, select(Image.id, Image.split)))
        assert {now[image_id] for image_id in queued} == {"pool"}

    def test_no_more_than_half_of_the_blocks_is_held_out(self, folder: Folder) -> None:
        report = draw(folder, budget=9)
        assert report.units == 5
        assert len(report.uris) == 9
        assert splits(folder).count("test") == 10
        export(project_of(folder), folder.database, queue="test-01")
        with pytest.raises(NothingLeft, match="at most half of all blocks are held out"):
            draw(folder, split="calibration")

    def test_a_list_names_the_images_to_ask_for(self) -> None:
        images = Images(
            groups=np.zeros(6, np.int64),
            positions=np.arange(6),
            splits=np.array([TEST, TEST, POOL, CALIBRATION, GUARD, TEST], np.uint8),
            has_mask=np.array([True, False, False, False, False, False]),
            labeled=np.zeros(6, bool),
            taken=np.zeros(6, bool),
        )
        config = SplitsConfig.model_validate({"test": {"list": "test.txt"}})
        drawn = draw_to_label(config, "test", images, lacking=~images.has_mask, wanted=9, turn=0)
        assert sorted(drawn.rows.tolist()) == [1, 5]
        assert drawn.splits.tolist() == images.splits.tolist()


class TestTheirLabels:
    @pytest.mark.parametrize("tool", ["folder", "cvat", "coco", "label-studio"])
    def test_the_import_of_the_last_delivery_comes_next(self, folder: Folder, tool: str) -> None:
        project, database = project_of(folder), folder.database
        draw(folder)
        assert ask(database, import_command, "test-09") is None
        for other in ("folder", "cvat", "coco", "label-studio"):
            export(project, database, queue="test-01", to=other)
        export(project, database, queue="test-01", to=tool)
        asked = f"segcurate import --from {tool} FILE --queue test-01"
        if tool == "folder":
            asked = "segcurate import queues/test-01"
        assert ask(database, import_command, "test-01") == asked
        assert [one.command for one in ask(database, project_status).held_out] == [asked]

    def test_they_become_the_split_and_are_never_trained_on(self, folder: Folder) -> None:
        project, database = project_of(folder), folder.database
        draw(folder)
        exported = export(project, database, queue="test-01")
        assert "would sway the labels" in list(exported.lines())[-2]
        waiting = ask(database, project_status).held_out
        assert [(one.name, one.images, one.command) for one in waiting] == [
            ("test-01", 2, "segcurate import queues/test-01")
        ]
        label(exported.folder, images=1)
        first = import_labels(project, database, source=exported.folder)
        assert (first.open_items, first.grown) == (1, ())
        assert first.lines()[-1] == (
            "1 image still waits for a label; `--close` ends the queue with what is there."
        )
        with pytest.raises(NotYourTurn, match="test-01 is out, and waits for labels: 1 image"):
            draw(folder)
        label(exported.folder)
        report = import_labels(project, database, source=exported.folder)
        assert report.grown == (
            "The test split is at version 1: 2 images with masks, 2 of them new, in at most 2 independent "
            "units.",
        )
        assert ask(database, models.training_labels) == []
        held = ask(database, held_out_images, project, "test")
        codec = MaskCodec.from_config(project.config.data)
        assert [np.unique(image.label(codec)).tolist() for image in held] == [[0, 1], [0, 1]]
        assert ask(database, project_status).labeled_images == 0

    def test_the_same_masks_change_nothing_and_a_correction_makes_the_next_version(
        self, folder: Folder
    ) -> None:
        project, database = project_of(folder), folder.database
        draw(folder)
        queue = export(project, database, queue="test-01").folder
        label(queue)
        import_labels(project, database, source=queue)
        assert import_labels(project, database, source=queue).grown == ()
        assert ingest(project, database).grown == ()
        label(queue, images=1, first=255)
        (sentence,) = import_labels(project, database, source=queue).grown
        assert sentence.startswith("The test split is at version 2: 2 images with masks, 1 of them new")

    def test_they_do_not_stand_for_masks_of_the_folder_which_are_looked_at_as_the_first_ones(
        self, folder: Folder
    ) -> None:
        project, database = project_of(folder), folder.database
        draw(folder)
        queue = export(project, database, queue="test-01").folder
        label(queue)
        import_labels(project, database, source=queue)
        for uri in fetch(database, select(Image.uri).where(Image.split == "pool"))[:3]:
            folder.mask(Path(uri).relative_to("images").as_posix(), value=77)
        with pytest.raises(DataError, match="3 of 3 masks hold values that are neither a class nor"):
            ingest(project_of(folder), database)

    def test_a_queue_that_is_ended_early_makes_the_split_of_what_is_there(self, folder: Folder) -> None:
        project, database = project_of(folder), folder.database
        draw(folder, budget=3)
        queue = export(project, database, queue="test-01").folder
        label(queue, images=2)
        report = import_labels(project, database, source=queue, close=True)
        assert (report.unlabeled, report.closed, len(report.grown)) == (1, False, 1)
        assert splits(folder).count("test") == 6

    def test_what_the_split_still_needs_counts_them_and_names_the_queue_that_is_out(
        self, folder: Folder
    ) -> None:
        project, database = project_of(folder, minimum_units=4), folder.database
        select_held_out(project, database, split="test", budget=4)
        queue = export(project, database, queue="test-01").folder
        assert "Label the images of test-01; or" in fetch_one(database, ProjectRow.open_splits)["test"]
        label(queue, images=3)
        import_labels(project, database, source=queue, close=True)
        needs = fetch_one(database, ProjectRow.open_splits)["test"]
        assert "there are 3. Draw images to label with `segcurate select --for test`" in needs
        assert "or put masks of 5 more units into `data.masks`" in needs

    def test_an_import_that_is_killed_before_the_split_grows_is_finished_by_the_next_ingest(
        self, folder: Folder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        project, database = project_of(folder), folder.database
        draw(folder)
        queue = export(project, database, queue="test-01").folder
        label(queue)

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(import_step, "take_held_out_labels", killed)
            import_labels(project, database, source=queue)
        assert count_rows(database, Label) == 2
        assert len(ingest(project, database).grown) == 1
        assert ask(database, image_queries.split_versions)["test"] == 1
        assert ingest(project, database).grown == ()

    def test_the_second_queue_adds_to_the_split(self, folder: Folder) -> None:
        project, database = project_of(folder), folder.database
        for number in (1, 2):
            draw(folder, budget=2)
            queue = export(project, database, queue=f"test-0{number}").folder
            label(queue)
            (sentence,) = import_labels(project, database, source=queue).grown
        assert sentence.startswith("The test split is at version 2: 4 images with masks, 2 of them new")

    def test_a_queue_of_the_round_that_was_chosen_meanwhile_is_refused(
        self, folder: Folder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from pipeline.steps.select import step

        rank = step.rank_items

        def meanwhile(*arguments: Any) -> Any:
            change(folder.database, Image, split="test")
            return rank(*arguments)

        monkeypatch.setattr(step, "rank_items", meanwhile)
        with pytest.raises(NotYourTurn, match="Images have left the pool meanwhile"):
            choose(project_of(folder), folder.database)
        assert count_rows(folder.database, Queue) == 0


def test_the_pool_goes_its_way_beside_a_test_queue(folder: Folder) -> None:
    project = configured(project_of(folder), selection={"budget": 4})
    draw(folder)
    held = set(fetch(folder.database, select(Image.id).where(Image.split != "pool")))
    report = choose(project, folder.database)
    assert not {item.image_id for item in report.items} & held
    queue = export(project, folder.database).folder
    paint(queue)
    assert ask(folder.database, project_status).next_command == "segcurate import queues/round-00"
