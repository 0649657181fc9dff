"""The whole loop from the command line: two rounds, killed and run again, with every step's doors shut."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import CLASSES, draw
from tests.flows.commands import Command

pytestmark = pytest.mark.slow


def run(folder: Path, *arguments: str, code: int = 0) -> str:
    """Run a command to its end; its standard output."""
    command = Command(folder, *arguments)
    assert command.end(within=240) == code, f"{arguments}: {command.errors}{command.output}"
    return command.output


def rows(folder: Path, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(folder / ".segcurate" / "segcurate.db") as connection:
        return connection.execute(query).fetchall()


def remembered(folder: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Everything that must not depend on when a process was killed."""
    return {
        "images": rows(folder, "SELECT uri, sha256, split FROM image ORDER BY id"),
        "models": rows(folder, "SELECT name, status, checkpoint_sha256, labels_hash FROM model ORDER BY id"),
        "calibrations": rows(folder, "SELECT model_id, sampler, parameters FROM calibration ORDER BY 1, 2"),
        "metrics": rows(
            folder,
            "SELECT e.model_id, e.split, e.sampler, e.calibrated, m.name, m.class_index, m.value, m.low "
            "FROM metric m JOIN evaluation e ON e.id = m.evaluation_id ORDER BY 1, 2, 3, 4, 5, 6",
        ),
        "regions": rows(
            folder,
            "SELECT r.scorer_hash, s.image_id, s.region_index, s.entropy, s.mutual_information "
            "FROM region_score s JOIN scoring_run r ON r.id = s.run_id ORDER BY 1, 2, 3",
        ),
        "items": rows(
            folder, "SELECT queue_id, rank, image_id, x, y, slice, status FROM queue_item ORDER BY 1, 2"
        ),
        "labels": rows(
            folder,
            "SELECT image_id, queue_id, version, mask_sha256 FROM label ORDER BY image_id, queue_id, version",
        ),
        "rounds": rows(folder, "SELECT number, state FROM round ORDER BY number"),
    }


@pytest.mark.timeout(900)  # some forty commands, on a busy machine
def test_a_loop_that_is_killed_again_and_again_ends_where_an_undisturbed_one_does(
    squares: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import shutil

    undisturbed = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(squares, undisturbed, dirs_exist_ok=True)
    run(undisturbed, "ingest")
    output = run(undisturbed, "loop", "--rounds", "2")
    assert "round 2: export" in output
    expected = remembered(undisturbed)
    assert expected["rounds"] == [(1, "closed"), (2, "import")]
    assert len(expected["models"]) == 2
    assert len(expected["items"]) > 12

    run(squares, "ingest")
    generator = np.random.default_rng(7)
    kills = 0
    for _ in range(12):
        code = Command(squares, "loop", "--rounds", "2").end(within=float(generator.uniform(0.2, 1.2)))
        kills += code == -signal.SIGKILL
        if code == 0:
            break
    run(squares, "loop", "--rounds", "2")
    assert kills >= 2
    assert remembered(squares) == expected


def test_by_hand_a_round_goes_out_comes_back_and_opens_the_next(squares: Path) -> None:
    assert "segcurate train" in run(squares, "ingest")
    for step, following in (
        ("train", "calibrate"),
        ("calibrate", "evaluate"),
        ("evaluate", "score"),
        ("score", "select"),
    ):
        assert f"Next: segcurate {following}" in run(squares, step)
    before = remembered(squares)["items"]
    preview = run(squares, "select", "--dry-run", "--strategy", "entropy", "--budget", "5")
    assert "nothing was written" in preview
    assert remembered(squares)["items"] == before
    queue = json.loads(run(squares, "select", "--json"))
    assert len(queue["items"]) == 12
    assert {item["slice"] for item in queue["items"]} == {"selected", "audit"}
    run(squares, "export")

    folder = squares / "queues" / "round-01"
    known = {
        row["image_id"]: row for row in map(json.loads, (folder / "manifest.jsonl").read_text().splitlines())
    }
    assert sum(len(row["regions"]) for row in known.values()) == 12
    for row in known.values():
        uri = rows(squares, f"SELECT uri FROM image WHERE id = {row['image_id']}")[0][0]
        truth = squares / "masks" / f"{Path(uri).stem}.png"
        (folder / "masks" / Path(row["premask"]).name).write_bytes(truth.read_bytes())
    (folder / "masks" / "stranger.png").write_bytes((squares / "masks" / "frame_000.png").read_bytes())
    output = run(squares, "import", str(folder), "--annotator", "a person", code=3)
    assert "stranger.png" in output
    assert "The round is closed" in output
    labels = remembered(squares)["labels"]
    assert "0 masks imported" in run(squares, "import", str(folder), code=3)
    assert remembered(squares)["labels"] == labels

    status = json.loads(run(squares, "status", "--json"))
    assert (status["round_number"], status["next_command"]) == (2, "segcurate train")
    rounds = json.loads(run(squares, "rounds", "--json"))
    assert [row["state"] for row in rounds] == ["closed", "train"]
    assert rounds[0]["mean_iou"][0] is not None
    assert rounds[1]["labeled_pixels"] > rounds[0]["labeled_pixels"]
    models = json.loads(run(squares, "models", "--json"))
    assert models[0]["status"] == "promoted"
    lowest = min(rounds[0]["classes"], key=lambda one: one["iou"][0])
    assert all(one["recall"][0] >= one["iou"][0] for one in rounds[0]["classes"])
    for command in ("rounds", "models"):
        assert f"{lowest['name']} {lowest['iou'][0]:.2f}" in run(squares, command)
        assert f"{lowest['iou'][0]:.3f}" in run(squares, command, "--classes")


def test_a_folder_full_of_bad_files_loses_none_of_the_good_ones(squares: Path) -> None:
    images, masks = squares / "images", squares / "masks"
    draw(images, masks, name='it\'s "quoted" – späce.png', seed=100)
    draw(images / "other", masks / "other", name="frame_000.png", seed=101)
    whole = squares / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(whole)
    (images / "truncated.jpg").write_bytes(whole.read_bytes()[:-400])
    whole.unlink()
    (images / "note.png").write_text("this is not an image")
    Image.fromarray(np.zeros((1, 1, 3), dtype=np.uint8)).save(images / "dot.png")
    draw(images, masks, name="smaller.png", seed=103)
    Image.fromarray(np.zeros((10, 10), dtype=np.uint8)).save(masks / "smaller.png")

    assert "28 of them new" in run(squares, "ingest")
    draw(images, masks, name="beyond.png", seed=102)
    Image.fromarray(np.full((48, 64), 9, dtype=np.uint8)).save(masks / "beyond.png")
    assert "1 of them new" in run(squares, "ingest")
    failures = {
        Path(row["file"]).name: row["reason"] for row in json.loads(run(squares, "failures", "--json"))
    }
    assert set(failures) == {"truncated.jpg", "note.png", "beyond.png", "smaller.png"}
    assert "9" in failures["beyond.png"]
    assert "10" in failures["smaller.png"]
    for step in ("train", "calibrate", "evaluate", "score", "select", "export"):
        run(squares, step)
    assert len(CLASSES) == 3


def test_a_checkpoint_that_was_replaced_by_a_pickle_is_refused(squares: Path) -> None:
    import pickle

    run(squares, "ingest")
    run(squares, "train")
    (weights,) = (squares / ".segcurate" / "models" / "r01").glob("*.safetensors")
    weights.write_bytes(pickle.dumps({"a": 1}))
    command = Command(squares, "calibrate")
    assert command.end(within=120) == 1
    assert weights.name in command.errors
    assert "Traceback" not in command.errors


def test_interrupting_says_how_to_go_on(squares: Path) -> None:
    run(squares, "ingest")
    command = Command(squares, "loop", "--rounds", "2")
    assert command.process.pid is not None
    while not (squares / ".segcurate" / "models" / "r01").is_dir():
        assert command.process.is_alive(), command.errors
        time.sleep(0.1)
    os.kill(command.process.pid, signal.SIGINT)
    assert command.end(within=60) == 130, command.errors + command.output
    assert "Run the same command again" in command.errors
