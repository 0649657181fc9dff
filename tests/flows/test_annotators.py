"""`annotators`, `rounds` and `queue` where several people have labeled: what a person and a program read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from db.tables import ModelLabel, QueueItem
from pipeline.format import short_count
from tests.flows.console import Console
from tests.pipeline.shared_queue import SharedQueue, disputing, filled, make_shared_queue

IMAGES = 6


@pytest.fixture
def shared(tmp_path: Path) -> SharedQueue:
    """Ann and [Bo] differ by as much as the model expects; one item was skipped."""
    disputed = np.random.default_rng(0).integers(0, 9, size=(IMAGES, 4)) / 16
    made = make_shared_queue(tmp_path, images=IMAGES + 1, expected_entropy=np.vstack([disputed, np.zeros(4)]))
    labels: list[int] = []
    for image_id in range(1, IMAGES + 1):
        masks = [filled(0), disputing(disputed[image_id - 1])]
        for name, mask in zip(("ann", "[bo]"), masks, strict=True):
            labels.append(made.label(image_id, mask, by=name, seconds=900))
        made.settle(image_id, masks)
    with made.database.session() as session:
        session.add_all(ModelLabel(model_id=1, label_id=label_id) for label_id in labels)
        last = session.query(QueueItem).order_by(QueueItem.rank.desc()).first()
        assert last is not None
        last.status = "skipped"
    return made


@pytest.fixture
def console(
    shared: SharedQueue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Console:
    return Console(shared.project.root, monkeypatch, capsys)


def test_the_most_disputed_regions_come_first_with_what_the_model_expected(console: Console) -> None:
    found = console.json("annotators", "--limit", "3")
    assert (found["regions"], found["images"], found["annotators"]) == (4 * IMAGES, IMAGES, ["[bo]", "ann"])
    assert len(found["rows"]) == 3
    assert found["rows"][0]["disagreement"] == found["rows"][0]["expected_entropy"] == 0.5
    assert [one["value"] for one in found["correlations"]] == [pytest.approx(1.0), pytest.approx(-1.0)]
    said = " ".join(console.run("annotators", "--limit", "3").split())
    assert "24 regions of 6 images have two annotators or more: [bo], ann" in said
    assert "The 3 of 24 regions that are disputed most" in said
    assert "rank correlation of vote entropy and expected entropy: 1.000 [1.000, 1.000]" in said
    assert console.json("annotators", "--queue", "round-01", "--limit", "3")["rows"] == found["rows"]
    assert "There is no queue 'round-09'" in console.run("annotators", "--queue", "round-09", code=1)


def test_without_a_second_annotator_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = make_shared_queue(tmp_path / "alone", images=1)
    alone.label(1, filled(1), by="ann")
    there = Console(alone.project.root, monkeypatch, capsys)
    assert there.run("annotators") == "No region has labels of two annotators.\n"
    assert there.json("annotators")["rows"] == []


def test_a_round_shows_what_its_labels_cost_in_one_line(console: Console) -> None:
    (row,) = console.json("rounds")
    assert row["labeled_pixels"] == IMAGES * 32 * 32
    assert (row["clicks"], row["hours"]) == (10.0 * IMAGES, pytest.approx(0.25 * 2 * IMAGES))
    _, head, line, *_ = (" ".join(line.split()) for line in console.run("rounds").splitlines())
    assert head == "round model regions pixels of the pool clicks hours next"
    assert line == "1 r01 promoted 24 6.1 k 85.7 % 60 3.0 import"


def test_a_queue_shows_its_clicks_and_what_was_skipped(console: Console) -> None:
    found = console.json("queue", "--limit", "2")
    assert found["clicks"] == 10 * (IMAGES + 1)
    assert [item["clicks"] for item in found["head"]] == [1, 2]
    assert found["by_status"] == {"labeled": 24, "queued": 3, "skipped": 1}
    said = console.run("queue", "--limit", "2")
    assert "about 70 clicks" in said
    assert "1 skipped" in said
    assert ", 1 skipped" in console.run("status").replace("\n", " ")


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0"), (1_000, "1.0 k"), (999_999, "1.0 M"), (1_234_567, "1.2 M"), (2_549_999_999, "2.5 G")],
)
def test_large_numbers_are_shown_short(count: int, words: str) -> None:
    assert short_count(count) == words
