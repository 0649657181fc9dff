"""Masks from strangers: what is wrong is refused with its reason, the rest goes in, nothing leaks."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from db.queries import failures
from pipeline.errors import DataError
from tests.factories import ask
from tests.pipeline.claiming_png import GREY, claiming_png
from tests.pipeline.labeling.exported_project import NAMES, UNPAINTED, Exported, ids, write_png
from tests.pipeline.steps.import_labels.test_step import COLORS, deliver, mask_file, take

GOOD = "right/frame 1.png"
BAD = "left/frame 1.png"


@pytest.fixture
def folder(exported: Exported, folder: Path) -> Path:
    """An export with one good mask in it."""
    deliver(exported, folder, [GOOD])
    return folder


def rejection(exported: Exported, folder: Path) -> tuple[str, str]:
    """Import; the good mask must go in, and exactly one file is refused: its name and the reason."""
    report = take(exported, folder)
    assert report.imported == 1
    assert [label.image_id for label in exported.labels()] == [exported.images()[GOOD].id]
    assert len(report.rejected) == 1
    (failure,) = ask(exported.database, failures.list_failures, step="import")
    assert failure.reason == report.rejected[0][1]
    return report.rejected[0]


def unknown(pixels: npt.NDArray[Any], where: Any, value: Any) -> npt.NDArray[Any]:
    pixels[where] = value
    return pixels


def holed(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    opaque = np.full(pixels.shape[:2], 255, np.uint8)
    return np.dstack([pixels, unknown(opaque, np.s_[:5, :5], 0)])


@pytest.mark.parametrize(
    ("drawn", "words"),
    [
        (lambda truth: ids(truth.T), r".*64×96 pixels, its image 96×64.*"),
        (lambda truth: unknown(ids(truth), np.s_[3, 4:6], 99), r".*99 \(2 px\).*"),
        (lambda truth: unknown(COLORS[truth], (0, 0), (1, 1, 2)), r".*\(1, 1, 2\).*"),
        (lambda truth: holed(COLORS[truth]), r".*transparent.*"),
        (lambda truth: np.full_like(truth, UNPAINTED), r"Nothing in it is painted\."),
    ],
    ids=["of the wrong size", "an unknown class", "an unknown colour", "transparent", "nothing painted"],
)
def test_a_mask_that_cannot_be_read(
    exported: Exported, folder: Path, drawn: Callable[[Any], npt.NDArray[Any]], words: str
) -> None:
    write_png(mask_file(folder, BAD), drawn(exported.truth[BAD]))
    _, reason = rejection(exported, folder)
    assert re.fullmatch(words, reason, re.DOTALL)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("stranger.png", None),
        ("..\\..\\evil.png", None),
        ("notes.txt", b"hello"),
        ("a.jpg", b""),
    ],
)
def test_a_file_that_belongs_to_nothing(
    exported: Exported, folder: Path, name: str, content: bytes | None
) -> None:
    path = write_png(folder / "masks" / "stranger.png", ids(exported.truth[BAD]))
    path = path.rename(path.with_name(name))
    if content is not None:
        path.write_bytes(content)
    file, reason = rejection(exported, folder)
    assert file == f"masks/{name}"
    assert reason


def test_a_text_file_named_png(exported: Exported, folder: Path) -> None:
    mask_file(folder, BAD).write_text("not a mask")
    _, reason = rejection(exported, folder)
    assert "is not a readable image" in reason


def test_a_truncated_png(exported: Exported, folder: Path) -> None:
    path = write_png(mask_file(folder, BAD), ids(exported.truth[BAD]))
    path.write_bytes(path.read_bytes()[:-60])
    _, reason = rejection(exported, folder)
    assert "is not a readable image" in reason


def test_a_decompression_bomb_is_not_decoded(exported: Exported, folder: Path) -> None:
    mask_file(folder, BAD).write_bytes(claiming_png(100_000, 100_000, color=GREY))
    _, reason = rejection(exported, folder)
    assert "100000×100000" in reason


def test_a_link_that_leads_out_of_the_folder(exported: Exported, folder: Path, tmp_path: Path) -> None:
    secret = write_png(tmp_path / "secret.png", ids(exported.truth[BAD]))
    mask_file(folder, BAD).symlink_to(secret)
    _, reason = rejection(exported, folder)
    assert "link that leads out" in reason


def test_a_linked_folder_is_not_entered(exported: Exported, folder: Path, tmp_path: Path) -> None:
    name = mask_file(folder, BAD).name
    write_png(tmp_path / "elsewhere" / name, ids(exported.truth[BAD]))
    (folder / "masks" / "more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    _, reason = rejection(exported, folder)
    assert "link that leads out" in reason


def test_a_masks_folder_that_is_a_link(exported: Exported, folder: Path, tmp_path: Path) -> None:
    (folder / "masks").rename(tmp_path / "masks")
    (folder / "masks").symlink_to(tmp_path / "masks", target_is_directory=True)
    with pytest.raises(DataError, match="masks is a link"):
        take(exported, folder)


def test_a_pipe_is_not_opened(exported: Exported, folder: Path) -> None:
    os.mkfifo(mask_file(folder, BAD))
    _, reason = rejection(exported, folder)
    assert reason == "It is not a plain file."


def test_a_name_that_is_no_text_is_shown_and_refused(exported: Exported, folder: Path) -> None:
    path = os.fsencode(folder / "masks") + b"/\xff\xfe.png"
    with open(path, "wb") as stream:
        stream.write(b"?")
    file, _ = rejection(exported, folder)
    assert file == "masks/\\xff\\xfe.png"


def test_two_masks_of_one_image(exported: Exported, folder: Path) -> None:
    deliver(exported, folder, [BAD])
    write_png(folder / "masks" / f"{exported.images()[BAD].id}.png", ids(exported.truth[BAD]))
    report = take(exported, folder)
    assert report.imported == 1
    assert len(report.rejected) == 2
    assert all("several masks" in reason for _, reason in report.rejected)


def test_predictions_are_never_taken_as_labels(exported: Exported, folder: Path) -> None:
    with pytest.raises(DataError, match="not labels"):
        take(exported, folder / "premasks")
    (folder / "manifest.jsonl").rename(folder / "manifest.old")
    for part in ("overlays", "images"):
        for path in (folder / part).iterdir():
            path.unlink()
    report = take(exported, folder)
    assert report.imported == 1
    assert dict(report.rejected)["premasks"] == "These are the model's predictions, not labels."


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "..\\secret.png", "C:\\secret.png"])
def test_a_manifest_line_that_points_out_of_the_folder(exported: Exported, folder: Path, path: str) -> None:
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    document = json.loads(lines[0])
    document["mask"] = path
    (folder / "manifest.jsonl").write_text("\n".join([json.dumps(document), *lines[1:]]))
    file, reason = rejection(exported, folder)
    assert file == "manifest.jsonl line 1"
    assert reason == "mask: a path leaves the folder"


def test_a_damaged_manifest_line_is_named_without_being_repeated(exported: Exported, folder: Path) -> None:
    with (folder / "manifest.jsonl").open("ab") as stream:
        stream.write(b'{"password": "hunter2\xff\n')
    file, reason = rejection(exported, folder)
    assert file == f"manifest.jsonl line {len(NAMES) + 1}"
    assert "hunter2" not in reason


def test_a_manifest_of_another_project(exported: Exported, folder: Path) -> None:
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    others = [json.dumps({**json.loads(line), "sha256": "0" * 64}) for line in lines]
    (folder / "manifest.jsonl").write_text("\n".join(others))
    with pytest.raises(DataError, match="was not exported from this project"):
        take(exported, folder)
    renamed = [json.dumps({**json.loads(line), "queue": "round-77"}) for line in lines]
    (folder / "manifest.jsonl").write_text("\n".join(renamed))
    with pytest.raises(DataError, match="queue 'round-77', which this project does not have"):
        take(exported, folder)
    assert exported.labels() == []


def test_a_missing_folder(exported: Exported) -> None:
    with pytest.raises(DataError, match="There is no file or folder .*nowhere"):
        take(exported, exported.project.root / "nowhere")
