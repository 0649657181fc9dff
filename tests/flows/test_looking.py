"""`status`, `runs` and `queue`: what a person reads, and what another program can rely on."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import PIL.Image
import pytest
from sqlalchemy import delete, func, select

from db.queries.failures import record_failures
from db.tables import Failure, Image, ImageScore, Lease, QueueItem, RegionScore, ScoringRun, Shard, utc_now
from pipeline.format import counted
from pipeline.leases import this_process
from tests.conftest import opened
from tests.factories import new_item, new_queue, put
from tests.flows.console import Console


@pytest.fixture
def console(out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Console:
    return Console(out, monkeypatch, capsys)


def test_a_run_says_what_it_scored_by_whom_and_what_was_noticed(console: Console, out: Path) -> None:
    with opened(out) as (_, database), database.session() as session:
        images = session.scalar(select(func.count()).select_from(ImageScore))
        regions = session.scalar(select(func.count()).select_from(RegionScore))
        shards = session.scalar(select(func.count()).select_from(Shard))
        run = session.scalars(select(ScoringRun)).one()
        scorer = run.scorer
        run.summary = {"drift": {"warning": "The new images differ."}, "input_range": {"outside": 2}}
    (row,) = console.json("runs")
    assert list(row) == [
        "id",
        "model",
        "sampler",
        "samples",
        "calibrator",
        "region_kind",
        "scorer_hash",
        "images",
        "regions",
        "heatmap_images",
        "shards_done",
        "shards_running",
        "shards_pending",
        "workers",
        "started_at",
        "finished_at",
        "images_per_second",
        "pruned_at",
        "drift",
        "outliers",
    ]
    assert row["model"] == "r01"
    assert (row["sampler"], row["samples"]) == (scorer["sampler"], scorer.get("samples"))
    assert row["region_kind"] == scorer["regions"]["kind"]
    assert (row["images"], row["regions"], row["shards_done"]) == (images, regions, shards)
    assert (row["shards_running"], row["shards_pending"], row["pruned_at"]) == (0, 0, None)
    assert sum(worker["images"] for worker in row["workers"]) == images
    assert row["images_per_second"] > 0
    assert (row["drift"], row["outliers"]) == ("The new images differ.", 2)
    said = console.run("runs")
    scored = f"{counted(images or 0, 'image')} in {counted(shards or 0, 'shard')}"
    assert f"{scored} by {row['workers'][0]['owner']}" in said
    assert "The new images differ." in said


def test_a_run_whose_scores_are_gone_says_since_when(console: Console, out: Path) -> None:
    with opened(out) as (_, database), database.session() as session:
        session.execute(delete(RegionScore))
        session.execute(delete(ImageScore))
        run = session.scalars(select(ScoringRun)).one()
        run.finished_at, run.pruned_at = None, utc_now()
    (row,) = console.json("runs")
    assert row["pruned_at"].startswith(f"{utc_now():%Y-%m-%d}")
    assert row["images"] == 0
    assert f"pruned {utc_now():%Y-%m-%d}" in console.run("runs")
    assert console.json("status")["scoring"]["run_id"] is None


def test_status_says_that_masks_of_queued_images_have_appeared(console: Console, out: Path) -> None:
    assert "masks     " not in console.run("status")
    with opened(out) as (_, database), database.session() as session:
        queued = session.scalars(select(QueueItem).where(QueueItem.queue_id == 2)).first()
        assert queued is not None
        masked = session.get_one(Image, queued.image_id)
        masked.mask_uri, masked.ingested_at = "masks/new.png", utc_now()
    line = next(line for line in console.run("status").splitlines() if line.startswith("masks     "))
    assert line == (
        "masks     1 image that round-01 asks for has a mask in `data.masks` now. Take it as its label: "
        "`segcurate import masks --queue round-01`."
    )
    command = "segcurate import masks --queue round-01"
    assert console.json("status")["masks_to_take"] == [
        {"queue": "round-01", "images": 1, "command": command, "key": "data.masks"}
    ]


def test_the_queue_is_counted_whole_and_shown_from_its_head(console: Console, out: Path) -> None:
    with opened(out) as (_, database), database.session() as session:
        items = session.scalars(
            select(QueueItem).where(QueueItem.queue_id == 2).order_by(QueueItem.rank)
        ).all()
        uri = session.get_one(Image, items[0].image_id).uri
        items[1].status = "labeled"
    shown = console.json("queue", "--limit", "2")
    assert (shown["name"], shown["kind"], shown["items"]) == ("round-01", "selected", len(items))
    assert shown["by_status"] == {"labeled": 1, "queued": len(items) - 1}
    assert shown["by_slice"] == {"selected": len(items) - 1, "audit": 1}
    assert sum(shown["by_class"].values()) == len(items)
    assert shown["candidates"] > len(items)
    assert shown["folder"] == "queues/round-01"
    assert [item["rank"] for item in shown["head"]] == [1, 2]
    assert shown["head"][0]["image"] == uri
    assert shown["head"][0]["score"] == pytest.approx(items[0].score)
    assert shown["head"][0]["reason"] == items[0].reason
    assert console.json("queue", "round-01", "--limit", "2") == shown
    said = console.run("queue")
    assert items[0].reason in " ".join(said.split())
    assert "queues/round-01" in said


def test_every_queue_is_listed_and_an_unknown_one_is_a_clear_word(console: Console) -> None:
    assert [row["name"] for row in console.json("queue", "--all")] == ["initial", "round-01"]
    assert "round-01" in console.run("queue", "--all")
    message = console.run("queue", "round-09", code=1)
    assert "There is no queue 'round-09'; there are: initial, round-01." in message


def test_the_exit_code_of_a_night_tells_warnings_from_a_failure(console: Console, out: Path) -> None:
    assert "6 of 6 regions wait for labels" in console.run("nightly")
    (out / "images" / "broken.png").write_bytes(b"no image")
    console.run("nightly", code=3)
    (out / "images").rename(out / "elsewhere")
    assert "error: `data.images` names 'images'" in console.run("nightly", code=1)


def test_the_exit_code_of_an_import_tells_refused_masks_from_none_that_was_taken(
    console: Console, out: Path, tmp_path: Path
) -> None:
    answers = tmp_path / "answers"
    answers.mkdir()
    (answers / "broken.png").write_bytes(b"no image")
    assert "error: Nothing could be imported from" in console.run("import", str(answers), code=1)
    with opened(out) as (project, database), database.session(write=False) as session:
        image = session.scalars(select(Image.uri).join(QueueItem, QueueItem.image_id == Image.id)).first()
        assert image is not None
        with PIL.Image.open(project.path(image)) as picture:
            PIL.Image.new("L", picture.size, 1).save(answers / f"{Path(image).stem}.png")
    said = console.run("import", str(answers), code=3)
    assert "1 mask imported" in said
    assert "warning: 1 mask could not be imported" in said


def test_masks_of_other_images_of_the_project_are_no_failure_of_an_import(
    console: Console, out: Path, tmp_path: Path
) -> None:
    answers = tmp_path / "answers"
    answers.mkdir()
    with opened(out) as (project, database), database.session(write=False) as session:
        queued = set(session.scalars(select(QueueItem.image_id)))
        images = list(session.scalars(select(Image).order_by(Image.id)))
        uris = [row.uri for row in images if row.id in queued][:1] + [
            row.uri for row in images if row.id not in queued
        ]
        for uri in uris[1:]:
            with PIL.Image.open(project.path(uri)) as picture:
                PIL.Image.new("L", picture.size, 1).save(answers / f"{Path(uri).stem}.png")
        said = " ".join(console.run("import", str(answers), code=1).split())
        assert "error: No mask is of an image of round-01. to do: Name the masks' queue with" in said
        with PIL.Image.open(project.path(uris[0])) as picture:
            PIL.Image.new("L", picture.size, 1).save(answers / f"{Path(uris[0]).stem}.png")
    said = " ".join(console.run("import", str(answers)).split())
    assert "1 mask imported" in said
    assert f"{len(uris) - 1} masks belong to no image of round-01 and are left out: " in said


def test_after_the_export_of_a_held_out_queue_its_import_comes_next(console: Console, out: Path) -> None:
    with opened(out) as (_, database), database.session() as session:
        image = session.scalars(select(Image).where(Image.split == "pool")).first()
        assert image is not None
        image.split = "test"
        queue = put(session, new_queue("test-01", kind="held_out", unit="image"))
        put(session, new_item(queue.id, 1, image.id, (0, 0, image.width, image.height)))
    said = console.run("export", "--queue", "test-01", "--to", "cvat")
    assert "Next: segcurate import --from cvat FILE --queue test-01" in said
    said = console.run("export", "--queue", "test-01")
    assert "Next: segcurate import queues/test-01" in said


def test_status_says_who_is_at_work_and_who_died_there(console: Console, out: Path) -> None:
    gone = this_process().rpartition(":")[0] + ":1.00"
    now = utc_now()
    with opened(out) as (_, database), database.session() as session:
        for name, owner, seconds in (
            ("train", this_process(), 60),
            ("evaluate", gone, 60),
            ("export", "far:1:2.00", -5),
        ):
            session.add(Lease(name=name, owner=owner, taken_at=now, until=now + timedelta(seconds=seconds)))
        shard = session.scalars(select(Shard)).first()
        assert shard is not None
        shard.status, shard.owner, shard.lease_until = "running", "far:1:2.00", now + timedelta(seconds=60)
    status = console.json("status")
    found = {row["work"]: (row["owner"], row["alive"]) for row in status["at_work"]}
    assert found == {
        "train": (this_process(), True),
        "evaluate": (gone, False),
        "export": ("far:1:2.00", False),
        "scoring run 1": ("far:1:2.00", True),
    }
    said = console.run("status")
    assert f"train by {this_process()}, since" in said
    assert f"evaluate by {gone}, which has died" in said


def test_status_says_how_much_is_still_to_be_scored(console: Console, out: Path) -> None:
    status = console.json("status")
    assert list(status) == [
        "project",
        "images",
        "labeled_images",
        "failures",
        "round_number",
        "state",
        "promoted_model",
        "queue",
        "queue_items",
        "export_folder",
        "next_command",
        "reason",
        "split_versions",
        "open_splits",
        "held_out",
        "at_work",
        "scoring",
        "masks_to_take",
    ]
    assert status["at_work"] == []
    assert status["scoring"]["images_to_score"] == 0
    assert status["scoring"]["run_id"] == 1
    assert status["scoring"]["finished_at"]
    assert "all images are scored" in console.run("status")
    with opened(out) as (_, database), database.session() as session:
        lost = session.scalars(select(ImageScore.image_id).limit(3)).all()
        session.execute(delete(RegionScore).where(RegionScore.image_id.in_(lost)))
        session.execute(delete(ImageScore).where(ImageScore.image_id.in_(lost)))
        session.add(Failure(step="score", subject="a.png", reason="gone"))
    assert console.json("status")["scoring"]["images_to_score"] == 3
    assert "3 images to score" in console.run("status")


def test_before_a_model_serves_there_is_no_scoring_and_with_no_run_all_is_to_be_scored(
    trained: Path, squares: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Console(squares, monkeypatch, capsys).json("status")["scoring"] is None
    there = Console(trained, monkeypatch, capsys)
    scoring = there.json("status")["scoring"]
    assert scoring["run_id"] is None
    assert scoring["images_to_score"] == there.json("status")["images"]["pool"]
    assert there.json("runs") == []
    assert "No queue has been selected yet" in there.run("queue", code=1)


def test_failures_are_grouped_by_their_reason_with_three_examples(console: Console, out: Path) -> None:
    with opened(out) as (_, database), database.session() as session:
        record_failures(session, "ingest", [(f"{number:03d}.png", "truncated") for number in range(120)])
    first = console.run("failures")
    assert "120 files" in first
    assert first.count("truncated") == 1
    assert all(f"{number:03d}.png" in first for number in range(3))
    assert "117 more" in first
    assert "`segcurate failures --all` lists each file." in first
    assert console.run("failures", "--all").count("truncated") == 120
    assert len(console.json("failures")) == 120
