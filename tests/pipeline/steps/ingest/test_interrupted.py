"""An ingest that is killed, or whose disk is full, and is run again."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from db.engine import Database
from db.queries import images, rounds
from db.tables import Image, Label, QueueItem
from pipeline.errors import UserError
from pipeline.steps.ingest import initial_labels, step
from tests.factories import ask, count_rows
from tests.pipeline.steps.ingest.folder import HELD_OUT, Folder
from tests.pipeline.steps.ingest.test_splits import TEN


class Killed(BaseException):
    """What a kill is to the program: nothing catches it."""


def die_at_write(patched: pytest.MonkeyPatch, number: int) -> None:
    """Let the store die before its transaction of this number that writes."""
    calls = [0]
    original = Database.session

    def dying(self: Database, *, write: bool = True, **options: Any):
        calls[0] += write
        if write and calls[0] == number:
            raise Killed
        return original(self, write=write, **options)

    patched.setattr(Database, "session", dying)


@pytest.mark.parametrize("point", [1, 3, 4, 5, 7, 9])
def test_a_killed_ingest_run_again_ends_as_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: int
) -> None:
    monkeypatch.setattr(step, "BATCH", 4)
    monkeypatch.setattr(initial_labels, "PAGE", 2)
    outcomes = []
    for name, killed in (("whole", False), ("killed", True)):
        here = Folder(tmp_path / name)
        for group in "abcde":
            here.sequence(group, 2)
        here.image("c/copy.png", seed=1002)
        (tmp_path / name / "images" / "d" / "bad.png").write_text("x")
        settings = {"splits": {"initial": {"fraction": 0.5, "unit": "region"}}}
        if killed:
            with monkeypatch.context() as patched:
                die_at_write(patched, point + 2)  # the first one takes the lease
                with pytest.raises(Killed):
                    here.ingest(**settings)
        here.ingest(**settings)
        outcomes.append(
            (
                here.rows(
                    Image.uri,
                    Image.split,
                    Image.position,
                    Image.group_name,
                    Image.mask_uri,
                    Image.duplicate_of,
                ),
                here.rows(QueueItem.rank, QueueItem.x, QueueItem.y, QueueItem.image_id, QueueItem.status),
                here.rows(Label.image_id, Label.mask_sha256, Label.version),
                here.failures().keys(),
            )
        )
        here.database.close()
    assert outcomes[0] == outcomes[1]


def test_an_ingest_that_is_killed_while_a_split_grows_ends_as_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(name: str) -> Folder:
        here = Folder(tmp_path / name)
        here.sequence("s", 30, masks=False)
        here.mask("s/f0.png")
        here.ingest(splits=TEN, independent=True)
        for number in range(1, 30):
            here.mask(f"s/f{number}.png")
        return here

    def outcome(here: Folder) -> list[Any]:
        here.ingest(splits=TEN, independent=True)
        found = [
            here.splits(),
            here.rows(Label.image_id, Label.mask_sha256, Label.version),
            here.rows(QueueItem.image_id, QueueItem.status),
            ask(here.database, images.split_versions),
        ]
        here.database.close()
        return found

    expected = outcome(begun("whole"))
    assert expected[-1]["test"] == 1
    point, killed = 0, True
    while killed:
        point += 1
        here = begun(f"killed at {point}")
        with monkeypatch.context() as patched:
            die_at_write(patched, point)
            try:
                here.ingest(splits=TEN, independent=True)
                killed = False
            except Killed:
                killed = True
        assert outcome(here) == expected, point
    assert point > 4  # several transactions, each of them killed


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only")])
def test_labels_that_cannot_be_written_end_the_run_and_a_second_run_completes_it(
    five: Folder, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refuse)
        with pytest.raises(UserError, match=words) as caught:
            five.ingest(splits=HELD_OUT)
    assert str(five.root / ".segcurate" / "labels") in caught.value.problem
    assert count_rows(five.database, Label) == 0
    assert ask(five.database, rounds.current_round) is None
    assert five.ingest(splits=HELD_OUT).labeled_images == 6
